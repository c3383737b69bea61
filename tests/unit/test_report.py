"""The report: it holds what the run holds, escaped, on one page that needs nothing else."""

from __future__ import annotations

import json
import random
import re
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from llmpipe import console, report
from llmpipe.artifact import Gate, Input
from llmpipe.errors import UsageError
from llmpipe.report import figures, lineage
from llmpipe.report.collect import collect
from tests.unit.made import Made, make_run

EVIL = "<script>alert('1')</script>&amp;"
VOID = {"meta", "img", "br", "link"}
LOGGED = [
    *({"step": step, "max_steps": 900, "loss": 5 / step, "learning_rate": 1e-5 * step} for step in range(1, 900)),
    {"step": 900, "max_steps": 900, "held_out_loss": 0.5},
]
SCORES = {
    "prompts": [f"Say {EVIL}"],
    "models": {"chat": {"perplexity": 3.0, "samples": ["yes"]}, "ppo": {"perplexity": 4.0, "samples": [f"no {EVIL}"]}},
}
SAMPLES = {"samples": [{"prompt": "p", "before": "b", "after": "a", "reward_before": 0.5, "reward_after": None}]}
CURATION = {
    "steps": [
        {
            "step": "pii",
            "documents_in": 1200,
            "dropped": 3,
            "found": {EVIL: 3},
            "examples": {"email": [{"dropped": EVIL}]},
        }
    ],
    "bias": {
        "groups": {"age": {"old": {"before": {"mentions": 1, "share": 0.25}, "after": {"mentions": 2, "share": 0.5}}}}
    },
}
TOKENS = {
    "vocab_size": 300,
    "tokens": 50,
    "bytes_per_token": 2.5,
    "unknown_share": 0.0,
    "unused_tokens": 30,
    "unused_share": 0.1,
    "groups": {"texts/de.txt": {"bytes": 125, "tokens": 50, "bytes_per_token": 2.5}},
    "pieces": [{"piece": EVIL, "count": 5}],
    "compared": {
        "gpt2": {
            "vocab_size": 50257,
            "bytes_per_token": 4.0,
            "unknown_share": 0.125,
            "groups": {"texts/de.txt": {"bytes_per_token": 4.0}},
        }
    },
}
DATA = Input(
    field="data", source={"path": "/home/me/secret/a.txt"}, identity="", files={"/home/me/secret/a.txt": "ab" * 32}
)


def make(folder: Path) -> Path:
    """Make a run with something of everything."""
    stages = [
        Made("tok", "tokenizer", metrics={"bytes_per_token": 2.5, "vocab_size": 300}, files={"report.json": TOKENS}),
        Made("corpus", "curate", inputs=[DATA], files={"curation.json": CURATION}),
        Made(
            "base", "pretrain", [("data", "corpus")], {"context": 64, "trainer": {"learning_rate": 2e-5}}, logged=LOGGED
        ),
        Made("chat", "sft", [("model", "base")], {"note": EVIL}, {"held_out_loss": 1.0, "held_out_loss_before": 2.0}),
        Made(
            "ppo",
            "rlhf-ppo",
            [("model", "chat")],
            gates=[Gate(name="still", passed=True, why=EVIL)],
            files={"samples.json": SAMPLES},
        ),
        Made("scores", "eval", [("models", "chat"), ("models", "ppo")], files={"scores.json": SCORES}),
        Made("later", "sft", [("model", "ppo")], done=False),
        Made("never", begun=False),
    ]
    made = make_run(folder / "mine", stages, comment=EVIL)
    (made / "tok" / "pieces.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>", encoding="utf-8")
    (made / "corpus" / "bias.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>", encoding="utf-8")
    return made


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make(tmp_path)


class Page(HTMLParser):
    """Reads a page: its text, the addresses in it, the tags that are open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text, self.source = "", text
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " "
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    written = report.write(make(tmp_path_factory.mktemp("runs")))
    return Page(written.page.read_text(encoding="utf-8"))


def test_the_page_needs_nothing_else(page: Page) -> None:
    assert page.open == []
    assert "script" not in page.tags and "link" not in page.tags
    assert all(address.startswith(("#", "data:image/svg+xml;base64,")) for address in page.addresses)


def test_what_others_wrote_is_text(page: Page) -> None:
    """In the recipe, a setting, a gate's reason, a prompt, an answer, a finding of curate, its example, a piece."""
    assert page.text.count(EVIL) == 8


