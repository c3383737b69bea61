"""inspect on tiny models of the three families: what it shows is what the model computes, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForMaskedLM,
    LlamaForSequenceClassification,
    ModernBertConfig,
    ModernBertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from llmpipe import inspection
from llmpipe.errors import LlmpipeError, StageError, UsageError
from llmpipe.evaluation.attention import Attention, look
from tests.stages.conftest import SMALL

TEXT = "The cat sat"
SIZES = {**SMALL, "vocab_size": 300, "pad_token_id": 0}


@pytest.fixture
def folder_of(tokenizer: Any, make_model: Any, tmp_path: Path) -> Any:
    def make(arch: str) -> str:
        torch.manual_seed(1)
        tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
        sizes = SIZES | {"vocab_size": len(tokenizer)}
        if arch == "bert":
            model: Any = BertForMaskedLM(BertConfig(**sizes))
        elif arch == "modernbert":
            model = ModernBertForMaskedLM(ModernBertConfig(**sizes, local_attention=4))
        elif arch == "t5":
            model = T5ForConditionalGeneration(
                T5Config(
                    d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=2, vocab_size=301, decoder_start_token_id=0
                )
            )
        elif arch == "classifier":
            model = LlamaForSequenceClassification(make_model("llama").config)
        else:
            model = make_model(arch)
        model.save_pretrained(tmp_path / arch)
        tokenizer.save_pretrained(tmp_path / arch)
        return str(tmp_path / arch)

    return make


def seen(folder: str, text: str = TEXT, **how: Any) -> Any:
    with inspection.found(folder) as (source, ctx):
        return look(source, ctx, text, **{"target": None, "most_tokens": 64} | how)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "bert", "modernbert", "t5"])
def test_attention_is_of_every_layer_and_head_and_sums_to_1(arch, folder_of) -> None:
    found = seen(folder_of(arch), target="sat" if arch == "t5" else None)
    assert len(found.attentions) == (3 if arch == "t5" else 1)
    for one in found.attentions:
        rows, columns = (len(found.sides[name].ids) for name in (one.rows, one.columns))
        assert one.weights.shape == (2, 2, rows, columns)
        assert torch.allclose(one.weights.sum(-1), torch.ones(2, 2, rows), atol=1e-5)
        assert one.layers == [0, 1]
    if found.family == "decoder":
        assert float(found.attentions[0].weights.triu(1).abs().max()) == 0.0  # it sees nothing that comes later


def test_a_decoders_probabilities_are_the_softmax_of_its_logits(folder_of) -> None:
    folder = folder_of("llama")
    found = seen(folder)
    ids = torch.tensor([found.sides["tokens"].ids])
    shares = AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits[0].softmax(-1)
    assert [guess.position for guess in found.guesses] == list(range(ids.shape[1]))
    for guess, row, true in zip(found.guesses, shares, [*ids[0, 1:], None], strict=True):
        assert [share for _, share in guess.top] == pytest.approx(row.sort(descending=True).values[:5].tolist())
        assert guess.probability == (None if true is None else pytest.approx(float(row[true])))


def test_an_encoders_tokens_are_hidden_in_turn(folder_of, tokenizer) -> None:
    folder = folder_of("bert")
    found = seen(folder)
    ids = found.sides["tokens"].ids
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    assert [guess.position for guess in found.guesses] == list(range(1, len(ids)))  # not the begin token
    for guess in found.guesses:
        hidden = torch.tensor([ids])
        hidden[0, guess.position] = tokenizer.mask_token_id
        row = model(hidden).logits[0, guess.position].softmax(-1)
        assert guess.probability == pytest.approx(float(row[ids[guess.position]]))
        assert guess.top[0][1] == pytest.approx(float(row.max()))


def test_a_decoder_beside_an_encoder_reads_the_target(folder_of) -> None:
    folder = folder_of("t5")
    found = seen(folder, target="on")
    inside, answer = (torch.tensor([found.sides[name].ids]) for name in ("encoder", "decoder"))
    assert answer[0, 0] == 0
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    row = model(input_ids=inside, decoder_input_ids=answer).logits[0, 0].softmax(-1)
    assert found.guesses[0].probability == pytest.approx(float(row[answer[0, 1]]))
    assert len(seen(folder).sides["decoder"].ids) == 1


def test_tokens_join_to_the_text(folder_of) -> None:
    side = seen(folder_of("llama"), "naïve cat\n  sat").sides["tokens"]
    assert "".join(token for token in side.tokens[1:] if "Ã" not in token).startswith("na")
    assert "".join(seen(folder_of("llama")).sides["tokens"].tokens[1:]) == TEXT


def test_a_long_text_is_cut_off_and_it_is_said(folder_of) -> None:
    found = seen(folder_of("llama"), "cat " * 90, most_tokens=10)
    assert len(found.sides["tokens"].ids) == 10
    (note,) = found.notes
    assert re.fullmatch(r"the text has \d+ tokens; the first 10 are shown", note)
    assert len(seen(folder_of("llama"), "cat " * 90, most_tokens=1000).sides["tokens"].ids) == 64  # all it can see


def test_what_heads_do_has_a_name() -> None:
    itself, even = torch.eye(4), torch.full((4, 4), 0.25)
    before = torch.diag(torch.ones(3), -1)
    first = torch.zeros(4, 4)
    first[:, 0] = before[0, 0] = 1.0
    heads = torch.stack([itself, before, first, even])[None]
    found = Attention("x", "tokens", "tokens", [0], heads).habits()[0]
    assert [habit for habit, _ in found] == ["itself", "before", "first", "spread"]
    assert found[3][1] == pytest.approx(4.0)


def test_the_page_holds_it_all_and_asks_for_nothing(folder_of, tmp_path, capsys) -> None:
    folder, page = folder_of("llama"), tmp_path / "a.html"
    text = 'a </script><b> & "q"'
    inspection.inspect(folder, text, target=None, html=page, as_json=True)
    told = json.loads(capsys.readouterr().out)
    html = page.read_text(encoding="utf-8")
    (held,) = re.findall(r'<script type="application/json" id="content">(.*?)</script>', html, re.DOTALL)
    assert json.loads(held) == told
    assert told["text"] == text
    assert not re.search(r"https?://|src=|@import|url\(", html)
    assert html.count("<script") == html.count("</script>") == 2


def test_the_terminal_shows_it_in_80_columns(folder_of, capsys) -> None:
    inspection.inspect(folder_of("t5"), "The cat sat on the mat", target="on", html=None, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert "t5, encoder-decoder" in "\n".join(lines)
    assert any("from decoder to encoder" in line for line in lines)
    assert max(map(len, lines[1:])) <= 80


@pytest.mark.parametrize(
    ("arch", "how", "what", "hint"),
    [
        ("llama", {"text": " "}, "there is no text to look at", 'llmpipe inspect {} "The cat sat on the mat"'),
        (
            "llama",
            {"target": "x"},
            "--target is for encoder-decoders, and this is a causal model",
            "leave out --target",
        ),
        ("classifier", {}, "{}: it is a classifier, which guesses no tokens", "name the model that it began from"),
        ("llama", {"html": Path("no/a.html")}, "--html no/a.html: no is no folder", None),
    ],
)
def test_what_cannot_be_looked_at(arch, how, what, hint, folder_of) -> None:
    folder = folder_of(arch)
    given = {"text": TEXT, "target": None, "html": None, "as_json": False} | how
    with pytest.raises((StageError, UsageError)) as caught:
        inspection.inspect(folder, given.pop("text"), **given)
    assert str(caught.value) == what.format(folder)
    assert caught.value.hint == (hint and hint.format(folder))


def test_names_that_are_no_model(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text("name: x\nstages:\n  base: {kind: pretrain}\n", encoding="utf-8")
    wrong = {
        "nowhere": "nowhere: no such run, stage, folder or GGUF file",
        "run": "run is a run; name one of its stages",
        "run:bass": "run has no stage bass, did you mean base?",
        "run/base": "stage base is not finished",
    }
    for name, what in wrong.items():
        with pytest.raises(LlmpipeError) as caught, inspection.found(name):
            pass
        assert str(caught.value) == what
