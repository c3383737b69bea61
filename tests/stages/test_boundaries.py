"""Where documents and answers end, for the tokenizers and templates that people bring along.

A GPT-2 tokenizer begins and ends with one token, Qwen's has no begin token, ChatML puts a line break after its end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmpipe.data import said
from llmpipe.data.formats import Conversation
from llmpipe.errors import StageError
from llmpipe.training import chat, models
from llmpipe.training.packing import IGNORED, PackedTokens, write_tokens
from tests.stages.tiny import context_for, run_stage

CHATML = """\
{%- for message in messages %}
{{- '<|user|>' + message['role'] + '\\n' + message['content'] + '<|end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|user|>assistant\\n' }}{%- endif %}
"""
MARKED = """\
{%- for tool in tools or [] %}{{- '[' + tool['name'] + ']' }}{%- endfor %}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- '' if loop.last else '(old)' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}
    {%- else %}{{- message['content'] + ':' }}{%- endif %}
{%- endfor %}
"""


def packed(folder: Path, documents: list[list[int]], *, bos: int | None, eos: int) -> PackedTokens:
    write_tokens(iter(documents), folder / "t", vocab_size=300)
    return PackedTokens(folder / "t", block=8, vocab_size=300, bos=bos, eos=eos, documents=len(documents))


@pytest.mark.parametrize(
    ("bos", "eos", "ids", "positions", "labels"),
    [
        (1, 2, [[1, 5, 6, 2], [1, 7, 8, 2]], [0, 1, 2, 3, 0, 1, 2, 3], [IGNORED, 5, 6, 2, IGNORED, 7, 8, 2]),
        (2, 2, [[2, 5, 6, 2], [2, 7, 8, 2]], [0, 1, 2, 3, 0, 1, 2, 3], [IGNORED, 5, 6, 2, IGNORED, 7, 8, 2]),
        (None, 2, [[5, 6, 2], [7, 8, 9, 9, 2]], [0, 1, 2, 0, 1, 2, 3, 4], [IGNORED, 6, 2, IGNORED, 8, 9, 9, 2]),
    ],
    ids=["begin and end", "one token for both", "no begin token"],
)
def test_documents_are_cut_apart_and_their_end_is_learned(bos, eos, ids, positions, labels, tmp_path) -> None:
    batch = packed(tmp_path, ids, bos=bos, eos=eos).__getitems__([0])
    assert batch["position_ids"].tolist() == [positions]
    assert batch["labels"].tolist() == [labels]


def test_without_a_begin_token_nothing_leaks(make_model, tmp_path) -> None:
    model = make_model().eval()
    logits = []
    for first in ([5, 6, 2], [90, 91, 2]):
        batch = packed(tmp_path, [first, [7, 8, 9, 9, 2]], bos=None, eos=2).__getitems__([0])
        with torch.no_grad():
            logits.append(model(**batch, use_cache=False).logits[0, 3:])
    assert torch.allclose(logits[0], logits[1], atol=1e-5)


def test_the_plain_question_is_cut_as_in_training(tokenizer) -> None:
    """Byte-level tokenizers join a space with the word after it, so a question must not end in one."""
    tokenizer.chat_template = chat.PLAIN_TEMPLATE
    conversation = Conversation([said("user", "Who?"), said("assistant", "Nora was here.")])
    asked = tokenizer(chat.render(conversation, tokenizer, 1, ask=True), add_special_tokens=False)["input_ids"]
    example = chat.encode(conversation, tokenizer)
    assert example.ids[: len(asked)] == asked
    assert example.learned == [False] * len(asked) + [True] * (len(example.ids) - len(asked))
    assert tokenizer.decode(example.ids[len(asked) :]) == " Nora was here.<|end|>"


def test_marks_see_the_tools(tokenizer) -> None:
    tokenizer.chat_template = MARKED
    turns = [said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "d")]
    example = chat.encode(Conversation(turns, tools=json.dumps([{"name": "clock"}])), tokenizer)
    assert tokenizer.decode(example.ids) == "[clock]a:(old)b<|end|>c:d<|end|>"
    taught = [token for token, learned in zip(example.ids, example.learned, strict=True) if learned]
    assert tokenizer.decode(taught) == "b<|end|>d<|end|>"


def saved(folder: Path, model: Any, tokenizer: Any) -> dict[str, Any]:
    model.save_pretrained(folder / "m")
    tokenizer.save_pretrained(folder / "m")
    trainer = {"max_steps": 1, "per_device_train_batch_size": 2}
    data = {"builtin": "storyworld", "rows": 60}
    return {"model": {"path": str(folder / "m")}, "data": data, "trainer": trainer}


def test_a_line_break_after_the_end_token_is_no_missing_end(make_model, tokenizer, tmp_path) -> None:
    settings = saved(tmp_path, make_model(context=256), tokenizer) | {"chat_template": CHATML}
    result = run_stage("sft", settings, context_for(tmp_path))
    assert result.metrics["ends_learned_share"] == 1.0
    assert all(gate.passed for gate in result.gates)
    config = json.loads((tmp_path / "x" / "model" / "generation_config.json").read_text(encoding="utf-8"))
    assert config["eos_token_id"] == tokenizer.convert_tokens_to_ids("<|end|>")


def test_a_template_without_an_end_token_fails_the_gate(make_model, tokenizer, tmp_path) -> None:
    """Nearly every answer ends in a full stop, which must not be taken for the end token."""
    settings = saved(tmp_path, make_model(context=256), tokenizer) | {"chat_template": CHATML.replace("<|end|>", "")}
    result = run_stage("sft", settings, context_for(tmp_path))
    assert {gate.name: gate.passed for gate in result.gates}["end-is-learned"] is False


@pytest.mark.parametrize(
    ("pad", "said_so"),
    [
        (None, "pad token was missing; it is now <|pad|> (id 0)"),
        ("<|end|>", "pad token was the end token; it is now <|pad|> (id 0)"),
    ],
)
def test_pad_gets_a_token_of_its_own(pad, said_so, make_model, tokenizer, ctx) -> None:
    import copy

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = pad
    model = make_model()
    models.mend_pad(model, tokenizer, ctx)
    assert [event["text"] for event in ctx.events] == [said_so]
    assert tokenizer.pad_token_id == model.config.pad_token_id == 0 != tokenizer.eos_token_id


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_a_context_wider_than_the_model_is_refused(kind, make_model, tokenizer, tmp_path) -> None:
    settings = saved(tmp_path, make_model(context=64), tokenizer) | {"context": 65}
    with pytest.raises(StageError) as error:
        run_stage(kind, settings, context_for(tmp_path))
    assert str(error.value) == "context is 65 tokens, but the model sees 64 at most"
