"""Nothing is sent anywhere: every connection beyond this machine is blocked and recorded, and none is tried."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .conftest import environment

OFFLINE = Path(__file__).parents[1] / "offline"


def blocked(llmpipe) -> dict[str, str]:
    return environment(PYTHONPATH=str(OFFLINE), ATTEMPTS=str(llmpipe.folder / "attempts"))


def test_no_socket_is_opened_to_the_internet(llmpipe) -> None:
    env = blocked(llmpipe)
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "CI"):
        env.pop(name, None)  # TRL sends nothing where one of these is set
    llmpipe("run", "tiny.yaml", env=env)
    attempts = llmpipe.folder / "attempts"
    assert not attempts.exists(), attempts.read_text(encoding="utf-8")


def test_the_block_sees_what_is_tried(llmpipe) -> None:
    code = "import urllib.request; urllib.request.urlopen('http://example.com', timeout=5)"
    done = subprocess.run([sys.executable, "-c", code], env=blocked(llmpipe), capture_output=True, text=True)
    assert done.returncode != 0
    assert "example.com" in (llmpipe.folder / "attempts").read_text(encoding="utf-8")
