"""What the quickstart's recipe says of the pirate's stories, against a tokenizer made as it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from llmpipe import recipe as recipes
from llmpipe.data import storyworld
from llmpipe.data.sources import STORIES, read_conversations
from llmpipe.settings import BuiltinSource
from llmpipe.stages import sft
from llmpipe.stages import tokenizer as tokenizer_stage
from llmpipe.training.chat import encode

STAGES = recipes.load(Path(__file__).parents[2] / "recipes" / "quickstart.yaml").stages


@pytest.fixture(scope="module")
def made() -> PreTrainedTokenizerFast:
    """The quickstart's tokenizer, of the text as it is before faults are planted and found."""
    learned = tokenizer_stage.learn(STAGES["tok"], storyworld.corpus(stories=STORIES, seed=42))
    return PreTrainedTokenizerFast(
        tokenizer_object=learned,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        extra_special_tokens=list(tokenizer_stage.ROLES),
        chat_template=tokenizer_stage.CHAT_TEMPLATE,
    )


def test_every_story_of_a_pirate_fits(made, ctx) -> None:
    said = list(read_conversations(STAGES["pirate"].data, ctx))
    assert len(said) == 2000
    _, dropped = sft.fitting(said, made, context=STAGES["base"].context, too_long="drop")
    assert dropped == 0


def test_the_rows_that_are_trained_are_those_that_only_a_pirate_uses(made, ctx) -> None:
    some = [BuiltinSource(builtin="storyworld", rows=500, style=style) for style in (None, "pirate")]
    plain, told = (
        {token for _, chat in read_conversations([source], ctx) for token in encode(chat, made).ids} for source in some
    )
    documents = made(list(storyworld.corpus(stories=500, seed=42)), add_special_tokens=False)["input_ids"]
    unseen = sorted(told - plain.union(*documents))
    assert unseen == STAGES["pirate"].lora["trainable_token_indices"]
    assert made.convert_ids_to_tokens(unseen) == list("!Ahory")
