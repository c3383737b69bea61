"""Perplexity, generation and tokenizers against the slow and obvious way of doing the same."""

from __future__ import annotations

import math

import pytest
import torch

from llmpipe.data import storyworld
from llmpipe.evaluation.generate import answers
from llmpipe.evaluation.perplexity import score_texts
from llmpipe.stages import tokenizer as stage
from llmpipe.training import models, shapes


@pytest.mark.parametrize("add_bos", [True, False])
def test_every_token_is_scored_once(make_model, tokenizer, add_bos) -> None:
    model = make_model().eval()
    texts = [*storyworld.corpus(stories=3, seed=1), "a", "Nora."]
    score = score_texts(model, tokenizer, texts, window=16, batch_tokens=64, add_bos=add_bos)
    nats, tokens = 0.0, 0
    for text in texts:
        ids = [tokenizer.bos_token_id] * add_bos + tokenizer(text, add_special_tokens=False)["input_ids"]
        for index in range(1, len(ids)):
            first = (index - 1) // 16 * 16
            with torch.no_grad():
                logits = model(torch.tensor([ids[first:index]])).logits[0, -1]
            nats, tokens = nats - float(logits.log_softmax(-1)[ids[index]]), tokens + 1
    assert score.tokens == tokens
    assert score.nats == pytest.approx(nats, rel=1e-5)
    assert score.bits_per_byte == pytest.approx(
        nats / math.log(2) / sum(len(text.encode()) for text in texts), rel=1e-5
    )


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(make_model, tokenizer) -> None:
    model = make_model().eval()
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    score = score_texts(model, tokenizer, ["Nora saw a duck."], window=16)
    assert score.perplexity == pytest.approx(len(tokenizer), rel=1e-4)


def test_answers_in_a_batch_are_those_alone(make_model, tokenizer) -> None:
    prompts = ["Tell me a story about a duck and a shoe.", "Hi", "Write a short story with a wolf and a very old lamp."]
    for arch in ("llama", "gpt2"):
        model = make_model(arch, context=128).eval()
        options = {"chat": True, "max_new_tokens": 8, "temperature": 0.0, "seed": 0}
        together = answers(model, tokenizer, prompts, **options)
        assert together == [answers(model, tokenizer, [prompt], **options)[0] for prompt in prompts]


def test_sampling_repeats_and_leaves_the_generator_alone(make_model, tokenizer) -> None:
    model = make_model().eval()
    options = {"chat": False, "max_new_tokens": 12, "temperature": 1.0}
    state = torch.get_rng_state()
    one, two, other = (answers(model, tokenizer, ["Nora"] * 3, **options, seed=seed) for seed in (1, 1, 2))
    assert one == two != other
    assert torch.equal(state, torch.get_rng_state())


def test_an_answer_ends_where_the_context_does(make_model, tokenizer) -> None:
    model = make_model("gpt2", context=16).eval()
    (answer,) = answers(model, tokenizer, ["One day Nora"], chat=False, max_new_tokens=500, temperature=0.0, seed=0)
    assert len(tokenizer(answer)["input_ids"]) <= 16


TEXT = "Nora's café: 3 €!\n\n\tdef f(x):  return x**2  # 日本語 🦆\n"


@pytest.mark.parametrize("algorithm", ["bpe", "byte", "char", "unigram", "wordpiece", "word"])
def test_tokenizers_give_back_what_they_were_given(algorithm, tmp_path, ctx) -> None:
    from transformers import AutoTokenizer

    from llmpipe.settings import PathSource

    (tmp_path / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    source = PathSource(path=str(tmp_path / "text.txt"), weight=1.0)
    settings = stage.Settings(
        kind="tokenizer", data=[source], algorithm=algorithm, vocab_size=400, special_tokens=["<x>"]
    )
    result = stage.run(settings, ctx)
    tokenizer = AutoTokenizer.from_pretrained(ctx.dir / "tokenizer")
    assert all(gate.passed for gate in result.gates)
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert len(tokenizer) <= 400
    assert tokenizer.chat_template == stage.CHAT_TEMPLATE
    assert tokenizer("<|user|><x>", add_special_tokens=False)["input_ids"] == [
        tokenizer.convert_tokens_to_ids(token) for token in ("<|user|>", "<x>")
    ]
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    text = TEXT if algorithm in ("bpe", "byte", "char") else "Nora's"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    shown = tokenizer.decode(ids)
    by_words = algorithm in ("wordpiece", "word")
    assert shown.replace(" ", "") == text.replace(" ", "") if by_words else shown == text
    if algorithm == "byte":
        assert len(ids) == len(TEXT.encode())
    if algorithm == "char":
        assert len(ids) == len(TEXT)


@pytest.mark.parametrize("size", [500_000, 4_000_000, 25_000_000, 124_000_000, 1_000_000_000])
@pytest.mark.parametrize("vocab_size", [1024, 32_768])
def test_the_dial_comes_near_what_is_asked(size, vocab_size) -> None:
    if size < 3 * vocab_size * 32:
        pytest.skip("the embeddings alone are larger")
    shape = shapes.dial(size, vocab_size=vocab_size)
    width, depth = shape["hidden_size"], shape["num_hidden_layers"]
    got = shapes.parameters(depth, width, vocab_size)
    assert 0.8 < got / size < 1.25
    assert width % shape["num_attention_heads"] == 0


def test_the_dial_counts_as_transformers_does(make_model, tokenizer) -> None:
    shape = shapes.dial(500_000, vocab_size=len(tokenizer))
    model = models.build("llama", shape, tokenizer=tokenizer, context=64)
    counted = shapes.parameters(shape["num_hidden_layers"], shape["hidden_size"], len(tokenizer))
    assert sum(parameter.numel() for parameter in model.parameters()) == counted


def test_dropout_reaches_attention(make_model, ctx) -> None:
    model = make_model().train()
    ids = torch.arange(10, 30)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)
    models.set_dropout(model, 0.5, ctx)
    assert not torch.equal(model(ids).logits, model(ids).logits)
    assert {"event": "say", "text": "dropout 0.5 for attention_dropout"} in ctx.events
