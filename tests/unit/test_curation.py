"""The engine of curate: the same result in any number of processes, what lies on disk, and what is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from llmpipe.curation import Document, Verdict, engine, near_duplicates, passes
from llmpipe.curation.crew import Crew
from llmpipe.curation.engine import Account, Engine
from llmpipe.curation.spool import Bits, Buckets, Shelf, Spool
from llmpipe.curation.steps import NAMES, Options, Step
from llmpipe.curation.tally import EXAMPLES, Tally
from llmpipe.data import noise, storyworld

STEPS = [
    "repair",
    {"step": "language", "keep": ["en"]},
    {
        "step": "quality",
        "gopher": {"min_words": 20, "min_stop_words": 1},
        "repetition": None,
        "c4": None,
        "fineweb": None,
    },
    {"step": "pii", "action": "drop"},
    "exact_duplicates",
    {"step": "exact_duplicates", "of": "paragraphs"},
    "near_duplicates",
]


def read(steps: list[Any]) -> list[Any]:
    return TypeAdapter(list[Step]).validate_python(steps)


def curated(
    texts: Iterable[str], steps: list[Any], folder: Path, *, processes: int = 1, **more: Any
) -> tuple[list[str], Account]:
    account = Account()
    documents = (Document(text, f"a.txt:{number}") for number, text in enumerate(texts, 1))
    (folder / "work").mkdir(exist_ok=True)
    with Crew(processes) as crew:
        run = Engine(folder / "work", crew, lambda **_: None, **more).run(documents, read(steps), account)
        return [document.text for document in run], account


def planted(stories: int) -> list[noise.Planted]:
    return list(noise.plant(storyworld.corpus(stories=stories, seed=3), share=0.2, seed=3))


def test_what_was_planted_is_found(tmp_path: Path) -> None:
    key = planted(1500)
    left, account = curated((one.text for one in key), [step for step in STEPS if "of" not in step], tmp_path)
    found = noise.score(left, key)
    assert found["planted"] > 150
    assert {kind for kind, (_, all_) in found["planted_kinds"].items() if all_ > 20} == set(noise.KINDS)
    assert found["planted_recall"] >= 0.99
    assert found["planted_precision"] >= 0.99
    assert account.tallies[0].documents_in == len(key)
    assert sum(tally.dropped for tally in account.tallies) == len(key) - len(left)


@pytest.mark.parametrize(("lost", "surplus", "recall", "precision"), [(0, 0, 1, 1), (50, 0, 1, 0.5), (0, 10, 0.8, 1)])
def test_the_key_counts_what_is_missed_and_what_is_lost(
    lost: int, surplus: int, recall: float, precision: float
) -> None:
    key = [noise.Planted(f"story {n}", None, f"story {n}") for n in range(100)]
    key += [noise.Planted(f"menu {n}", "menu", None) for n in range(50)]
    left = [f"story {n}" for n in range(100 - lost)] + [f"menu {n}" for n in range(surplus)]
    found = noise.score(left, key)
    assert found["planted_kinds"]["menu"] == [50 - surplus, 50]
    assert (found["planted_recall"], found["planted_precision"]) == (recall, precision)


def test_the_number_of_processes_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PART_DOCUMENTS", 40)
    texts = [one.text for one in planted(600)]
    results = []
    for processes in (1, 2):
        (folder := tmp_path / str(processes)).mkdir()
        left, account = curated(texts, STEPS, folder, processes=processes, counts_people=True)
        results.append((left, [tally.as_json() for tally in account.tallies], account.before, account.after))
    assert results[0] == results[1]
    assert results[0][2].total() > results[0][3].total() > 0


def test_the_first_of_equal_texts_stays_and_order_does(tmp_path: Path) -> None:
    texts = ["b b", "a", "b  b", "c", "a ", "b\nb"]
    left, account = curated(texts, ["exact_duplicates"], tmp_path)
    assert left == ["b b", "a", "c"]
    assert account.tallies[0].found == Counter({"repeated text": 3})
    assert [example["where"] for example in account.tallies[0].examples["repeated text"]] == [
        "a.txt:3",
        "a.txt:5",
        "a.txt:6",
    ]


def test_paragraphs_that_came_before_go_and_short_ones_stay(tmp_path: Path) -> None:
    menu, one, two = "a b c d", "one two three four five", "six seven eight nine ten"
    texts = [f"{menu}\n{one}", f"{menu}\n{one}\n{two}", f"{one}\n\n{one}", two]
    left, account = curated(texts, [{"step": "exact_duplicates", "of": "paragraphs", "min_words": 5}], tmp_path)
    assert left == [f"{menu}\n{one}", f"{menu}\n{two}"]
    assert account.tallies[0].found["repeated paragraph"] == 4
    assert (account.tallies[0].changed, account.tallies[0].dropped) == (1, 2)


def words(count: int, *, but: tuple[int, ...] = ()) -> str:
    return " ".join(f"x{n}" if n in but else f"w{n}" for n in range(count))


def test_a_text_goes_for_one_that_stays_only(tmp_path: Path) -> None:
    """The middle one is like both others, which are not alike: it goes, and what was like it alone stays."""
    texts = [words(200), words(200, but=(0, 40, 80)), words(200, but=(0, 40, 80, 120, 160, 199))]
    left, account = curated(texts, ["near_duplicates"], tmp_path)
    assert left == [texts[0], texts[2]]
    example = account.tallies[0].as_json()["examples"]["near duplicate"][0]
    assert (example["where"], example["like"]) == ("a.txt:2", "a.txt:1")
    assert example["jaccard"] == pytest.approx((196 - 11) / (196 + 11), abs=0.001)  # 11 runs of 5 words hold an edit


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_bands_find_pairs_at_the_threshold(threshold: float) -> None:
    bands, rows = near_duplicates.bands_of(threshold)
    assert bands * rows <= near_duplicates.PERMUTATIONS
    assert 1 - (1 - min(threshold, 0.999) ** rows) ** bands >= near_duplicates.RECALL


def test_thousands_of_copies_make_few_pairs() -> None:
    rows = np.column_stack([np.zeros(5000, dtype="<u8"), np.arange(5000, dtype="<u8")])
    found = np.concatenate(list(near_duplicates._candidates(rows)))
    assert len(found) < 5000 * near_duplicates.PARTNERS
    assert (found[:, 0] > found[:, 1]).all()
    assert set(found[:, 0].tolist()) == set(range(1, 5000))


def test_pairs_come_once_in_parts_of_one_size(tmp_path: Path) -> None:
    rows = np.array([[later, earlier] for later in range(40) for earlier in range(40) for _ in range(3)], dtype="<u8")
    parts = list(near_duplicates._parts([rows], tmp_path, near_duplicates.Settings()))
    assert {len(part.pairs) for part in parts[:-1]} == {near_duplicates.PAIRS_IN_PART}
    assert [pair for part in parts for pair in part.pairs] == [(one, other) for one in range(40) for other in range(40)]


def test_a_spool_gives_back_what_was_put_in(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    documents = [Document("", "a:1"), Document("schön\n\U0001f600", "b:2"), Document("x" * 10_000, "c:3")]
    for units, document in enumerate(documents):
        spool.add(document, units)
    spool.close()
    assert list(spool) == list(zip(documents, range(3), strict=True))
    shelf = Shelf(spool.path)
    assert [shelf[number] for number in (2, 0, 1)] == [documents[2], documents[0], documents[1]]
    shelf.close()
    spool.remove()
    assert not list(tmp_path.iterdir())


def test_buckets_sort_more_than_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmpipe.curation.spool.HELD_BYTES", 1000)
    buckets, made = Buckets(tmp_path / "keys", columns=2), np.random.default_rng(0).integers(0, 2**63, (5000, 2), "u8")
    for part in np.array_split(made, 7):
        buckets.add(part, part[:, 0] >> np.uint64(56))
        assert buckets._held_bytes < 1000
    found = np.concatenate(list(buckets.sorted()))
    assert found.tolist() == sorted(made.tolist())
    assert not (tmp_path / "keys").exists()


def test_bits_are_a_set() -> None:
    bits = Bits(100)
    for number in (0, 7, 8, 99):
        bits.add(number)
    assert [number for number in range(100) if number in bits] == [0, 7, 8, 99]


def test_a_step_that_gathers_sees_all_texts_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built with the sum over what the steps before have left."""

    class Step:
        step = "rare"

    monkeypatch.setattr(
        passes, "module_of", lambda step: Rare if step.step == "rare" else passes.import_module(type(step).__module__)
    )
    account = Account()
    (tmp_path / "work").mkdir()
    documents = [Document(text, "a") for text in ("a", "b", "a", "c", "c")]
    with Crew(1) as crew:
        job = Engine(tmp_path / "work", crew, lambda **_: None)
        monkeypatch.setattr(passes.Job, "written", lambda job, _: job)
        monkeypatch.setattr(passes, "_work", passes.Work)
        left = [one.text for one in job.run(documents, [*read(["exact_duplicates"]), Step()], account)]
    assert left == ["a 1", "a 1", "b 1", "b 1", "c 1", "c 1"]
    assert account.tallies[1].added == 3


