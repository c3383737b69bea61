"""A local model answers the same alone, among others, and with what it kept of earlier answers."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from llmpipe.data.formats import Conversation
from llmpipe.errors import TalkError, UsageError
from llmpipe.evaluation.generate import Sampling as Asked
from llmpipe.evaluation.generate import told
from llmpipe.talk.engine import Piece, Sampling
from llmpipe.talk.local import LocalEngine
from llmpipe.talk.opening import opened
from llmpipe.talk.text import BROKEN, Written
from llmpipe.training.chat import PLAIN_TEMPLATE, render
from tests.stages.tiny import run_recipe

RECIPE = """\
name: tiny
stages:
  tok: {kind: tokenizer, data: {builtin: storyworld, rows: 100}, vocab_size: 300}
  base:
    kind: pretrain
    data: {builtin: storyworld, rows: 40}
    model: {arch: llama, config: {num_hidden_layers: 2, hidden_size: 16, intermediate_size: 16, num_attention_heads: 2}}
    context: 64
    trainer: {per_device_train_batch_size: 4, max_steps: 1}
"""
GREEDY = Sampling(max_new_tokens=12, temperature=0)
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 1},
    "gpt2": {"n_inner": 16},
    "mistral": {"num_key_value_heads": 1, "sliding_window": 8},
    "mamba": {"state_size": 4, "initializer_range": 2.0},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run directory."""
    return run_recipe(tmp_path_factory.mktemp("tiny"), RECIPE)


@pytest.fixture(scope="module")
def tokenizer(run: Path) -> Any:
    """The run's tokenizer, with a template."""
    found = AutoTokenizer.from_pretrained(run / "tok" / "tokenizer")
    found.chat_template = PLAIN_TEMPLATE
    return found


def model_of(arch: str, tokenizer: Any) -> Any:
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape = {"vocab_size": len(tokenizer), "max_position_embeddings": 200, "initializer_range": 0.5}
    config = AutoConfig.for_model(arch, **sizes | shape | SHAPES[arch])
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


@pytest.fixture
def engine(tokenizer: Any) -> Iterator[LocalEngine]:
    """An engine whose cache is empty."""
    found = LocalEngine(model_of("llama", tokenizer), tokenizer, name="tiny")
    yield found
    found.close()


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def text_of(pieces: Any) -> str:
    return "".join(piece.text for piece in pieces)


def usage_of(pieces: list[Piece]) -> Any:
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1) and pieces[-1].usage
    return pieces[-1].usage


def whole(text: str) -> str:
    """Return the whole characters: half of one at the end is held back, and space before it is not at an end."""
    return re.sub(rf"[\s{BROKEN}]+", "", text)


