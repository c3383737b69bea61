"""People rank answers: sampled → blinded → ranked in the terminal or on a page → kept → what `reward` and `dpo` read.

`store` keeps it, `sampling` has models answer, `asking` is one annotator's side, `agreement` and `export` look at what
came of it; chat and serve keep their comparisons and thumbs in the same store, through `feedback`.
"""
