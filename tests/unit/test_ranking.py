"""People rank: what is sampled, what each of them is asked, what is kept, how far they agree, what is exported."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import krippendorff
import pytest

from llmpipe.data.labelled import labelled
from llmpipe.data.preferences import preferences
from llmpipe.data.ranked import ranked
from llmpipe.data.rows import read_rows
from llmpipe.errors import TalkError, UsageError
from llmpipe.ranking import agreement, alpha, given, sampling
from llmpipe.ranking.asking import Asking
from llmpipe.ranking.export import export
from llmpipe.ranking.feedback import Told, keep_comparison, keep_thumb
from llmpipe.ranking.records import Answer, Asked, Ranking
from llmpipe.ranking.sampling import Round, Sampler, answers, missing
from llmpipe.ranking.shown import summary
from llmpipe.ranking.start import Wanted, sampled
from llmpipe.ranking.store import Store, store_of
from llmpipe.ranking.terminal import rank_here, ranks_of
from llmpipe.talk.engine import Sampling
from tests.unit.rounds import MODELS, asked, begin
from tests.unit.scripted import ScriptedEngine


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "rankings.sqlite3") as store:
        yield store


# ---- Agreement -----------------------------------------------------------------------------------

# Krippendorff (2011), page 8: four observers, twelve units; ordinal alpha is .815
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def by_unit(coders: list[list[Any]]) -> list[list[int]]:
    return [[value for value in unit if value is not None] for unit in zip(*coders, strict=True)]


def reference(coders: list[list[Any]]) -> float:
    rows = [[float("nan") if value is None else value for value in row] for row in coders]
    return float(krippendorff.alpha(reliability_data=rows, level_of_measurement="ordinal"))


def test_alpha_is_the_published_one_and_that_of_a_reference_on_random_data() -> None:
    assert alpha.ordinal(by_unit(PUBLISHED)) == pytest.approx(0.815, abs=5e-4)
    chance = random.Random(3)
    for _ in range(30):
        coders = [[chance.choice([None, -1, 0, 1, 1, 4]) for _ in range(chance.randrange(5, 40))]]
        for _ in range(chance.randrange(1, 5)):
            coders.append([value if chance.random() < 0.6 else chance.choice([None, -1, 0, 1]) for value in coders[0]])
        assert alpha.ordinal(by_unit(coders)) == pytest.approx(reference(coders), abs=1e-12)


def test_alpha_of_nothing_to_agree_about_is_none() -> None:
    assert alpha.ordinal([]) is alpha.ordinal([[1], [2]]) is alpha.ordinal([[1, 1], [1, 1]]) is None


def test_agreement_of_rankings_equals_the_reference_on_their_pairs(store: Store) -> None:
    form = begin(store, prompts=12, count=3, gold=2)
    chance = random.Random(1)
    said: dict[str, dict[int, tuple[int, ...] | None]] = {"ann": {}, "bob": {}, "cy": {}}
    tasks = {task.id: task for task in store.tasks(form.round_id)}
    for number in tasks:
        truth = [chance.randrange(1, 4) for _ in tasks[number].answers]
        for name in said:
            verdict = chance.choice(["ranked", "ranked", "ranked", "bad", "skipped"])
            own = tuple(rank if chance.random() < 0.7 else 2 for rank in truth)
            said[name][number] = {"ranked": own, "bad": (1, 1, 1), "skipped": None}[verdict]
            store.keep(Ranking(number, name, "overall", verdict, own if verdict == "ranked" else None))
    coders = []
    for ranks in said.values():
        pairs = [
            (n, i, j) for n, task in tasks.items() if task.gold is None for i in range(3) for j in range(3) if i != j
        ]
        coders.append([None if (r := ranks[n]) is None else (r[i] < r[j]) - (r[i] > r[j]) for n, i, j in pairs])
    found = agreement.agreement(tasks, store.rankings(), "overall")
    assert found == pytest.approx(reference(coders), abs=1e-12) and 0 < found < 1
    assert agreement.agreement(tasks, store.rankings("ann"), "overall") is None


def test_gold_questions_tell_who_looks(store: Store) -> None:
    form = begin(store, prompts=1, gold=4)
    gold = [task for task in store.tasks(form.round_id) if task.gold]
    for name, orders in {"ann": [(2, 1)] * 4, "bob": [(2, 1), (1, 2), (1, 1), None]}.items():
        for task, ranks in zip(gold, orders, strict=True):
            store.keep(Ranking(task.id, name, "overall", "ranked" if ranks else "bad", ranks))
    store.keep(Ranking(gold[0].id, "cy", "overall", "skipped"))
    tasks = {task.id: task for task in store.tasks()}
    tried = agreement.tried(tasks, store.rankings())
    assert {name: (one.right, one.asked) for name, one in tried.items()} == {"ann": (4, 4), "bob": (1, 4)}
    assert agreement.left_out(tasks, store.rankings(), 0.8) == {"bob": 0.25, "cy": None}


def test_wins_are_counted_between_models_alone(store: Store) -> None:
    form = begin(store, prompts=2, count=3)  # 0.0 and 0.2 are of the first model, 1.1 as well
    first, second = store.tasks(form.round_id)
    store.keep(Ranking(first.id, "ann", "overall", "ranked", (1, 2, 1)))
    store.keep(Ranking(second.id, "ann", "overall", "bad"))
    tasks = {first.id: first, second.id: second}
    assert agreement.wins(tasks, store.rankings()) == {MODELS[0]: 0.75, MODELS[1]: 0.25}


# ---- What is asked -------------------------------------------------------------------------------


def test_answers_stand_in_another_order_for_each_annotator_and_the_same_for_one(store: Store) -> None:
    form = begin(store, prompts=20, count=4)
    orders = {}
    for name in ("ann", "bob"):
        asking, orders[name] = Asking(store, form, name), []
        while question := asking.next():
            assert question.answers == Asking(store, form, name).next().answers  # again, from the beginning
            assert {text.partition(".")[0] for text in question.answers} == {f"answer {len(orders[name])}"}
            orders[name].append(question.answers)
            asking.keep(question.id, "skipped", None)
    same = sum(a == b for a, b in zip(orders["ann"], orders["bob"], strict=True))
    assert same < 5 and [sorted(one) for one in orders["ann"]] == [sorted(one) for one in orders["bob"]]
    firsts = {text.rpartition(".")[2] for text, *_ in orders["ann"]}
    assert firsts == {"0", "1", "2", "3"}  # no place of a model is a place on the screen


def test_what_was_ranked_is_kept_as_the_answers_are_and_taken_back_as_they_were_shown(store: Store) -> None:
    form = begin(store, prompts=2, count=4)
    asking = Asking(store, form, "ann")
    question = asking.next()
    asking.keep(question.id, "ranked", [4, 1, 1, 2], comment=" because ", seconds=2.5)
    (kept,) = store.rankings()
    told = dict(zip(question.answers, [3, 1, 1, 2], strict=True))
    assert kept.ranks == tuple(told[f"answer 0.{n}"] for n in range(4))
    assert (kept.comment, kept.seconds, asking.next().done) == ("because", 2.5, 1)
    again = Asking(store, form, "ann").undo()
    assert (again.id, again.answers, again.before, again.comment) == (
        question.id,
        question.answers,
        (3, 1, 1, 2),
        "because",
    )
    assert store.rankings() == [] and asking.next().id == question.id
    assert asking.undo() is None
    for wrong, what in (([1, 2], "2 ranks for 4 answers"), (None, "0 ranks for 4 answers")):
        with pytest.raises(TalkError) as refused:
            asking.keep(question.id, "ranked", wrong)
        assert str(refused.value) == what
    with pytest.raises(TalkError, match=r"^there is no such question$"):
        Asking(store, form, "bob").keep(question.id, "bad", None)  # ann's


def test_each_criterion_is_a_ranking_of_its_own(store: Store) -> None:
    form = begin(store, prompts=2, criteria=("helpfulness", "safety"))
    asking, seen = Asking(store, form, "ann"), []
    while question := asking.next():
        seen.append((question.criterion, question.done, question.of, question.answers))
        asking.keep(question.id, "bad", None)
    assert [one[:3] for one in seen] == [
        ("helpfulness", 0, 4),
        ("safety", 1, 4),
        ("helpfulness", 2, 4),
        ("safety", 3, 4),
    ]
    assert seen[0][3] == seen[1][3]  # they do not move while one reads


def test_gold_stands_among_the_others_where_nobody_knows(store: Store) -> None:
    form = begin(store, prompts=10, gold=4)
    places = {}
    for name in ("ann", "bob"):
        asking, asked_of = Asking(store, form, name), []
        while question := asking.next():
            asked_of.append(question.messages[0]["content"])
            asking.keep(question.id, "skipped", None)
        assert sorted(asked_of) == sorted([f"gold {n}" for n in range(4)] + [f"question {n}" for n in range(10)])
        places[name] = [text.startswith("gold") for text in asked_of]
    assert places["ann"] != places["bob"]


# ---- Sampling ------------------------------------------------------------------------------------


def round_of(*texts: str, models: tuple[str, ...] = ("a", "b"), count: int = 4) -> Round:
    return Round([asked(text) for text in texts], models, count, 5, Sampling(max_new_tokens=9, temperature=0.8))


def test_models_take_turns_and_seeds_are_fixed_for_each_prompt_and_answer() -> None:
    found = round_of("one", "two", count=3)
    assert found.slots(0) == [("a", 0), ("b", 0), ("a", 1)] and found.slots(1) == [("b", 0), ("a", 0), ("b", 1)]
    engines = {name: ScriptedEngine([f"{name} {n}" for n in range(9)], name=f"run:{name}") for name in "ab"}
    told = answers(found, engines, 0)
    assert [one.models for one in told] == [("run:a",), ("run:b",), ("run:a",)]
    seeds = [how.seed for engine in engines.values() for how in engine.how]
    again = {name: ScriptedEngine(["x", "y"], name=name) for name in "ab"}
    answers(found, again, 0)
    assert len(set(seeds)) == 3 and set(seeds) <= {how.seed for engine in again.values() for how in engine.how}


def test_the_same_words_are_sampled_again_and_then_are_one_answer() -> None:
    engines = {"a": ScriptedEngine(["same", "new"]), "b": ScriptedEngine(["same"], name="b")}
    told = answers(round_of("one", count=2), engines, 0)
    assert sorted((one.text, one.models) for one in told) == [("same", ("scripted", "b"))]
    assert len(engines["b"].asked) == 3
    full = {"a": ScriptedEngine(["x"], context=1), "b": ScriptedEngine(["y"], context=100)}
    assert [one.text for one in answers(round_of("one two three", count=2), full, 0)] == ["y"]


def test_sampling_goes_on_where_it_stopped_and_what_gives_no_choice_is_not_asked(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "AT_ONCE", 1)
    found = round_of("one", "two", "three", models=("a",), count=2)
    round_id = store.begin_round(found.key, found.settings())
    broken = ScriptedEngine(["1", "2", TalkError("out of memory")])
    sampler = Sampler(store, round_id, found, {"a": broken})
    sampler.run()
    assert str(sampler.failure) == "out of memory" and missing(store, round_id, found) == [1, 2]
    Sampler(store, round_id, found, {"a": ScriptedEngine(["same"])}).run()
    form = begin(store)
    asking = Asking(store, type(form)(round_id, ("overall",), {}, 3, 1), "ann")
    assert sorted(asking.next().answers) == ["1", "2"] and asking.next().of == 1 and not asking.is_waiting
    assert Round.of(json.loads(json.dumps(found.settings()))).key == found.key


# ---- The terminal --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "ranks"),
    [("213", (2, 1, 3)), ("2>1=3", (2, 1, 2)), ("2 1 3", (2, 1, 3)), ("3=2>1", (2, 1, 1)), ("2,3", (3, 1, 2)),
     ("5/2/2", (1, 2, 2)), ("1 = 2 = 3", (1, 1, 1)), ("9/10/0", (2, 1, 3))],
)  # fmt: skip
def test_orders_and_marks(line: str, ranks: tuple[int, ...]) -> None:
    assert ranks_of(line, 3) == ranks


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("2", "answers 1, 3 have no place"),
        ("224", "answer 2 is there twice"),
        ("24", "there is no answer 4; there are 3"),
        ("5/2", "marks are 3 numbers, one for each answer"),
        ("best", "'best' is no order and no command"),
        ("", "'' is no order and no command"),
    ],
)
def test_what_is_no_order(line: str, wrong: str) -> None:
    with pytest.raises(TalkError) as refused:
        ranks_of(line, 3)
    assert str(refused.value) == wrong


def test_a_person_ranks_in_the_terminal(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    form = begin(store, prompts=4)
    lines = iter(["nonsense", "c too long", "2>1=3", "u", "1=2=3", "?", "b", "s", "q"])
    rank_here(Asking(store, form, "ann"), None, lambda _: next(lines))
    kept = [(one.verdict, one.ranks, one.comment) for one in store.rankings()]
    assert kept == [("ranked", (1, 1, 1), "too long"), ("bad", None, ""), ("skipped", None, "")]
    said = capsys.readouterr().err
    assert "'nonsense' is no order" in said and "you said: 2>1=3" in said and "the same command goes on" in said
    assert "4 of 4 · overall" in said and "Be fair." in said
    assert not any(model in said for model in (*MODELS, "secret"))
    rank_here(Asking(store, form, "ann"), None, lambda _: "231")
    assert len(store.rankings()) == 4 and "all is ranked" in capsys.readouterr().err


# ---- Rounds and files ----------------------------------------------------------------------------


def test_gold_is_read_from_pairs_and_rankings_of_two_criteria(tmp_path: Path) -> None:
    file = tmp_path / "gold.jsonl"
    rows = [
        {"prompt": "p", "answers": ["x", "y", "z"], "ratings": {"safety": [1, 2, 2], "quality": [3, 2, 1]}},
        {"prompt": "q", "answers": ["x", "y"], "ranks": [2, 1]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (first, texts, known), (second, _, other) = given.gold(file)
    named = {name: {(texts[a].text, texts[b].text) for a, b in pairs} for name, pairs in known.items()}
    assert named == {"safety": {("y", "x"), ("z", "x")}, "quality": {("x", "y"), ("x", "z"), ("y", "z")}}
    assert (first.text, second.text, list(other)) == ("p", "q", [""])


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ({}, "there is nothing to rank yet"),
        ({"models": ["a"]}, "what are the models to answer?"),
        ({"prompts": "storyworld", "count": 7}, "--n 7: people compare 2 to 6 answers at once"),
        ({"prompts": "storyworld", "models": list("abcde")}, "5 models give more than 4 answers"),
        (
            {"prompts": "storyworld", "models": ["a"], "how": Sampling(temperature=0)},
            "a model's answers are all the same at a temperature of 0",
        ),
    ],
)
def test_what_is_no_round(store: Store, more: dict[str, Any], wrong: str) -> None:
    with pytest.raises(UsageError) as refused, sampled(store, Wanted("runs/x", **more)):
        pass
    assert str(refused.value) == wrong


# ---- Export --------------------------------------------------------------------------------------


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def said(store: Store) -> Store:
    """Two people on five prompts: an order, a tie in it, all tied, all bad, skipped; one of them fails at gold."""
    form = begin(store, prompts=5, count=3, gold=1)
    tasks = [task for task in store.tasks(form.round_id) if task.gold is None]
    (gold,) = [task for task in store.tasks(form.round_id) if task.gold]
    verdicts = [(3, 1, 2), (1, 2, 2), (1, 1, 1), "bad", "skipped"]
    for name, ranks in {"ann": (2, 1), "bob": (1, 2)}.items():
        for task, verdict in zip(tasks, verdicts, strict=True):
            what, own = (verdict, None) if isinstance(verdict, str) else ("ranked", verdict)
            store.keep(Ranking(task.id, name, "overall", what, own, comment="well"))  # type: ignore[arg-type]
        store.keep(Ranking(gold.id, name, "overall", "ranked", ranks))
    return store


def test_pairs_and_rankings_say_the_same_to_reward_and_ties_are_no_pairs(said: Store, tmp_path: Path) -> None:
    found = {}
    for form in ("rankings", "pairs"):
        done = export(said, file := tmp_path / f"{form}.jsonl", form)  # type: ignore[arg-type]
        assert (done.pairs, done.ties, done.all_bad, done.skipped) == (10, 8, 2, 2)
        read = [one for _, one in preferences(read_rows([file]))]
        found[form] = [(one.asked, one.chosen[0]["content"], one.rejected[0]["content"], one.text) for one in read]
    assert sorted(found["pairs"]) == sorted(found["rankings"]) and len(found["pairs"]) == 10
    assert ("question 0", "answer 0.1", "answer 0.0", ("question 0", "answer 0.1", "answer 0.0")) in found["pairs"]
    (row, *_) = rows_of(tmp_path / "rankings.jsonl")
    assert (row["annotator"], row["models"][0], row["source"], row["comment"]) == ("ann", [MODELS[0]], "rank", "well")
    assert "criterion" not in row
    ties = [one for _, one in ranked(read_rows([tmp_path / "rankings.jsonl"])) if one.preference == 0]
    assert {(one.first, one.second) for one in ties} == {("answer 1.1", "answer 1.2")}


def test_who_fails_at_gold_is_left_out(said: Store, tmp_path: Path) -> None:
    alphas = [summary(said, least_gold=least)["criteria"][0]["alpha"] for least in (None, 0.8)]
    assert alphas == [1, None]  # nobody is left to agree with
    done = export(said, tmp_path / "rows.jsonl", "rankings", least_gold=0.8)
    assert done.left_out == {"bob": 0.0} and {row["annotator"] for row in rows_of(tmp_path / "rows.jsonl")} == {"ann"}


def test_thumbs_and_all_bad_are_labels_for_kto(said: Store, tmp_path: Path) -> None:
    answer = Told([{"role": "user", "content": "Hi"}], "elsewhere", "Ho")
    assert keep_thumb(answer, is_good=False, beside=tmp_path) == said.path  # of no run: beside what is named
    keep_thumb(answer, is_good=True, beside=tmp_path)  # another mind
    file = tmp_path / "kto.jsonl"
    assert export(said, file, "kto").rows == 7
    read = [(one.asked, one.answer[0]["content"], one.is_good) for _, one in labelled(read_rows([file]))]
    assert read == [("Hi", "Ho", True), *(("question 3", f"answer 3.{n}", False) for n in (0, 1, 2) * 2)]


def test_criteria_are_told_apart(store: Store, tmp_path: Path) -> None:
    form = begin(store, prompts=1, count=2, criteria=("helpfulness", "safety"))
    (task,) = store.tasks(form.round_id)
    store.keep(Ranking(task.id, "ann", "helpfulness", "ranked", (1, 2)))
    store.keep(Ranking(task.id, "ann", "safety", "ranked", (2, 1)))
    export(store, file := tmp_path / "all.jsonl", "pairs")
    read = [(one.criterion, one.chosen[0]["content"]) for _, one in preferences(read_rows([file]))]
    assert read == [("helpfulness", "answer 0.0"), ("safety", "answer 0.1")]
    assert export(store, file, "pairs", criteria=["safety"]).rows == 1


def test_a_choice_in_chat_is_kept_with_the_run_of_its_model(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "x"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("name: x", encoding="utf-8")
    prompt = [{"role": "user", "content": "Hi"}]
    told = [Told(prompt, f"{run}:{name}", text) for name, text in (("a", "no"), ("b", "yes"), ("c", "no "))]
    path = keep_comparison(told, [1], beside=tmp_path)
    assert path == run / "rankings.sqlite3" == store_of(f"{run}:a", beside=tmp_path)
    with Store(path) as store:
        export(store, file := tmp_path / "pairs.jsonl", "pairs")
        assert store.newest_round() is None
    (row,) = rows_of(file)
    assert row["rejected_models"] == [f"{run}:a", f"{run}:c"] and row["chosen"][0]["content"] == "yes"


@pytest.mark.parametrize(
    ("name", "form", "wrong"),
    [
        ("rows.json", "pairs", "rows.json: is no name for JSON lines"),
        ("rows.jsonl", "pairs", "there is nothing to write: no ranking says which is better"),
        ("rows.jsonl", "kto", "there is nothing to write: no thumb, and nobody found all answers bad"),
    ],
)
def test_what_cannot_be_exported(store: Store, name: str, form: Any, wrong: str) -> None:
    with pytest.raises(UsageError) as refused:
        export(store, Path(name), form)
    assert str(refused.value) == wrong


def test_messages_stay_messages(store: Store, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    task = store.add_task("talk", Asked(turns), [Answer("x", ("m",)), Answer("y", ("n",))])
    store.keep(Ranking(task, "me", "overall", "ranked", (2, 1)))
    export(store, file := tmp_path / "pairs.jsonl", "pairs")
    ((_, pair),) = preferences(read_rows([file]))
    assert [turn["content"] for turn in (*pair.prompt, *pair.chosen, *pair.rejected)] == ["a", "b", "c", "y", "x"]
    assert pair.text is None
