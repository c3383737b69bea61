"""The tokenizer's report adds up, and sets it beside other tokenizers on the same text."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from transformers import AutoTokenizer

from llmpipe import gates, worker
from llmpipe import recipe as recipes
from llmpipe.artifact import Gate, read_manifest, write_json
from llmpipe.data import Row
from llmpipe.evaluation import token_report
from llmpipe.evaluation.token_report import Samples
from llmpipe.plan import make_plan
from llmpipe.settings import PathSource
from llmpipe.stages import tokenizer as stage

FRENCH, ENGLISH = "L'été, l'élève rêve à <b>Noël</b>. ", "The duck had a red shoe & a hat. "


@pytest.fixture
def texts(tmp_path: Path) -> list[PathSource]:
    for name, text in {"fr": FRENCH, "en": ENGLISH}.items():
        (tmp_path / f"{name}.txt").write_text(text * 30, encoding="utf-8")
    return [PathSource(path=str(tmp_path / "*.txt"))]


def test_the_report(texts, tokenizer, tmp_path, ctx, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer.save_pretrained(tmp_path / "other")
    other = PathSource(path=str(tmp_path / "other"))
    settings = stage.Settings(kind="tokenizer", data=texts, vocab_size=330, compare=[other])
    result = stage.run(settings, ctx)
    found = json.loads((ctx.dir / "report.json").read_text(encoding="utf-8"))
    assert result.outputs == ["tokenizer", "report.json", "pieces.svg"]
    assert found["bytes"] == 30 * len((FRENCH + ENGLISH).encode()) == result.metrics["bytes"]
    assert found["tokens"] == sum(group["tokens"] for group in found["groups"].values())
    assert list(found["groups"]) == ["en.txt", "fr.txt"]
    assert found["groups"]["fr.txt"]["bytes"] == 30 * len(FRENCH.encode())
    assert result.metrics["bytes_per_token"] == round(found["bytes"] / found["tokens"], 3) > 2
    # a tokenizer of English stories knows no accents
    compared = found["compared"]["other"]
    assert compared["vocab_size"] == 300 and compared["bytes_per_token"] < found["bytes_per_token"]
    assert compared["groups"]["fr.txt"]["bytes_per_token"] < compared["groups"]["en.txt"]["bytes_per_token"]
    assert 256 <= compared["shared_pieces"] < 300
    assert result.metrics["other_bytes_per_token"] == compared["bytes_per_token"]
    # most bytes are in no text, and the special tokens are not counted as unused
    learned = AutoTokenizer.from_pretrained(ctx.dir / "tokenizer")
    ids = {token for text in (FRENCH, ENGLISH) for token in learned(text * 30, add_special_tokens=False)["input_ids"]}
    assert 200 < found["unused_tokens"] == result.metrics["unused_tokens"] == found["vocab_size"] - len(ids) - 7
    assert len(found["pieces"]) == min(len(ids), token_report.PIECES)
    used = {piece["piece"] for piece in found["pieces"]}
    assert "␣duck" in used or "␣red" in used, used
    assert 0.5 < sum(piece["count"] for piece in found["pieces"]) / found["tokens"] <= 1
    said = [event["text"] for event in ctx.events if event["event"] == "say"]
    assert said[1].startswith("bytes per token: en.txt ") and said[2].startswith("other has 300 tokens: ")


def test_the_picture_is_xml_whatever_the_pieces(texts, tmp_path, ctx) -> None:
    stage.run(stage.Settings(kind="tokenizer", data=texts, algorithm="char", vocab_size=60), ctx)
    drawing = ElementTree.parse(ctx.dir / "pieces.svg").getroot()
    names = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"<", "&", "é", "␣"} <= set(names)
    bars = [float(bar.get("width")) for bar in list(drawing.iter("{http://www.w3.org/2000/svg}rect"))[1:]]
    assert bars == sorted(bars, reverse=True) and len(bars) == (len(names) - 1) / 2


def test_of_too_much_text_an_even_sample_is_learned_from(tmp_path, ctx) -> None:
    """Of every file, with what there is in all kept in the metrics; nothing of it stays on disk."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name} {name}"}}\n' * 500, encoding="utf-8")
    sources = [PathSource(path=str(tmp_path / "*.jsonl"))]
    settings = stage.Settings(kind="tokenizer", data=sources, algorithm="word", vocab_size=16, max_bytes=2000)
    metrics = stage.run(settings, ctx).metrics
    assert (metrics["documents"], metrics["bytes"]) == (1000, 7000)
    assert 1000 - 7 < metrics["sampled_bytes"] == 7 * metrics["sampled_documents"] <= 2000
    learned = AutoTokenizer.from_pretrained(ctx.dir / "tokenizer")
    assert {"one", "two"} < learned.get_vocab().keys()
    (said,) = (event["text"] for event in ctx.events if event["event"] == "say" and "sample" in event["text"])
    assert said == "learns from 0.0 of 0.0 MB, an even sample: max_bytes is 0.0 MB"
    assert {path.name for path in ctx.dir.iterdir()} >= {"tokenizer", "report.json", "pieces.svg"}
    assert not [path for path in ctx.dir.rglob("*") if path.name == "texts" or path.name.startswith("tmp")]
    assert "max_bytes" not in stage.Settings(kind="tokenizer").model_dump()
    assert "sampled_bytes" not in stage.run(settings.model_copy(update={"max_bytes": 7000}), ctx).metrics


def test_samples_are_bounded_and_named_by_language_file_or_folder(monkeypatch) -> None:
    monkeypatch.setattr(token_report, "GROUP_CHARACTERS", 10)
    samples = Samples()
    for row in (Row("a.jsonl:1", {"language": "de"}), Row("a.jsonl:2", {"lang": "de"}), Row("a.jsonl:3", {"lang": 7})):
        samples.add(row, "1234567")
    assert samples.by_name() == {"de": ["1234567", "123"], "a.jsonl": ["1234567"]}
    for number in range(30):
        samples.add(Row(f"texts/{number}.txt:1", {}), "x")
    assert {name: len(texts) for name, texts in samples.by_name().items()} == {".": 3, "texts": 30}
    monkeypatch.setattr(token_report, "TOTAL_CHARACTERS", samples.kept.total() + 2)
    samples.add(Row("b.txt:1", {}), "12345")
    samples.add(Row("c.txt:1", {}), "12345")
    assert samples.groups["b.txt"] == ["12"] and "c.txt" not in samples.groups


def test_the_manifest_says_how_many_rows_were_left_out(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": "a duck"}, {"text": None}, {"text": "a shoe"}]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = "{path: a.jsonl, on_bad_rows: quarantine}"
    text = f"name: x\nstages:\n  tok: {{kind: tokenizer, data: {source}, algorithm: byte}}\n"
    Path("r.yaml").write_text(text, encoding="utf-8")
    (step,) = make_plan(recipes.load(Path("r.yaml")), Path("run"))
    Path("run/tok").mkdir(parents=True)
    write_json(Path("run/tok/step.json"), step.record)
    events = []
    worker.execute(Path("run"), "tok", emit=events.append, stop=lambda: None)
    manifest = read_manifest(Path("run/tok"))
    assert manifest is not None and manifest.metrics["documents"] == 2
    assert manifest.metrics["bad_rows"] == 1 == events[-1]["metrics"]["bad_rows"]
    assert manifest.gates == [
        Gate(name="pad-bos-end-distinct", passed=True, why="a pad that is also the end hides the end from training"),
        gates.gate("template-travels", True),
    ]
    assert json.loads(Path("run/tok/bad_rows.jsonl").read_text(encoding="utf-8"))["where"] == "a.jsonl:2"
