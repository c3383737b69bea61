"""The storyworld suite: a model tells stories about pairs that fine-tuning never saw, and each is judged by rule."""

from __future__ import annotations

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.data import storyworld
from llmpipe.evaluation.generate import Sampling, told


def verdicts(
    model: PreTrainedModel, tokenizer: Tokenizer, *, stories: int, max_new_tokens: int, seed: int, chat: bool
) -> dict[str, list[bool]]:
    """Ask for stories, and tell of each whether it is what was asked for.

    Sampled at temperature 1: the share of happy endings is the model's own, and a greedy answer would hide it.
    """
    rows = storyworld.prompts(rows=stories, seed=seed, held_out=True)
    asked = [row["prompt"][-1]["content"] for row in rows]
    found = []
    for prompt, story in zip(
        asked, told(model, tokenizer, asked, Sampling(max_new_tokens, 1.0, seed), chat=chat), strict=True
    ):
        request = storyworld.request_of(prompt)
        assert request is not None
        found.append(storyworld.judge(request, story.text))
    return {
        "follows_share": [verdict.follows for verdict in found],
        "well_formed_share": [verdict.well_formed for verdict in found],
        "happy_share": [verdict.happy for verdict in found],
        "pirate_share": [verdict.pirate for verdict in found],
    }