@pytest.mark.parametrize("arch", SHAPES)
def test_answers_are_those_of_generate_alone_and_among_others(arch: str, tokenizer: Any) -> None:
    model = model_of(arch, tokenizer)
    asked = [f"{'a story of ' * turn}{word}" for turn, word in enumerate(("a duck", "cats", "one", "Ida", "it", "X"))]
    wanted = told(model, tokenizer, asked, Asked(12, 0.0, 1), chat=True)
    engine = LocalEngine(model, tokenizer, name=arch)
    assert (engine.decoder.most_rows > 1) == (arch in ("llama", "gpt2"))
    alone = [text_of(engine.chat([user(text)], GREEDY)) for text in asked]
    together: dict[str, str] = {}

    def ask(text: str) -> None:
        together[text] = text_of(engine.chat([user(text)], GREEDY))

    threads = [threading.Thread(target=ask, args=(text,)) for text in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    assert alone == [together[text] for text in asked]
    assert [whole(text) for text in alone] == [whole(one.text) for one in wanted]
    assert len({*alone}) > 2  # else any mask would do


def talk(engine: LocalEngine, turns: int = 5) -> tuple[list[str], list[int]]:
    """Talk for some turns, one of them broken off and one written anew; returns answers and cached tokens."""
    said: list[dict[str, str]] = []
    answers, cached = [], []
    for turn in range(turns):
        said.append(user(f"what did duck {turn} find?"))
        pieces = engine.chat(said, GREEDY)
        if turn == 2:
            heard = next(piece.text for piece in pieces if piece.text)
            pieces.close()  # type: ignore[attr-defined]
        else:
            found = list(pieces)
            heard = text_of(found)
            cached.append(usage_of(found).cached)
        answers.append(heard)
        said.append({"role": "assistant", "content": heard})
        if turn == 3:
            said[2:] = [user("no, a cat"), {"role": "assistant", "content": "so a cat"}]
    return answers, cached


def test_a_kept_cache_changes_no_token(tokenizer: Any) -> None:
    found = []
    for keep in (32, 0):
        engine = LocalEngine(model_of("llama", tokenizer), tokenizer, name="tiny", keep=keep)
        found.append(talk(engine))
        engine.close()
    (with_cache, cached), (without, nothing) = found
    assert with_cache == without
    assert cached[0] == 0 and all(cached[1:]) and not any(nothing)


def test_a_next_turn_reads_only_what_is_new(engine: LocalEngine) -> None:
    first = [user("what did the duck find under the old tree?")]
    answer = text_of(engine.chat(first, GREEDY))
    then = [*first, {"role": "assistant", "content": answer}, user("and then?")]
    assert usage_of(list(engine.chat(then, GREEDY))).cached >= engine.count(first)


def test_what_is_kept_has_a_bound(engine: LocalEngine) -> None:
    kept = engine.decoder.kept
    kept.most = 3
    for number in range(6):
        text_of(engine.complete(f"{number} ducks", GREEDY))
    assert len(kept.entries) <= 3
    kept.most_bytes = kept.nbytes // 2
    text_of(engine.complete("a cat", GREEDY))
    text_of(engine.complete("a dog", GREEDY))
    assert 0 < len(kept.entries) < 3 and kept.nbytes <= kept.most_bytes


def test_seeds(engine: LocalEngine) -> None:
    how = {seed: Sampling(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=seed) for seed in (1, 2)}
    one, same, other = (text_of(engine.complete("a duck", how[seed])) for seed in (1, 1, 2))
    assert one == same != other


def test_an_answer_ends_where_the_context_does_and_says_so(engine: LocalEngine) -> None:
    engine.decoder.ends = frozenset()
    pieces = list(engine.complete("a duck " * 20, Sampling(max_new_tokens=10**6, temperature=0)))
    used = usage_of(pieces)
    assert pieces[-1].finish == "length" and used.prompt_tokens + used.answer_tokens == engine.context == 200
    short = list(engine.complete("a duck", GREEDY))
    assert short[-1].finish == "length" and usage_of(short).answer_tokens == 12


def test_an_end_token_ends_an_answer(engine: LocalEngine) -> None:
    ids = engine.tokenizer("a duck")["input_ids"]
    token = int(engine.decoder.model(torch.tensor([ids])).logits[0, -1].argmax())
    engine.decoder.ends = frozenset({token})
    (piece,) = engine.complete("a duck", GREEDY)
    assert (piece.text, piece.finish) == ("", "stop")


def test_prompts_that_do_not_fit(engine: LocalEngine) -> None:
    said = [user("duck " * 300)]
    with pytest.raises(TalkError) as caught:
        engine.chat(said, GREEDY)
    wanted = f"the prompt has {engine.count(said):,} tokens, and tiny sees 200, the answer included"
    assert (str(caught.value), caught.value.hint) == (wanted, "a shorter text, or fewer turns")


def test_stop_texts_end_an_answer_before_they_show(engine: LocalEngine) -> None:
    whole = text_of(engine.complete("a duck", GREEDY))
    stop = whole[4:7]
    pieces = list(engine.complete("a duck", Sampling(max_new_tokens=12, temperature=0, stop=("never", stop))))
    assert text_of(pieces) == whole[: whole.index(stop)] and pieces[-1].finish == "stop"


def test_text_is_whole_characters_and_all_of_them(tokenizer: Any) -> None:
    for text in ("Grüße, 世界! 🦆🦆 naïve", "no end 🦆"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        written = Written(tokenizer.decode, [])
        pieces = [written.add(token) for token in ids]
        assert "".join(pieces) + written.rest() == text and BROKEN not in "".join(pieces)
        cut = Written(tokenizer.decode, [])
        shown = "".join(cut.add(token) for token in ids[:-1]) + cut.rest()
        assert text.startswith(shown) and len(shown) >= len(text) - 2


def test_a_failure_ends_only_the_answers_under_way(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = text_of(engine.complete("a duck", GREEDY))
    pieces = engine.complete("a cat", GREEDY)
    next(pieces)
    monkeypatch.setattr(engine.decoder, "_read", lambda *_, **__: 1 / 0)
    with pytest.raises(TalkError, match="tiny failed: division by zero"):
        list(pieces)
    monkeypatch.undo()
    assert text_of(engine.complete("a duck", GREEDY)) == wanted


def test_a_closed_engine_keeps_nobody_waiting(tokenizer: Any) -> None:
    engine = LocalEngine(model_of("llama", tokenizer), tokenizer, name="tiny")
    pieces = engine.complete("a duck", Sampling(max_new_tokens=150, temperature=0))
    next(pieces)
    engine.close()
    for waiting in (pieces, engine.complete("a duck", GREEDY)):
        with pytest.raises(TalkError, match="tiny failed: the model was closed"):
            list(waiting)
    assert not engine.decoder.thread.is_alive() and not engine.decoder.kept.entries


def test_a_conversation_is_rendered_as_in_training(engine: LocalEngine) -> None:
    said = [user("one"), {"role": "assistant", "content": "two"}, user("three")]
    turns = [{**turn, "train": True} for turn in said]
    text = render(Conversation(turns), engine.tokenizer, len(turns), ask=True)
    assert engine._ids(said, ()) == engine.tokenizer(text, add_special_tokens=False)["input_ids"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "one"}]}]
    assert engine._ids(parts, ()) == engine._ids([user("one")], ())


