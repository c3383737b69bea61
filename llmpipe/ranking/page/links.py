"""One-time links, each for an annotator; the session that one begins is that annotator's."""

from __future__ import annotations

from pathlib import Path

from llmpipe.talk.serve.guard import Signin


class Links(Signin):
    """As `Signin`, and knows who each session is."""

    page = Path(__file__).with_name("static") / "signin.html"
    needed = "this needs the link that llmpipe rank printed for an annotator"

    def __init__(self) -> None:
        super().__init__()
        self._who: dict[str, str] = {}

    def code_for(self, annotator: str) -> str:
        """Make a code that begins one session of an annotator."""
        code = self.code()
        self._who[code] = annotator
        return code

    def begin(self, code: str) -> str | None:
        """Begin a session with a code, which is used up; None if there is no such code."""
        session = super().begin(code)
        if session is not None:
            self._who[session] = self._who.pop(code)
        return session

    def annotator(self, session: str) -> str:
        """Return whose session it is."""
        return self._who[session]
