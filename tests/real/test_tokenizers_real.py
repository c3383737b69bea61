"""The vocabularies of GPT-2 and BERT give the ids of their own files through our loader, and stand beside ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmpipe.artifact import StepRecord
from llmpipe.context import Context
from llmpipe.settings import PathSource
from tests.real.shared import real

HARD = "Nora's café: 3 €!\n\n\tdef f(x):  return x**2  # 日本語 🦆\n  don't  "


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    (tmp_path / "tok").mkdir()
    record = StepRecord(name="tok", kind="tokenizer", stage_version=1, fingerprint="", seed=1, settings={}, inputs=[])
    return Context(run_dir=tmp_path, step=record, emit=lambda event: None)


@pytest.mark.parametrize("name", ["gpt2", "bert-uncased"])
def test_a_folder_gives_the_ids_of_its_own_tokenizer(name: str, ctx: Context) -> None:
    """Beside AutoTokenizer's, those of the classes that read the older files of the same folder."""
    from transformers import AutoTokenizer, BertTokenizer, GPT2Tokenizer

    from llmpipe.training.models import load_tokenizer

    folder = real("tokenizer", name)
    ours = load_tokenizer(PathSource(path=str(folder)), ctx)
    texts = [HARD, *real("pretrain", "wikitext2.valid.txt").read_text(encoding="utf-8").splitlines()[:300]]
    texts += real("pretrain", "multilingual", "debian-faq.zh-cn.txt").read_text(encoding="utf-8").splitlines()[:50]
    expected = AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]
    assert ours(texts)["input_ids"] == expected
    if name == "gpt2":
        vocab, merges = str(folder / "vocab.json"), str(folder / "merges.txt")
        older = GPT2Tokenizer(vocab=vocab, merges=merges)
    else:
        older = BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=True)
    assert older(texts)["input_ids"] == expected
    assert ours.decode(ours(HARD, add_special_tokens=False)["input_ids"]) == HARD or name != "gpt2"


def test_the_report_on_three_languages(ctx: Context) -> None:
    """Ours is trained on all of them, GPT-2's on English: that has to show, language by language."""
    from llmpipe.stages import tokenizer as stage

    files = [real("pretrain", "multilingual", f"debian-faq.{name}.txt") for name in ("en", "ru", "zh-cn")]
    settings = stage.Settings(
        data=[PathSource(path=str(file)) for file in files],
        vocab_size=2000,
        compare=[PathSource(path=str(real("tokenizer", name))) for name in ("gpt2", "bert-uncased")],
    )
    metrics = stage.run(settings, ctx).metrics
    found = json.loads((ctx.dir / "report.json").read_text(encoding="utf-8"))
    groups, gpt2, bert = found["groups"], found["compared"]["gpt2"], found["compared"]["bert-uncased"]
    assert len(groups) == 3
    ratio = {name: group["bytes_per_token"] / gpt2["groups"][name]["bytes_per_token"] for name, group in groups.items()}
    language = {Path(name).suffixes[0][1:]: value for name, value in ratio.items()}
    assert min(language, key=language.__getitem__) == "en" and language["en"] < 1
    assert language["ru"] > 1.5 and language["zh-cn"] > 1.5
    assert gpt2["vocab_size"] == 50257 and gpt2["unknown_share"] == 0
    assert bert["vocab_size"] == 30522 and bert["unknown_share"] > 0.01
    assert found["unused_share"] < 0.1
    assert metrics["gpt2_bytes_per_token"] == gpt2["bytes_per_token"] < metrics["bytes_per_token"]
