"""Benchmark tasks: likelihoods against one pair at a time, the figures of each kind, and lm-eval on the same rows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmpipe.context import Context
from llmpipe.errors import DataError, StageError
from llmpipe.evaluation.likelihood import Pair, encoded, log_likelihoods, rolling
from llmpipe.evaluation.tasks import Outcome, Subject, examined
from llmpipe.stages.evaluate import Settings
from llmpipe.summary import score_rows
from llmpipe.training import models
from tests.stages.conftest import SMALL
from tests.stages.tiny import context_for, run_stage

WINDOW = 64
MANY = {
    "choices": [
        {"query": f"Where does the {animal} sleep?\n", "choices": ["in a bed", "on the röof, où", "n"], "gold": n % 3}
        for n, animal in enumerate(("duck", "fox", "cat", "bear with a very long name that fills all of the window"))
    ],
    "continuation": [
        {"context": f"The {thing} is", "continuation": end} for thing in "abc" for end in ("red", "on it")
    ],
    "exact_match": [{"question": f"What is {n} and 1?", "answer": str(n + 1)} for n in range(4)],
    "text": [{"text": "A duck found a shoe.  It was  red. " * n} for n in (1, 2, 7)],
}


@pytest.fixture
def subject(make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast) -> Subject:
    """An untrained model, drawn wide enough that its choices differ."""
    model = make_model(context=WINDOW).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8 if weight.dim() > 1 else 1)
    return Subject("base", model, tokenizer, WINDOW, add_bos=True)


def written(folder: Path, kind: str, rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Write rows to a file; returns it as a source."""
    path = folder / f"{kind}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows or MANY[kind]), encoding="utf-8")
    return {"path": str(path)}


def came_to(subject: Subject, ctx: Context, *tasks: dict[str, Any]) -> Outcome:
    settings = Settings.model_validate({"models": ["base"], "tasks": list(tasks)})
    return examined(settings.tasks or [], subject, ctx)


def alone(model: PreTrainedModel, pair: Pair) -> tuple[float, bool]:
    """Score a pair by itself, with all logits."""
    before, after = pair
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([[*before, *after]])).logits[0].log_softmax(-1)[len(before) - 1 : -1]
    targets = torch.tensor(after)
    return float(log_probs.gather(1, targets[:, None]).sum()), bool((log_probs.argmax(-1) == targets).all())


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_likelihoods_are_those_of_each_pair_alone(make_model: Callable[..., PreTrainedModel], arch: str) -> None:
    model = make_model(arch, context=WINDOW) if arch == "llama" else gpt2(make_model)
    drawn = torch.Generator().manual_seed(0)
    lengths = [(1, 1), (9, 3), (2, 7), (9, 3), (40, 24), (1, 30), (5, 1)]
    pairs = [
        tuple(torch.randint(300, (size,), generator=drawn).tolist() for size in both) for both in lengths
    ]  # fmt: skip
    greedy = int(model(input_ids=torch.tensor([pairs[0][0]])).logits[0, -1].argmax())
    pairs = [(pairs[0][0], [greedy]), *pairs]
    wanted = [alone(model, pair) for pair in pairs]
    assert wanted[0][1] and not wanted[4][1]
    for batch_tokens in (1, 50, 4096):
        found = log_likelihoods(model, pairs, window=WINDOW, batch_tokens=batch_tokens)
        assert [one.nats for one in found] == pytest.approx([nats for nats, _ in wanted], abs=1e-4)
        assert [one.is_greedy for one in found] == [is_greedy for _, is_greedy in wanted]


SLIDING = {"sliding_window": 8, "num_key_value_heads": 2}


@pytest.mark.parametrize(("arch", "config"), [("llama", {}), ("gpt2", {}), ("mistral", SLIDING)])
def test_choices_share_what_the_model_makes_of_their_question(
    make_model: Callable[..., PreTrainedModel], arch: str, config: dict[str, Any]
) -> None:
    """Three questions of like length: looked at once each, whatever the number of their choices."""
    model = gpt2(make_model) if arch == "gpt2" else make_model(arch, context=WINDOW, **config).eval()
    drawn = torch.Generator().manual_seed(0)
    questions = [torch.randint(300, (size,), generator=drawn).tolist() for size in (20, 20, 21)]
    pairs = [(before, [*range(n, 2 * n + 1)]) for before in questions for n in (1, 4, 2, 7)]
    wanted = [alone(model, pair) for pair in pairs]
    seen: list[int] = []
    count = model.get_input_embeddings().register_forward_hook(lambda _, given, __: seen.append(given[0].numel()))
    found = log_likelihoods(model, pairs, window=WINDOW)
    assert [one.nats for one in found] == pytest.approx([nats for nats, _ in wanted], abs=1e-4)
    assert [one.is_greedy for one in found] == [is_greedy for _, is_greedy in wanted]
    # beginnings of 19 tokens, then each choice with what is left of its question, up to the longest: 2 + 8 - 1
    assert seen == [3 * 19, 12 * 9]
    count.remove()
    in_pieces = log_likelihoods(model, pairs, window=WINDOW, batch_tokens=80)  # a batch ends within a question
    assert [one.nats for one in in_pieces] == pytest.approx([nats for nats, _ in wanted], abs=1e-4)


