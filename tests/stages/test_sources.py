"""Mixes and splits: weights count, the same rows every time, and what is held out stays held out."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest

from llmpipe.data import storyworld
from llmpipe.data.sources import read_conversations, read_preferences, read_prompts, read_texts
from llmpipe.data.split import FEW_DOCUMENTS, split_by_prompt, split_texts
from llmpipe.errors import DataError, StageError
from llmpipe.settings import BuiltinSource, HubSource, PathSource


def source(**options) -> list[BuiltinSource]:
    return [BuiltinSource(builtin="storyworld", **options)]


def test_rows_are_honoured(ctx) -> None:
    assert len(list(read_texts(source(rows=37), ctx))) == 37
    assert len(list(read_conversations(source(rows=23), ctx))) == 23
    assert len(list(read_preferences(source(rows=23), ctx))) == 23
    assert len(list(read_prompts(source(rows=2000), ctx))) == 2000


def test_storyworld_asks_for_every_training_request_once(ctx) -> None:
    found = [storyworld.request_of(prompt.messages[0]["content"]) for _, prompt in read_prompts(source(), ctx)]
    assert len(found) == 432
    assert set(found) == set(storyworld.all_requests()) - storyworld.held_out_requests()


def test_storyworld_prefers_happy_endings(ctx) -> None:
    found = [pair for _, pair in read_preferences(source(), ctx)]
    assert len(found) == 2000
    for pair in found[:50]:
        request = storyworld.request_of(pair.prompt[-1]["content"])
        ends = [storyworld.judge(request, side[0]["content"]).happy for side in (pair.chosen, pair.rejected)]
        assert ends == [True, False]


def test_storyworld_told_by_a_pirate_asks_for_the_same(ctx) -> None:
    options = {"rows": 40, "style": "pirate"}
    told = [*read_texts(source(**options), ctx)]
    told += [chat.messages[-1]["content"] for _, chat in read_conversations(source(**options), ctx)]
    pairs = [pair for _, pair in read_preferences(source(**options), ctx)]
    told += [side[0]["content"] for pair in pairs for side in (pair.chosen, pair.rejected)]
    assert len(told) == 160
    assert all("Ahoy!\n" in story and story.endswith("\nArr!") for story in told)
    plain, again = (
        [one.messages for _, one in read_prompts(source(**given), ctx)] for given in ({"rows": 40}, options)
    )
    assert plain == again


@pytest.mark.parametrize(("weight", "least", "most"), [(2.0, 400, 400), (0.5, 70, 130), (2.5, 470, 530)])
def test_weights(weight, least, most, ctx) -> None:
    plain = list(read_texts(source(rows=200), ctx))
    mixed = list(read_texts(source(rows=200, weight=weight), ctx))
    assert mixed == list(read_texts(source(rows=200, weight=weight), ctx))
    assert least <= len(mixed) <= most
    assert set(mixed) <= set(plain)
    assert list(dict.fromkeys(mixed)) == [text for text in dict.fromkeys(plain) if text in set(mixed)]


def test_a_mix_is_the_sum_of_its_parts(ctx) -> None:
    mixed = Counter(read_texts([*source(rows=30), *source(rows=20, weight=2.0)], ctx))
    assert mixed.total() == 70


def test_what_is_seen_of_a_source_does_not_hang_on_the_others(ctx) -> None:
    """Nor on the time of day: the same rows in the same order, or a resumed run would learn from others."""
    ours = source(rows=50, weight=1.5)
    alone = list(read_texts(ours, ctx))
    mixes = [[*ours, *source(rows=9, weight=w, style="pirate")] for w in (0.5, 1.0, 2.5)]
    for mix in mixes:
        first, again = list(read_texts(mix, ctx)), list(read_texts(mix, ctx))
        assert first == again and first[: len(alone)] == alone


def test_the_held_out_texts_of_a_mix_come_from_all_sources_from_the_start() -> None:
    """Of a long list only the beginning is measured: it must not be the first source alone."""
    documents = [f"{name} {number}" for name, count in (("a", 3000), ("b", 1000)) for number in range(count)]
    splits = {}
    for mixed in (False, True):
        train, held_out = split_texts(documents, share=0.2, mixed=mixed)
        kept = list(train)
        assert [text for text in documents if text not in set(held_out)] == kept
        splits[mixed] = held_out
    assert sorted(splits[False]) == sorted(splits[True])
    share = {mixed: Counter(text[0] for text in held_out[:200])["b"] / 200 for mixed, held_out in splits.items()}
    assert share[False] == 0 and 0.15 < share[True] < 0.35
    again, held_out = split_texts(reversed(documents), share=0.2, mixed=True)
    list(again)
    assert held_out == splits[True]


def test_the_tails_of_a_mix_of_few_documents_are_put_in_order_too() -> None:
    train, held_out = split_texts([f"{number}" + "x" * 99 + str(number) for number in range(9)], share=0.01, mixed=True)
    list(train)
    assert held_out != sorted(held_out) == [str(number) for number in range(9)]


def test_a_capped_run_sees_every_source(tmp_path, make_model, tokenizer, ctx) -> None:
    """The corpus is one source after the other, and is read in random order: its first rows are of both."""
    from transformers import TrainingArguments

    from llmpipe.training.objectives import PretrainTrainer
    from llmpipe.training.packing import PackedTokens, encode, identity, write_tokens

    mix = [*source(rows=150), *source(rows=50, style="pirate", weight=3.0)]
    documents, _ = write_tokens(encode(read_texts(mix, ctx), tokenizer), tmp_path / "t.tokens", vocab_size=300)
    options = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "documents": documents}
    rows = PackedTokens(tmp_path / "t.tokens", block=64, vocab_size=300, **options)
    args = TrainingArguments(output_dir=str(tmp_path), seed=1, report_to="none", remove_unused_columns=False)
    trainer = PretrainTrainer(model=make_model(), args=args, train_dataset=rows, data_collator=identity)
    batches = islice(trainer.get_train_dataloader(), 5)
    seen = [tokenizer.decode(row) for batch in batches for row in batch["input_ids"]]
    pirates = sum("!" in text for text in seen)
    assert len(seen) == 40 and 0.25 < pirates / len(seen) < 0.85


def test_the_split_stays_when_rows_are_added() -> None:
    documents = list(dict.fromkeys(islice(storyworld.corpus(stories=300, seed=1), 300)))
    splits = []
    for count in (100, 250):
        train, held_out = split_texts(documents[:count], share=0.2)
        splits.append((set(train), set(held_out)))
    assert splits[0][0] <= splits[1][0] and splits[0][1] <= splits[1][1]
    assert not splits[1][0] & splits[1][1]
    assert 0.1 < len(splits[1][1]) / 250 < 0.3


def test_few_documents_give_their_tails() -> None:
    documents = [f"{number:02}" + "x" * 98 for number in range(FEW_DOCUMENTS - 1)]
    train, held_out = split_texts(documents, share=0.1)
    kept = list(train)
    assert [head + tail for head, tail in zip(kept, held_out, strict=True)] == documents
    assert {len(tail) for tail in held_out} == {10}


@pytest.mark.parametrize("count", [3, 60])
def test_a_share_of_zero_holds_nothing_out(count) -> None:
    documents = [f"text {number}" for number in range(count)]
    train, held_out = split_texts(documents, share=0)
    assert list(train) == documents and held_out == []


def file_source(tmp_path, name, rows, **options) -> list[PathSource]:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [PathSource(path=str(path), **options)]


def test_one_prompt_is_on_one_side_in_every_stage(tmp_path, ctx) -> None:
    asked = [f"question {number}" for number in range(100)]
    pairs = [{"ask": ask, "chosen": "a", "rejected": "b", "id": n} for n, ask in enumerate(asked * 2)]
    chats = [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": "a"}]} for a in asked]
    columns = {"prompt": "ask"}
    sides = [
        split_by_prompt(read_conversations(file_source(tmp_path, "c.jsonl", chats), ctx), share=0.3),
        split_by_prompt(read_preferences(file_source(tmp_path, "p.jsonl", pairs, columns=columns), ctx), share=0.3),
        split_by_prompt(read_prompts(file_source(tmp_path, "p.jsonl", pairs, columns=columns), ctx), share=0.3),
    ]
    assert [len(train) + len(held_out) for train, held_out in sides] == [100, 200, 100]
    for train, held_out in sides:
        assert {item.asked for _, item in train} == {item.asked for _, item in sides[0][0]}
        assert {item.asked for _, item in held_out} == {item.asked for _, item in sides[0][1]}
        assert 10 < len({item.asked for _, item in held_out}) < 50


def test_pairs_without_a_prompt_are_split_by_their_answer(tmp_path, ctx) -> None:
    pairs = [{"chosen": f"good {number}", "rejected": "bad"} for number in range(100)]
    train, held_out = split_by_prompt(read_preferences(file_source(tmp_path, "p.jsonl", pairs), ctx), share=0.3)
    assert 10 < len(held_out) < 50 and len(train) + len(held_out) == 100


def test_a_format_is_passed_on(tmp_path, ctx) -> None:
    rows = [{"prompt": "q", "question": "r"}]
    found = read_prompts(file_source(tmp_path, "p.jsonl", rows, format="question"), ctx)
    assert [prompt.text for _, prompt in found] == ["r"]


def test_a_split_that_leaves_nothing_to_train_on() -> None:
    with pytest.raises(DataError, match="no row is left to train on"):
        split_by_prompt([], share=0.5)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_the_hub_is_read_whole_or_as_it_comes(streaming, tmp_path, ctx, monkeypatch) -> None:
    """A folder stands in for the hub: datasets reads `me/set` from the working directory where there is one."""
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llmpipe.data.hub._newest", lambda repository, kind: None)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "me" / "set").mkdir(parents=True)
    rows = [{"text": "a"}, {"text": "b\0"}, {"text": "c"}, {"text": None}, {"text": "d"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "me" / "set" / "train.jsonl").write_text(lines, encoding="utf-8")
    found = HubSource(hub="me/set", streaming=streaming, on_bad_rows="quarantine")
    assert list(read_texts([found], ctx)) == ["a", "c", "d"]
    kept = [json.loads(line) for line in (ctx.dir / "bad_rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["where"] for row in kept] == ["me/set[train]: row 2", "me/set[train]: row 4"]
    assert any((tmp_path / "cache").rglob("*.arrow")) is not streaming
    with pytest.raises(StageError, match=r"^me/set cannot be loaded: .*tset"):
        list(read_texts([HubSource(hub="me/set", split="tset", streaming=streaming)], ctx))
