"""Masked and denoising rows: what is hidden, that packed documents stay apart, and that nothing depends on chance."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, TrainingArguments

from llmpipe.errors import StageError, StoppedError
from llmpipe.stages.pretrain import Settings
from llmpipe.training import arguments, denoising, flow, masked, models, objectives, shapes
from llmpipe.training.documents import PADDING, LoneRows, framing, write_pieces
from llmpipe.training.packing import IGNORED, padding_shares
from tests.stages.tiny import context_for, gates_of, passed, run_stage, same, stop_after

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
T5 = {"num_layers": 2, "d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2}
BART = {
    f"{side}_{key}": size
    for side in ("encoder", "decoder")
    for key, size in {"layers": 1, "attention_heads": 2, "ffn_dim": 64}.items()
} | {"d_model": 32}
ENCODERS = {
    "bert": SMALL,
    "roberta": SMALL,
    "modernbert": SMALL | {"num_hidden_layers": 4, "local_attention": 8},
}
SHAPES = {"masked": ("bert", SMALL), "denoising": ("t5", T5)}
PACKED = ("packed-documents-apart", "tied-embeddings", "checkpoint-replays")
HAS = {"masked": PACKED, "denoising": ("end-is-learned", "generation-stops", *PACKED)}
TEXTS = [
    "The duck went home.",
    "A shoe! A red shoe, and then another one, and nobody knew whose they were.",
    "Nora cried.",
]


@pytest.fixture
def mended(tokenizer: PreTrainedTokenizerFast, ctx: Any) -> Any:
    """A tokenizer with what each objective needs."""

    def mend(objective: str, arch: str) -> PreTrainedTokenizerFast:
        found = deepcopy(tokenizer)
        objectives.mend_special_tokens(found, objective, arch, ctx)
        return found

    return mend


def make(objective: str, tokenizer: Any, arch: str | None = None, *, scale: float = 8) -> Any:
    """Make a model whose weights are large enough that a leak shows in the first digit."""
    arch = arch or SHAPES[objective][0]
    shape = ENCODERS.get(arch, {"t5": T5, "bart": BART}.get(arch))
    torch.manual_seed(0)
    kind = {"masked": "masked-lm", "denoising": "seq2seq-lm"}[objective]
    model = models.build(arch, shape, tokenizer=tokenizer, context=64, kind=kind).eval()
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and "embed" not in name and "shared" not in name:
            weight.data *= scale
    return model


def rows_of(objective: str, model: Any, tokenizer: Any, folder: Path, texts: list[str] = TEXTS, **options: Any) -> Any:
    """Write texts and read them as the stage does."""
    whole_word = options.pop("whole_word", False)
    options = {"block": 64, "seed": 1, "packing": True} | options
    path = folder / "t.tokens"
    write_pieces(texts, tokenizer, path, shortest=2, longest=40, words=whole_word)
    if objective == "masked":
        return masked.MaskedRows(path, tokenizer, whole_word=whole_word, **options)
    return denoising.DenoisingRows(path, model, tokenizer, **options)


@torch.no_grad()
@pytest.mark.parametrize("arch", ENCODERS)
def test_a_packed_document_has_the_logits_it_has_alone_masked(arch, mended, tmp_path) -> None:
    tokenizer = mended("masked", arch)
    model = make("masked", tokenizer, arch)
    rows = rows_of("masked", model, tokenizer, tmp_path)
    batch = rows.__getitems__(range(len(rows)))
    seen = 0
    logits = model(**{k: v for k, v in masked.ready(model, batch).items() if k != "labels"}).logits
    leaking = model(input_ids=batch["input_ids"]).logits
    for row, documents in enumerate(batch["documents"]):
        for number in documents.unique().tolist():
            place = documents == number
            if number != PADDING:
                alone = model(input_ids=batch["input_ids"][row][place][None]).logits[0]
                assert torch.allclose(logits[row][place], alone, atol=1e-5)
                seen += 1
                if place.sum() < len(place):
                    assert not torch.allclose(leaking[row][place], alone, atol=1e-2)  # so the line above can fail
    assert seen == len(rows.lengths) > len(rows)
    assert objectives.keeps_apart(model, tokenizer, "masked", tokens=20)


@torch.no_grad()
def test_a_packed_document_has_the_logits_it_has_alone_denoising(mended, tmp_path, monkeypatch) -> None:
    tokenizer = mended("denoising", "t5")
    model = make("denoising", tokenizer)
    rows = rows_of("denoising", model, tokenizer, tmp_path)
    batch = rows.__getitems__(range(len(rows)))

    def packed() -> torch.Tensor:
        return model(**denoising.ready(model, batch)).logits

    logits = packed()
    with monkeypatch.context() as patch:
        patch.setattr(
            denoising, "same_document", lambda one, two: torch.ones(len(one), 1, one.shape[1], two.shape[1]) > 0
        )
        leaking = packed()
        assert not objectives.keeps_apart(model, tokenizer, "denoising")
    several = 0
    for row in range(len(rows)):
        for number in range(rows.bounds[row + 1] - rows.bounds[row]):
            source, target = batch["documents"][row] == number, batch["target_documents"][row] == number
            alone = model(
                input_ids=batch["input_ids"][row][source][None],
                decoder_input_ids=batch["decoder_input_ids"][row][target][None],
            ).logits[0]
            assert torch.allclose(logits[row][target], alone, atol=1e-5)
            if number:
                assert not torch.allclose(leaking[row][target], alone, atol=1e-2)
                several += 1
    assert several
    assert objectives.keeps_apart(model, tokenizer, "denoising", tokens=20)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("objective", SHAPES)
def test_rows_weigh_every_document_alike_however_they_are_laid(objective, packing, mended, tmp_path) -> None:
    tokenizer = mended(objective, SHAPES[objective][0])
    model = make(objective, tokenizer)
    rows = rows_of(objective, model, tokenizer, tmp_path, packing=packing)
    batch = rows.__getitems__(range(len(rows)))
    shown = Counter(batch["input_ids"].flatten().tolist())
    assert shown[framing(tokenizer)[1][0]] == len(rows.lengths)  # each has its end
    ready = objectives.READY[objective](model, batch)
    with torch.no_grad():
        loss = objectives.mean_nats(model(**{k: v for k, v in ready.items() if k != "labels"}), batch["labels"])
        own = model(**ready).loss  # the model's own mean, with the same shift or none
    assert torch.allclose(loss, own, atol=1e-5)


def test_fifteen_in_a_hundred_are_hidden_by_the_80_10_10_rule(mended) -> None:
    tokenizer = mended("masked", "bert")
    masking = masked.Masking.of(tokenizer, whole_word=False)
    ids = np.arange(20, 20_020) % 250 + 20
    shown, labels = masking.apply(ids, None, np.random.default_rng(0))
    asked = labels != IGNORED
    assert np.array_equal(labels[asked], ids[asked]) and np.array_equal(shown[~asked], ids[~asked])
    assert asked.mean() == pytest.approx(0.15, abs=0.01)
    hidden, kept = (shown == tokenizer.mask_token_id)[asked].mean(), (shown == ids)[asked].mean()
    assert (hidden, kept) == (pytest.approx(0.8, abs=0.02), pytest.approx(0.1, abs=0.02))
    swapped = shown[asked & (shown != ids) & (shown != tokenizer.mask_token_id)]
    assert not set(swapped.tolist()) & set(tokenizer.all_special_ids)
    short = [masking.apply(ids[:1], None, np.random.default_rng(seed))[1] for seed in range(20)]
    assert all((labels != IGNORED).any() for labels in short), "a document that hides nothing teaches nothing"


def test_whole_words_are_hidden_whole(mended, tmp_path) -> None:
    tokenizer = mended("masked", "bert")
    rows = rows_of("masked", None, tokenizer, tmp_path, TEXTS * 30, whole_word=True)
    halves = hidden = 0
    for piece in range(len(rows.lengths)):
        starts = rows.word_starts(piece)
        assert starts[0] and not starts.all()
        _, labels = rows.masking.apply(rows.ids(piece), starts, np.random.default_rng(piece))
        words = np.split(labels != IGNORED, np.flatnonzero(starts)[1:])
        halves += sum(word.any() != word.all() for word in words)
        hidden += sum(word.any() for word in words)
    assert (halves, hidden > 0) == (0, True)


def test_spans_are_put_back_where_they_were(mended) -> None:
    tokenizer = mended("denoising", "t5")
    sentinels = denoising.sentinel_ids(tokenizer)
    assert len(sentinels) == 100
    noise = denoising.SpanCorruption(np.array(sentinels))
    for length in (2, 3, 7, 20, 211):
        ids = np.arange(length) + 1000
        source, target = noise.apply(ids, np.random.default_rng(length))
        taken, spans = (int(count) for count in noise.counts(np.array(length)))
        assert len(source) == noise.source_tokens(np.array(length)) == length - taken + spans
        assert len(target) == taken + spans <= len(source)
        pieces: dict[int, list[int]] = {}
        for token in target.tolist():
            pieces.setdefault(token, []) if token in sentinels else pieces[list(pieces)[-1]].append(token)
        assert list(pieces) == sentinels[:spans]
        restored = [part for token in source.tolist() for part in pieces.get(token, [token])]
        assert restored == ids.tolist()
    assert taken / length == pytest.approx(0.15, abs=0.005) and taken / spans == pytest.approx(3, abs=0.2)


def test_infilling_says_the_whole_text(mended) -> None:
    noise = denoising.Infilling(mask_id=5)
    ids = np.arange(2000) + 1000
    source, target = noise.apply(ids, np.random.default_rng(0))
    assert np.array_equal(target, ids)
    kept = source[source != 5]
    assert len(kept) == 1400 and (np.diff(kept) > 0).all()  # 30 % are gone, the rest stands in its order
    assert (source == 5).sum() == pytest.approx(200, abs=30)  # spans of 3
    assert all(len(noise.apply(ids[:size], np.random.default_rng(size))[0]) <= size for size in range(1, 40))


@pytest.mark.parametrize("objective", SHAPES)
def test_draws_depend_on_the_seed_the_epoch_and_the_row_alone(objective, mended, tmp_path) -> None:
    tokenizer = mended(objective, SHAPES[objective][0])
    model = make(objective, tokenizer)
    rows = rows_of(objective, model, tokenizer, tmp_path, TEXTS * 4)
    assert rows.facts["padding_share"] < 0.2 < 0.3 < rows.facts["padding_share_unpacked"]
    first = rows.__getitems__([0, 1])
    rows.__getitems__([1])
    alone = rows.__getitems__([1])
    count = alone["input_ids"].shape[1]
    assert torch.equal(first["input_ids"][1, :count], alone["input_ids"][0])
    rows.epoch = 1
    assert not torch.equal(rows.__getitems__([1])["input_ids"], alone["input_ids"])


@pytest.mark.parametrize("objective", SHAPES)
def test_accumulation_changes_nothing(objective, mended, ctx) -> None:
    """Eight rows at once and one row eight times give the same weights, though BERT and T5 leave that to the caller."""
    tokenizer = mended(objective, SHAPES[objective][0])
    found = []
    for micro, passes in ((8, 1), (1, 8)):
        model = make(objective, tokenizer, scale=1)
        models.set_dropout(model, 0.0, None)
        rows = rows_of(objective, model, tokenizer, ctx.dir, TEXTS * 8)
        settings = Settings.model_validate({"model": {"size": 1000}, "precision": "fp32"})
        options = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.1, "save_strategy": "no", "max_grad_norm": 0.0}
        options |= {"per_device_train_batch_size": micro, "gradient_accumulation_steps": passes}
        args = arguments.build(
            TrainingArguments, ctx, settings, options=options, stage_defaults={}, rows=len(rows), row_tokens=64,
            measured=False, width=32,
        )  # fmt: skip
        trainer = objectives.trainer_for(objective, model=model, args=args, train_dataset=rows)
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        flow.fit(trainer, ctx, settings)
        found.append(model.state_dict())
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in found[0])
    assert not all(torch.allclose(found[0][name], before[name], atol=1e-3) for name in before)


@pytest.mark.parametrize("objective", SHAPES)
def test_the_dial_counts_as_transformers_does(objective, mended) -> None:
    arch = shapes.FAMILIES[objective]
    tokenizer = mended(objective, arch)
    size = 300_000
    shape = shapes.dial(size, vocab_size=len(tokenizer), objective=objective)
    kind = {"masked": "masked-lm", "denoising": "seq2seq-lm"}[objective]
    model = models.build(arch, shape, tokenizer=tokenizer, context=64, kind=kind)
    depth, width = model.config.num_hidden_layers, model.config.hidden_size
    counted = shapes.parameters(depth, width, len(tokenizer), objective=objective)
    assert model.num_parameters() == counted == pytest.approx(size, rel=0.15)


@pytest.mark.parametrize("objective", ["masked", "denoising"])
@pytest.mark.parametrize("size", [500_000, 10_000_000, 124_000_000])
def test_the_dial_comes_near_what_is_asked(size, objective) -> None:
    shape = shapes.dial(size, vocab_size=1024, objective=objective)
    depth, width = (
        (shape.get("num_hidden_layers") or shape["num_layers"]),
        (shape.get("hidden_size") or shape["d_model"]),
    )
    assert shapes.parameters(depth, width, 1024, objective=objective) == pytest.approx(size, rel=0.15)


def test_a_mended_tokenizer_closes_texts_and_keeps_its_ids(tokenizer, mended, tmp_path, ctx) -> None:
    found = mended("masked", "bert")
    found.save_pretrained(tmp_path / "t")
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path / "t")
    plain = tokenizer("The duck")["input_ids"]
    assert again("The duck")["input_ids"] == [*plain, tokenizer.eos_token_id]
    assert (again.cls_token, again.sep_token, again.mask_token) == ("<|bos|>", "<|end|>", "<|mask|>")
    assert again.mask_token_id == len(tokenizer)
    assert "the tokenizer has learned <|mask|>, which objective: masked needs" in [e["text"] for e in ctx.events]
    objectives.mend_special_tokens(again, "masked", "bert", ctx)
    assert len(again) == len(found), "what is there is not added twice"


def test_bart_is_refused_for_packing_and_trains_without(mended, tmp_path) -> None:
    settings = {"objective": "denoising", "model": {"arch": "bart", "config": BART}, "context": 64}
    settings |= {"data": {"builtin": "storyworld", "rows": 60}, "trainer": {"max_steps": 4}}
    settings |= {"tokenizer": saved(mended("causal", ""), tmp_path)}
    with pytest.raises(StageError) as error:
        run_stage("pretrain", settings, context_for(tmp_path / "a"))
    message = "packed documents have other logits in BartForConditionalGeneration than alone: "
    assert str(error.value) == message + "its positions do not begin anew in each"
    assert error.value.hint == "packing: false"
    made = run_stage("pretrain", settings | {"packing": False}, context_for(tmp_path / "b"))
    assert made.metrics["held_out_loss"] < made.metrics["held_out_loss_before"]
    assert 0 < made.metrics["padding_share"] < 0.5
    assert "held_out_perplexity" not in made.metrics and "bits_per_byte" not in made.metrics


def saved(tokenizer: Any, folder: Path) -> dict[str, str]:
    tokenizer.save_pretrained(folder / "tok")
    return {"path": str(folder / "tok")}


@pytest.mark.parametrize("objective", SHAPES)
def test_an_objective_resumes_to_the_bit_and_its_model_goes_on(objective, mended, tmp_path) -> None:
    arch, shape = SHAPES[objective]
    trainer = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 8, "eval_steps": 4}
    settings = {
        "objective": objective, "model": {"arch": arch, "config": shape}, "context": 64, "dropout": 0.1,
        "tokenizer": saved(mended("causal", ""), tmp_path), "trainer": trainer,
        "data": {"builtin": "storyworld", "rows": 9},
    }  # fmt: skip
    whole = run_stage("pretrain", settings, context_for(tmp_path / "a"))
    assert whole.metrics["steps"] * 4 > whole.metrics["pieces"], "less than an epoch proves nothing of the second"
    with pytest.raises(StoppedError):
        run_stage("pretrain", settings, context_for(tmp_path / "b", stop=stop_after(5, "interrupt")))
    resumed = run_stage("pretrain", settings, context_for(tmp_path / "b"))
    assert same(tmp_path / "a" / "x" / "model", tmp_path / "b" / "x" / "model")
    assert resumed.metrics["held_out_loss"] == whole.metrics["held_out_loss"]
    assert passed(resumed.gates) == gates_of("pretrain", *HAS[objective])

    more = settings | {"model": {"path": str(tmp_path / "a" / "x" / "model")}, "tokenizer": None}
    more = run_stage("pretrain", more | {"trainer": {"max_steps": 1}}, context_for(tmp_path / "c"))
    assert more.metrics["held_out_loss_before"] == pytest.approx(whole.metrics["held_out_loss"], abs=1e-5)
    is_one = {"masked": "a masked model", "denoising": "an encoder-decoder"}
    for wanted in {"masked", "denoising", "causal"} - {objective}:
        wrong = settings | {"objective": wanted, "model": {"path": str(tmp_path / "a" / "x" / "model")}}
        with pytest.raises(StageError) as error:
            run_stage("pretrain", wrong | {"tokenizer": None}, context_for(tmp_path / "d"))
        needed = is_one.get(wanted, "a causal model")
        assert f"{arch} is {is_one[objective]}; {needed} is needed" in str(error.value)


def test_a_causal_model_trains_on_rows_of_one_document(tokenizer, make_model, tmp_path) -> None:
    make_model(context=64).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    settings = {"data": {"builtin": "storyworld", "rows": 60}, "model": {"path": str(tmp_path / "m")}, "context": 64}
    made = run_stage(
        "pretrain", settings | {"packing": False, "trainer": {"max_steps": 4}}, context_for(tmp_path / "a")
    )
    assert made.metrics["held_out_loss"] < made.metrics["held_out_loss_before"]
    assert 0 < made.metrics["padding_share"] < 0.5


def test_a_row_of_one_document_asks_for_all_but_its_first_token(tokenizer, tmp_path) -> None:
    write_pieces(TEXTS, tokenizer, tmp_path / "t.tokens", shortest=1, longest=62, words=False)
    options = {"opening": [1], "closing": [2], "pad_id": 0, "vocab_size": 300, "block": 64, "seed": 0, "packing": False}
    batch = LoneRows(tmp_path / "t.tokens", **options).__getitems__([0, 1, 2])
    ids, labels = batch["input_ids"], batch["labels"]
    assert ids[:, 0].tolist() == [1, 1, 1]
    assert torch.equal(labels != IGNORED, (ids != 0) & (ids != 1))
    assert [tokenizer.decode(row[row != IGNORED]) for row in labels] == [text + "<|end|>" for text in TEXTS]


def test_padding_is_counted() -> None:
    assert padding_shares([4, 4, 8], rows=2, block=8) == {"padding_share": 0.0, "padding_share_unpacked": 1 - 16 / 24}
    assert padding_shares([4, 4, 8], rows=None, block=8) == {"padding_share": 1 - 16 / 24}


def test_a_model_that_takes_no_such_mask_is_refused_with_its_reason(mended, monkeypatch) -> None:
    """A failure of the probe is no leak, and is not called one."""

    def probe(*_: Any) -> None:
        raise TypeError("forward() got an unexpected mask\nand more")

    tokenizer = mended("masked", "bert")
    monkeypatch.setattr(objectives, "probe", probe)
    with pytest.raises(StageError) as error:
        objectives.refuse_leaks(make("masked", tokenizer), tokenizer, "masked")
    told = "takes no masks for packed rows (TypeError: forward() got an unexpected mask)"
    assert str(error.value).endswith(told) and error.value.hint == "packing: false"