def test_a_recurrent_state_is_not_shared(make_model: Callable[..., PreTrainedModel]) -> None:
    model = make_model("mamba", context=WINDOW, hidden_size=32, state_size=4, num_hidden_layers=2).eval()
    pairs: list[Pair] = [([5, 6, 7, 8], [9, n]) for n in range(3)]
    found = log_likelihoods(model, pairs, window=WINDOW)
    assert [one.nats for one in found] == pytest.approx([alone(model, pair)[0] for pair in pairs], abs=1e-4)


def gpt2(make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return make_model("gpt2", context=WINDOW, n_embd=32, n_layer=2, n_head=2).eval()


def test_what_is_too_long_is_cut_on_the_left(subject: Subject) -> None:
    long: Pair = (list(range(100, 200)), [7, 8, 9])
    (found,) = log_likelihoods(subject.model, [long], window=WINDOW)
    assert found.nats == pytest.approx(alone(subject.model, (long[0][-WINDOW + 2 :], long[1]))[0], abs=1e-4)


def test_spaces_belong_to_what_follows(tokenizer: PreTrainedTokenizerFast) -> None:
    assert encoded(tokenizer, "The cat ", "sat") == encoded(tokenizer, "The cat", " sat")
    before, after = encoded(tokenizer, "The cat", " sat")
    assert tokenizer.decode(before) == "<|bos|>The cat" and tokenizer.decode(after) == " sat"
    assert encoded(tokenizer, "", "sat")[0] == encoded(tokenizer, "  ", "sat")[0] == [tokenizer.bos_token_id]
    assert encoded(tokenizer, "<|bos|>The cat", " sat") == (before, after)


@pytest.mark.parametrize("tokens", [1, 4, 5, 8, 9, 21])
@pytest.mark.parametrize("prefix", [None, 99])
def test_rolling_scores_each_token_once(tokens: int, prefix: int | None) -> None:
    text = list(range(tokens))
    pairs = list(rolling(text, prefix=prefix, window=4))
    assert [token for _, after in pairs for token in after] == (text if prefix is not None else text[1:])
    assert all(before and len(before) + len(after) <= 5 for before, after in pairs)
    assert all(len(before) + len(after) == 5 for before, after in pairs[1:])
    whole = text if prefix is None else [prefix, *text]
    assert all(
        [*before, *after] == whole[whole.index(before[0]) :][: len(before) + len(after)] for before, after in pairs
    )


def test_figures_of_choices(subject: Subject, ctx: Context, tmp_path: Path) -> None:
    found = came_to(subject, ctx, {"choices": written(tmp_path, "choices"), "name": "beds", "prompt": "{query}Answer:"})
    assert set(found.figures) == {
        *("beds.acc", "beds.acc_stderr", "beds.acc_interval", "beds.rows"),
        *("beds.acc_norm", "beds.acc_norm_stderr", "beds.acc_norm_interval"),
    }
    for row, asked in zip(found.rows, MANY["choices"], strict=True):
        pairs = [encoded(subject.tokenizer, f"{asked['query']}Answer:", f" {choice}") for choice in asked["choices"]]
        cut = [(before[-(WINDOW + 1 - len(after)) :], after) for before, after in pairs]
        nats = [alone(subject.model, pair)[0] for pair in cut]
        assert row["log_likelihoods"] == pytest.approx(nats, abs=1e-3)
        per_byte = [one / len(choice.encode()) for one, choice in zip(nats, asked["choices"], strict=True)]
        assert row["acc"] == (nats.index(max(nats)) == asked["gold"])
        assert row["acc_norm"] == (per_byte.index(max(per_byte)) == asked["gold"])
    low, high = found.figures["beds.acc_interval"]
    right = [row["acc"] for row in found.rows]
    assert low < found.figures["beds.acc"] == sum(right) / 4 < high
    assert [row["where"] for row in found.rows] == [f"{tmp_path}/choices.jsonl:{line}" for line in range(1, 5)]


def test_the_right_choice_may_be_named_by_its_text(subject: Subject, ctx: Context, tmp_path: Path) -> None:
    rows = [{**row, "gold": row["choices"][row["gold"]]} for row in MANY["choices"]]
    by_text = came_to(subject, ctx, {"choices": written(tmp_path, "choices", rows)})
    assert by_text == came_to(subject, ctx, {"choices": written(tmp_path, "choices")})


def test_figures_of_how_a_text_goes_on(subject: Subject, ctx: Context, tmp_path: Path) -> None:
    found = came_to(subject, ctx, {"continuation": written(tmp_path, "continuation")})
    wanted = [
        alone(subject.model, encoded(subject.tokenizer, row["context"], f" {row['continuation']}"))
        for row in MANY["continuation"]
    ]
    assert [row["log_likelihood"] for row in found.rows] == pytest.approx([nats for nats, _ in wanted], abs=1e-3)
    assert [row["acc"] for row in found.rows] == [is_greedy for _, is_greedy in wanted]
    perplexity = math.exp(-fmean(nats for nats, _ in wanted))
    assert found.figures["continuation.perplexity"] == pytest.approx(perplexity, rel=1e-3)


def exact(folder: Path, rows: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    return {"exact_match": written(folder, "exact_match", rows), "extract": "text", "max_new_tokens": 8} | options


def told(subject: Subject, ctx: Context, folder: Path, **options: Any) -> list[dict[str, Any]]:
    """Return rows of which every other one has for its answer what the model says."""
    said = came_to(subject, ctx, exact(folder, MANY["exact_match"], **options)).rows
    rows = zip(MANY["exact_match"], said, strict=True)
    return [row | ({"answer": one["answer"]} if n % 2 else {}) for n, (row, one) in enumerate(rows)]


def test_exact_match_ends_an_answer_where_it_is_told(subject: Subject, ctx: Context, tmp_path: Path) -> None:
    whole = came_to(subject, ctx, exact(tmp_path, MANY["exact_match"])).rows
    letter = next(letter for letter in whole[1]["answer"][1:] if not any(row["answer"][0] == letter for row in whole))
    rows = told(subject, ctx, tmp_path, until=[letter, "never"])
    found = came_to(subject, ctx, exact(tmp_path, rows, until=[letter, "never"]))
    assert [row["answer"] for row in found.rows] == [row["answer"].partition(letter)[0].strip() for row in whole]
    assert [row["exact_match"] for row in found.rows] == [False, True] * 2
    assert found.figures["exact_match.exact_match"] == 0.5
    assert found.figures["exact_match.exact_match_stderr"] == pytest.approx(math.sqrt(0.25 / 3))


def test_numbers_are_compared_as_numbers(
    subject: Subject, ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"Question: 0\nAnswer:": "So 4 + 4 = 8. #### 1,000.00", "Question: 1\nAnswer:": "it is 7, no 8"}
    monkeypatch.setattr("llmpipe.evaluation.tasks.answers", lambda model, tokenizer, asked, **_: map(said.get, asked))
    rows = [{"question": 0, "answer": "8\n#### 1000"}, {"question": 1, "answer": 7}]
    found = came_to(subject, ctx, {"exact_match": written(tmp_path, "exact_match", rows)})
    assert [row["exact_match"] for row in found.rows] == [True, False]
    rows[1]["answer"] = "seven"
    with pytest.raises(DataError) as error:
        came_to(subject, ctx, {"exact_match": written(tmp_path, "exact_match", rows)})
    assert str(error.value) == f"{tmp_path}/exact_match.jsonl:2: there is no number in the answer"
    assert error.value.hint == "extract: text"


def test_figures_of_a_text(subject: Subject, ctx: Context, tmp_path: Path) -> None:
    found = came_to(subject, ctx, {"text": written(tmp_path, "text"), "name": "ducks"}).figures
    nats, tokens = 0.0, 0
    for row in MANY["text"]:
        ids = subject.tokenizer(row["text"])["input_ids"]  # with the begin token
        nats += sum(alone(subject.model, pair)[0] for pair in rolling(ids[1:], prefix=ids[0], window=WINDOW))
        tokens += len(ids) - 1
    size = sum(len(row["text"]) for row in MANY["text"])
    words = sum(len(re.split(r"\s+", row["text"])) for row in MANY["text"])
    assert found["ducks.tokens"] == tokens > WINDOW
    assert found["ducks.perplexity"] == pytest.approx(math.exp(-nats / tokens), rel=1e-4)
    assert found["ducks.word_perplexity"] == pytest.approx(math.exp(min(700, -nats / words)), rel=1e-3)
    assert found["ducks.bits_per_byte"] == pytest.approx(-nats / size / math.log(2), rel=1e-4)


def test_shots_stand_before_the_prompt(subject: Subject, ctx: Context, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    rows = [{"query": "A:", "choices": ["x", "y"], "gold": 1}, {"query": "B:", "choices": ["x", "y"], "gold": 0}]
    examples = written(tmp_path / "more", "choices", rows)
    task = {"choices": written(tmp_path, "choices"), "limit": 3}
    shown = came_to(subject, ctx, task | {"shots": 2, "examples": examples})
    assert shown == came_to(subject, ctx, task | {"prompt": "A: y\n\nB: x\n\n{query}"})
    assert shown != came_to(subject, ctx, task) and len(shown.rows) == 3
    with pytest.raises(DataError) as error:
        came_to(subject, ctx, task | {"shots": 3, "examples": examples})
    assert str(error.value) == "choices: there are 2 examples for 3 shots"


def test_bad_rows_are_named(subject: Subject, ctx: Context, tmp_path: Path) -> None:
    good = MANY["choices"][0]
    rows = [
        good | {"gold": 3},
        good | {"gold": "elsewhere"},
        good | {"gold": True, "choices": ["one"]},
        good | {"choices": ["one", " "]},
        good | {"choices": "one"},
        {"query": "a", "choices": ["one", "two"]},
        good | {"query": ["a"]},
    ]
    with pytest.raises(DataError) as error:
        came_to(subject, ctx, {"choices": written(tmp_path, "choices", rows)})
    at = f"{tmp_path}/choices.jsonl"
    assert str(error.value).splitlines() == [
        f"{at}:1: gold is 3; the 3 choices are numbered from 0",
        f"{at}:2: gold is 'elsewhere', which is none of the choices; "
        "it must be the number of the right one, from 0, or its text",
        f"{at}:3: choices has 1; there must be two or more to choose from",
        f"{at}:3: gold is true or false; it must be the number of the right one, from 0, or its text",
        f"{at}:4: choices 2 is empty",
        f"{at}:5: choices is text, not a list of texts",
        f"{at}:6: the column 'gold' is missing",
        f"{at}:7: query is a list, not text",
    ]


def test_an_answer_that_cannot_be_scored_is_named(subject: Subject, ctx: Context, tmp_path: Path) -> None:
    rows = [{"context": "a", "continuation": "long " * 100}, {"context": "a", "continuation": "b"}]
    with pytest.raises(DataError) as error:
        came_to(subject, ctx, {"continuation": written(tmp_path, "continuation", rows)})
    tokens = len(encoded(subject.tokenizer, "a", " " + "long " * 100)[1])
    where = f"{tmp_path}/continuation.jsonl:1"
    assert str(error.value) == f"{where}: an answer has {tokens} tokens, but the model sees 64 at most"


def test_a_masked_model_is_not_asked(subject: Subject, ctx: Context) -> None:
    model = models.build("bert", SMALL, tokenizer=subject.tokenizer, context=WINDOW, kind="masked-lm")
    model.config.architectures = ["BertForMaskedLM"]  # as a saved one has it
    with pytest.raises(StageError) as error:
        came_to(replace(subject, model=model), ctx, {"text": {"path": "never-read.txt"}})
    assert str(error.value) == "tasks are for models that guess the next token, and base is a masked model"


def test_what_the_stage_leaves(subject: Subject, tmp_path: Path) -> None:
    models.save(subject.model, subject.tokenizer, tmp_path / "base")
    tasks = [{"choices": written(tmp_path, "choices")}, {"text": written(tmp_path, "text"), "limit": 1}]
    result = run_stage("eval", {"models": [{"path": str(tmp_path / "base")}], "tasks": tasks}, context_for(tmp_path))
    assert result.outputs == ["scores.json", "tasks.jsonl"]
    assert 0 <= result.metrics["base.choices.acc"] <= 1 and "base.perplexity" not in result.metrics
    lines = [json.loads(line) for line in (tmp_path / "x" / "tasks.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["model"], line["task"]) for line in lines] == [("base", "choices")] * 4 + [("base", "text")]
    scores = json.loads((tmp_path / "x" / "scores.json").read_text(encoding="utf-8"))
    acc, error = result.metrics["base.choices.acc"], result.metrics["base.choices.acc_stderr"]
    shown = dict(score_rows(scores["models"]))
    assert shown["choices: accuracy"] == f"{acc:.2f} ± {error:.2f}".replace("0.", ".")
    assert list(shown) == [
        *("choices: accuracy", "choices: accuracy, per byte", "text: perplexity", "text: word perplexity"),
        *("text: byte perplexity", "text: bits per byte"),
    ]