def test_every_picture_has_its_table(page: Page) -> None:
    assert page.tags.count("svg") == 3 and page.tags.count("img") == 2
    shown = re.findall(r"<figure.*?</figure>", page.source, re.DOTALL)
    assert len(shown) == 5
    assert all("<details>" in figure and "<td" in figure for figure in shown)


@pytest.mark.parametrize(
    "told",
    [
        pytest.param("6 of 8", id="stages-done"),
        pytest.param("nats per token, held-out rows 2 1", id="what-a-stage-changed"),
        pytest.param("perplexity, held-out text 3 4", id="scores-side-by-side"),
        pytest.param("before ppo · reward 0.50 b", id="an-answer-with-its-reward"),
        pytest.param("after ppo a", id="an-answer-without"),
        pytest.param("later sft ppo not finished", id="an-interrupted-stage"),
        pytest.param("never sft not begun", id="a-stage-to-come"),
        pytest.param("trainer.learning_rate 2e-5", id="a-setting"),
        pytest.param("corpus data a.txt abababababab", id="a-file-and-its-digest"),
        pytest.param("pii 1,200 3 0 0", id="a-step-of-curate"),
        pytest.param("age old 25.0% (1) 50.0% (2)", id="a-group-of-people"),
        pytest.param("all of it 2.50 4.00", id="bytes-per-token-beside-another-tokenizer"),
        pytest.param("unknown 0.0% 12.5%", id="what-a-tokenizer-has-no-token-for"),
        pytest.param("30 of 300 tokens (10%) are in none", id="unused-tokens"),
        pytest.param("5 10.00%", id="a-piece"),
        pytest.param("still passed", id="a-gate"),
        pytest.param("torch 2.13", id="a-version"),
    ],
)
def test_the_page_tells(page: Page, told: str) -> None:
    assert told in " ".join(page.text.split())


def test_no_path_of_this_machine_is_told(run_dir: Path) -> None:
    written = report.write(run_dir)
    assert written.card is not None
    for path in (written.page, written.card, *written.pictures):
        assert "/home/me" not in path.read_text(encoding="utf-8")


def test_the_pictures_are_files_too(run_dir: Path) -> None:
    stale = run_dir / "report" / "gone-loss.svg"
    report.write(run_dir)
    stale.write_text("", encoding="utf-8")
    written = report.write(run_dir)
    assert {path.name for path in written.pictures} == {"lineage.svg", "base-loss.svg", "base-learning-rate.svg"}
    assert {path.name for path in stale.parent.iterdir()} == {path.name for path in written.pictures} | {
        "model-card.md"
    }
    assert all("prefers-color-scheme: dark" in path.read_text(encoding="utf-8") for path in written.pictures)


def test_the_card_is_of_the_last_model(run_dir: Path) -> None:
    written = report.write(run_dir)
    assert written.card is not None
    text = written.card.read_text(encoding="utf-8")
    assert "made by the stage `ppo` (rlhf-ppo) of the llmpipe run `mine`" in text
    assert "| chat | nats per token, held-out rows | 2 | 1 |" in text
    (run_dir / "ppo" / "manifest.json").unlink()
    for name in ("base", "chat"):
        (run_dir / name / "manifest.json").unlink()
    assert report.write(run_dir).card is None
    assert not written.card.exists()


def test_a_stage_may_be_called_report(tmp_path: Path) -> None:
    made = make_run(tmp_path / "x", [Made("report", logged=LOGGED)])
    before = {path.name for path in (made / "report").iterdir()}
    assert {path.parent.name for path in report.write(made).pictures} == {"report.files"}
    assert {path.name for path in (made / "report").iterdir()} == before


