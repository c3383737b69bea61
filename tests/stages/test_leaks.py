"""Packed documents do not see each other, and the loss falls where it should: through the very batches that train."""

from __future__ import annotations

import pytest
import torch

from llmpipe.data.formats import Conversation
from llmpipe.training import chat
from llmpipe.training.packing import IGNORED, PackedTokens, positions_from, write_tokens

CONFIG = {"llama": {}, "gpt2": {}, "qwen3": {"head_dim": 16, "num_key_value_heads": 2}}


def packed(tmp_path, documents, block):
    """Write documents as pretrain does, and return the data set that it trains on."""
    count, _ = write_tokens(iter(documents), tmp_path / "t.tokens", vocab_size=300)
    return PackedTokens(tmp_path / "t.tokens", block=block, vocab_size=300, bos=1, eos=2, documents=count)


def documents(changed: bool) -> list[list[int]]:
    first = [99] * 8 if changed else [*range(20, 28)]
    return [[1, *first, 2], [1, *range(40, 52), 2], [1, *range(60, 66), 2]]


@pytest.mark.parametrize("arch", CONFIG)
def test_a_neighbour_changes_nothing(arch, make_model, tmp_path) -> None:
    model = make_model(arch, **CONFIG[arch]).eval()
    model.config.use_cache = False
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    one = packed(tmp_path / "a", documents(False), 32).__getitems__([0])
    two = packed(tmp_path / "b", documents(True), 32).__getitems__([0])
    assert not torch.equal(one["input_ids"], two["input_ids"])
    with torch.no_grad():
        logits = [model(**batch).logits[0, 10:24] for batch in (one, two)]
        alone = model(input_ids=one["input_ids"][:, 10:24]).logits[0]
        leaking = [model(batch["input_ids"], attention_mask=torch.ones(1, 32)).logits[0, 10:24] for batch in (one, two)]
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    assert torch.allclose(logits[0], alone, atol=1e-5)
    assert not torch.allclose(leaking[0], leaking[1], atol=1e-5)  # so the assertions above can fail


def test_positions_restart_and_first_tokens_are_not_asked_for(tmp_path) -> None:
    batch = packed(tmp_path, documents(False), 16).__getitems__([0, 1])
    assert batch["position_ids"][0].tolist() == [*range(10), *range(6)]
    assert batch["position_ids"][1].tolist() == [*range(8), *range(8)]  # a document that was cut begins anew
    assert batch["labels"][0, 10] == IGNORED
    asked = batch["labels"] != IGNORED
    assert torch.equal(asked, batch["position_ids"] > 0)
    assert positions_from(torch.tensor([[False, True, False, True]])).tolist() == [[0, 0, 1, 0]]


def test_a_lone_document_needs_no_positions(tmp_path) -> None:
    assert "position_ids" not in packed(tmp_path, [[1, *range(20, 60), 2]], 16).__getitems__([0])


@pytest.mark.parametrize("arch", CONFIG)
def test_packed_conversations_equal_themselves_alone(arch, make_model, tokenizer) -> None:
    model = make_model(arch, **CONFIG[arch]).eval()
    model.config.use_cache = False
    examples = [
        chat.encode(conversation(f"Say {word}.", f"I say {word}."), tokenizer) for word in ("duck", "shoe", "kite")
    ]
    collate = chat.PackCollator(tokenizer.pad_token_id)

    def nats(groups: list[list[int]]) -> float:
        columns = chat.rows_of(examples, groups)
        batch = collate([{key: value[row] for key, value in columns.items()} for row in range(len(groups))])
        count = int((batch["labels"][:, 1:] != IGNORED).sum())
        with torch.no_grad():
            return float(model(**batch, use_cache=False).loss) * count

    assert nats([[0, 1, 2]]) == pytest.approx(nats([[0], [1], [2]]), abs=1e-3)
    assert nats([[2, 0], [1]]) == pytest.approx(nats([[0], [1], [2]]), abs=1e-3)


def conversation(question: str, answer: str, **more: object) -> Conversation:
    turns = [
        {"role": "user", "content": question, "train": False},
        {"role": "assistant", "content": answer, "train": True},
    ]
    return Conversation(turns, **more)  # type: ignore[arg-type]


CHATML = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


@pytest.mark.parametrize(
    ("template", "end"), [(None, "<|end|>"), (chat.PLAIN_TEMPLATE, "<|end|>"), (CHATML, "<|im_end|>")]
)
def test_the_loss_falls_on_the_answer_and_its_end(template, end, tokenizer) -> None:
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<|bos|>", eos_token="<|end|>")
    from llmpipe.stages.tokenizer import CHAT_TEMPLATE

    tokenizer.chat_template = template or CHAT_TEMPLATE
    turns = [
        {"role": "system", "content": "Be kind.", "train": False},
        {"role": "user", "content": "Hi", "train": False},
        {"role": "assistant", "content": "Hello you", "train": True},
        {"role": "user", "content": "Bye", "train": False},
        {"role": "assistant", "content": "Never mind", "train": False},
        {"role": "user", "content": "Ok", "train": False},
        {"role": "assistant", "content": "So long", "train": True},
    ]
    example = chat.encode(Conversation(turns), tokenizer)  # type: ignore[arg-type]
    runs, previous = [], False
    for token, learned in zip(example.ids, example.learned, strict=True):
        if learned and not previous:
            runs.append([])
        if learned:
            runs[-1].append(token)
        previous = learned
    assert [tokenizer.decode(run).lstrip() for run in runs] == [f"Hello you{end}", f"So long{end}"]


REWRITES = """\
{% for message in messages %}{% if message['role'] == 'assistant' and not loop.last %}A: (gone) \
{% elif message['role'] == 'assistant' %}A: {{ message['content'] }}<|end|>{% else %}U: {{ message['content'] }} \
{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"""


def test_a_template_that_rewrites_earlier_turns_is_refused_without_marks(tokenizer) -> None:
    from llmpipe.errors import DataError

    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>")
    tokenizer.chat_template = REWRITES
    two = conversation("a", "b").messages + conversation("c", "d").messages
    with pytest.raises(DataError, match="rewrites earlier turns and does not mark"):
        chat.encode(Conversation(two), tokenizer)