def test_a_template_that_refuses(engine: LocalEngine) -> None:
    engine.tokenizer.chat_template, before = "{{ raise_exception('no system here') }}", engine.tokenizer.chat_template
    try:
        with pytest.raises(TalkError, match="the chat template of tiny refuses this conversation: no system here"):
            engine.count([user("one")])
    finally:
        engine.tokenizer.chat_template = before


def test_names(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run / "base" / "model"
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(folder)
    adapted.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "adapter")
    answers, names = set(), {str(run): f"{run}:base"}
    for name in (str(run), f"{run}:base", str(folder), str(tmp_path / "adapter")):
        with opened(name) as engine:
            answers.add(text_of(engine.complete("a duck", GREEDY)))
            assert (engine.name, engine.context, engine.chats) == (names.get(name, name), 64, True)
    assert len(answers) == 1
    assert f"{run}: its last model, base" in capsys.readouterr().err.replace("\n", "")


def test_models_that_do_not_talk(run: Path, tokenizer: Any, tmp_path: Path) -> None:
    shape = AutoConfig.for_model("bert", vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    for model_class in (AutoModelForMaskedLM, AutoModelForSequenceClassification):
        folder = tmp_path / model_class.__name__
        model_class.from_config(shape).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    masked, classifier = tmp_path / "AutoModelForMaskedLM", tmp_path / "AutoModelForSequenceClassification"
    mistakes = {
        str(masked): (
            f"{masked}: bert is a masked model; a causal model is needed",
            f'masked models and encoder-decoders answer no conversations: llmpipe generate {masked} "…"',
        ),
        str(classifier): (
            f"{classifier}: it is a classifier, which guesses no tokens",
            "name a stage that makes a language model, such as pretrain, sft or dpo",
        ),
        f"{run}:tok": ("stage tok makes no model: it is a tokenizer stage", "those with a model: base"),
    }
    for name, (message, hint) in mistakes.items():
        with pytest.raises((TalkError, UsageError)) as caught, opened(name):
            pass
        assert (str(caught.value), caught.value.hint) == (message, hint)


def test_what_may_begin_a_stop_text_is_held_back_until_it_does_not() -> None:
    written = Written(lambda ids: "".join(map(chr, ids)), [], ("END",))
    assert [written.add(ord(letter)) for letter in "aENbEND"] == ["a", "", "", "ENb", "", "", ""]
    assert written.is_stopped and written.rest() == ""
    cut = Written(lambda ids: "".join(map(chr, ids)), [], ("END",))
    assert [cut.add(ord(letter)) for letter in "aEN"] == ["a", "", ""] and cut.rest() == "EN"
