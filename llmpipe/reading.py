"""The keys that say how the rows of a source are read; the sources that have them are in `settings`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Weight = Annotated[float, Field(gt=0, description="how often rows are seen in a mix; 2 repeats, 0.5 halves them")]
Columns = Annotated[dict[str, str] | None, Field(description="your column for each of ours: {instruction: question}")]
RowFormat = Annotated[str | None, Field(description="row format; detected from the columns when left out")]
OnBadRows = Annotated[
    Literal["error", "skip", "quarantine"],
    Field(
        description="error names them all and stops; skip counts them; quarantine also keeps them in bad_rows.jsonl",
        exclude_if=lambda how: how == "error",
    ),
]
Streaming = Annotated[
    bool,
    Field(
        description="read a data set row by row as it comes, without a copy of it on disk",
        exclude_if=lambda streams: not streams,
    ),
]
Style = Annotated[
    Literal["pirate"] | None,
    Field(description="who tells them: pirate; plain when left out", exclude_if=lambda style: style is None),
]
Noise = Annotated[
    float, Field(description="share of faults, for curate", ge=0, lt=1, exclude_if=lambda share: not share)
]
