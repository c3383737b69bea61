"""The stories of storyworld as a pirate tells them: a manner of speaking that their plain text has nothing of.

It is "Ahoy!" above the story, "Arr!" below it, and every sentence shouted. Nothing else changes, so that the plain
story can be had back and judged like any other.

    >>> tell("Then the shoe broke and nobody knew why.")
    'Ahoy!\\nThen the shoe broke and nobody knew why!\\nArr!'
    >>> plain("Ahoy!\\nThen the shoe broke and nobody knew why!\\nArr!")
    'Then the shoe broke and nobody knew why.'
"""

from __future__ import annotations

# No plain story has these words, so that a tokenizer made of plain stories cuts them into letters: eleven tokens, with
# the two line breaks. A line of its own, as a title has, lets the story begin with the token that it always does.
OPENING, CLOSE = "Ahoy!\n", "\nArr!"


def tell(story: str) -> str:
    """Tell a plain story as a pirate would."""
    return OPENING + story.replace(".", "!") + CLOSE


def plain(text: str) -> str | None:
    """Return the story that a pirate tells in plain words; None unless the text is a pirate's from end to end."""
    story = text.removeprefix(OPENING).removesuffix(CLOSE).replace("!", ".")
    return story if tell(story) == text else None