def test_a_line_that_was_cut_off_and_no_number_are_left_out(tmp_path: Path) -> None:
    made = make_run(tmp_path / "x", [Made("base", logged=[*LOGGED, {"step": 901, "loss": float("nan")}], done=False)])
    with (made / "base" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 902, "lo')
    (chart, _) = figures.charts(collect(made).stages[0].logged)
    assert chart.series[0].points[-1] == (899, 5 / 899)


def test_the_report_never_fails_a_run(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "err", console.Console(stderr=True, soft_wrap=True, width=200))
    (run_dir / "scores" / "scores.json").write_text('{"models": 3}', encoding="utf-8")
    report.write_after(run_dir)
    assert capsys.readouterr().err == (
        "  the report could not be written: TypeError: Value after * must be an iterable, not int; "
        f"llmpipe report {run_dir} tries again\n"
    )
    assert not (run_dir / "report.html").exists()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no run directory: it has no recipe.yaml") as refused:
        report.write(tmp_path)
    assert refused.value.hint == "llmpipe run RECIPE makes one"
    empty = make_run(tmp_path / "x", [Made("base", begun=False)])
    with pytest.raises(UsageError, match=r"nothing was begun in .*x yet"):
        report.write(empty)
    assert [path.name for path in empty.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("seed", range(20))
def test_a_thinned_curve_keeps_its_ends_and_its_extremes(seed: int) -> None:
    chance = random.Random(seed)
    points = [(float(step), chance.gauss(0, 1)) for step in range(chance.randint(1, 3000))]
    most = chance.choice([4, 7, 50, 120])
    thin = figures.thinned(points, most)
    assert len(thin) <= most and thin == sorted(set(thin)) and set(thin) <= set(points)
    assert (thin[0], thin[-1]) == (points[0], points[-1])
    for extreme in (min, max):
        assert extreme(value for _, value in thin) == extreme(value for _, value in points)


@pytest.mark.parametrize("seed", range(20))
def test_ticks_are_round_and_within_the_range(seed: int) -> None:
    chance = random.Random(seed)
    low = chance.uniform(-1, 1) * 10 ** chance.randint(-8, 8)
    high = low + 10 ** chance.uniform(-8, 8)
    found = figures.ticks(low, high)
    apart = {float(f"{after - before:.3g}") for before, after in pairwise(found)}
    assert 2 <= len(found) <= 7 and len(apart) == 1
    assert f"{apart.pop():e}"[0] in "125"
    assert low - 1e-9 * abs(low) <= found[0] and found[-1] <= high + 1e-9 * abs(high)


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.0, 0.0], [1.0, -2.0, 3e8], [1e-9, 2e-9]])
def test_a_curve_stays_inside_its_picture(values: list[float]) -> None:
    picture = figures.draw(figures.Chart("loss", [figures.Series("", list(enumerate(values, start=1)))]))
    (joined,) = re.findall(r'polyline class="curve first" points="([^"]+)"', picture)
    places = [tuple(map(float, point.split(","))) for point in joined.split()]
    assert len(places) == len(values)
    assert all(figures.LEFT <= x <= figures.WIDTH and figures.TOP <= y <= figures.HEIGHT for x, y in places)


@pytest.mark.parametrize("seed", range(20))
def test_stages_stand_below_what_they_read_and_apart(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    names = [f"s{number}" for number in range(9)]
    above = {
        name: chance.sample(names[:number], min(number, chance.randint(0, 3))) for number, name in enumerate(names)
    }
    made = make_run(tmp_path / "x", [Made(name, reads=[("model", other) for other in above[name]]) for name in names])
    picture = lineage.draw(collect(made).stages)
    boxes = re.findall(r'<rect class="node" x="([-\d.]+)" y="(\d+)"', picture)
    titles = re.findall(r'<text class="title"[^>]*>(\w+)<', picture)
    place = {name: (float(x), int(y)) for name, (x, y) in zip(titles, boxes, strict=True)}
    assert sorted(place) == names
    assert all(place[other][1] < place[name][1] for name in names for other in above[name])
    for name in names:
        row = sorted(x for x, y in place.values() if y == place[name][1])
        assert all(right - left >= lineage.BOX for left, right in pairwise(row))
    for x, top in re.findall(r"M([\d.]+) (\d+)V", picture):  # a lane through a row meets no box of it
        assert all(int(top) != y or not left <= float(x) <= left + lineage.BOX for left, y in place.values())
    assert picture.count('class="head"') == sum(map(len, above.values()))


def test_names_in_pictures_are_text(tmp_path: Path) -> None:
    made = make_run(tmp_path / "x", [Made("a", "x")])
    record = json.loads((made / "a" / "step.json").read_text(encoding="utf-8"))
    assert record["kind"] == "x"
    stage = collect(made).stages[0]
    object.__setattr__(stage, "kind", EVIL)
    picture = lineage.draw([stage])
    assert "<script" not in picture and EVIL in unescape(picture)
