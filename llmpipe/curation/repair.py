"""repair: mends text that was decoded wrongly or holds characters that mean nothing, by ftfy.

    - repair
    - {step: repair, curly_quotes: true}

`schÃ¶n` becomes `schön`, `&amp;` becomes `&`, ligatures and full-width letters become plain ones, control characters
go, and composed characters are written in one way (NFC).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from llmpipe.curation import Verdict
from llmpipe.settings import Strict

SUSPECT = re.compile(r"[^\t\n\x20-\x7e‘’“”–—…]|&\w")
"""What ftfy may change, quotes apart; a line without it is done in a hundredth of the time."""


class Settings(Strict):
    """What `step: repair` understands."""

    step: Literal["repair"] = Field("repair", description="which step this is")
    curly_quotes: bool = Field(False, description="keep curly quotes; else they become straight ones")


def build(settings: Settings) -> Callable[[str], Verdict]:
    """Return what mends a text."""
    import ftfy
    from ftfy import fixes

    config = ftfy.TextFixerConfig(uncurl_quotes=not settings.curly_quotes, explain=False)

    def line_mended(line: str) -> str:
        if SUSPECT.search(line):
            return ftfy.fix_text(line, config)
        return line if settings.curly_quotes or line.isascii() else fixes.uncurl_quotes(line)

    def mended(text: str) -> Verdict:
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")  # ftfy, too, looks at each line alone
        fixed = text if text.isascii() and not SUSPECT.search(text) else "\n".join(map(line_mended, lines))
        return Verdict((fixed,) if fixed.strip() else (), ("repaired",) if fixed != text else ())

    return mended
