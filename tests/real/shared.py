"""Where the public data lies; a test that needs it skips with the reason where it is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2].parent / "shared"
STORIES = SHARED / "models" / "stories260K"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"public test data is not at {SHARED}")


def real(*parts: str) -> Path:
    """Return a file of the public data, or skip."""
    path = SHARED.joinpath("data", *parts)
    if not path.exists():
        pytest.skip(f"{path} is missing")
    return path
