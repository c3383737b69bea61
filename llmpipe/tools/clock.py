"""The tool `now`: a model knows no date but that of its training."""

from __future__ import annotations

from datetime import datetime

from llmpipe.tools.tool import Tool


def tool() -> Tool:
    """Return a tool that says what day and time it is here."""
    return Tool(
        name="now",
        description="Today's date, weekday, and time.",
        parameters={"type": "object", "properties": {}, "additionalProperties": False},
        needs="nothing",
        call=lambda _: datetime.now().astimezone().strftime("%A, %Y-%m-%d %H:%M:%S %z"),
    )