class Rare:
    """A step's module: each text twice, with how often it was gathered."""

    @staticmethod
    def gather(_: Any) -> Any:
        return lambda text: Counter({text: 1})

    @staticmethod
    def build(_: Any, gathered: Counter[str]) -> Any:
        return lambda text: Verdict((f"{text} {gathered[text]}",) * 2)


def test_examples_are_few_and_say_where() -> None:
    one, other = Tally("quality"), Tally("quality")
    for tally, start in ((one, 0), (other, 10)):
        for number in range(start, start + 2):
            tally.note(Document("a text", f"a:{number}"), Verdict((), ("bad",)))
        tally.note(Document("x" * 200 + " before", "b"), Verdict(("x" * 200 + " after",)))
    one.add(other)
    assert (one.documents_in, one.dropped, one.changed) == (6, 4, 2)
    assert [example["where"] for example in one.examples["bad"]] == ["a:0", "a:1", "a:10"][:EXAMPLES]
    assert one.examples["changed"][0] == {"where": "b", "before": "x" * 39 + " before", "after": "x" * 39 + " after"}


def test_personal_data_is_not_quoted() -> None:
    tally = Tally("pii")
    tally.note(Document("mail jo@example.org", "a:1"), Verdict(("mail <email>",), ("email",)))
    tally.note(Document("mail jo@example.org", "a:2"), Verdict((), ("email",)))
    tally.note(Document("mail jo@example.org", "a:3"), Verdict(("mail jo@example.org",), ("email",)))
    assert tally.examples == {"email": [{"where": "a:1", "after": "mail <email>"}, {"where": "a:2"}, {"where": "a:3"}]}
    assert (tally.dropped, tally.changed) == (1, 1)


def test_every_step_is_in_the_list() -> None:
    tags = {model.model_fields["step"].default for model in Options.__args__[0].__args__}  # type: ignore[attr-defined]
    assert tags == set(NAMES)
