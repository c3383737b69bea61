"""What a plan says of a model by its configuration, against the model that transformers builds of it."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from llmpipe.artifact import StepRecord
from llmpipe.forecast import forecast
from tests.unit.test_estimate import record

SMALL = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
CASES = [
    (AutoModelForMaskedLM, "bert", SMALL),
    (AutoModelForMaskedLM, "roberta", {"num_hidden_layers": 2}),
    (AutoModelForMaskedLM, "modernbert", {}),
    (AutoModelForCausalLM, "gpt2", {}),
    (AutoModelForCausalLM, "llama", SMALL | {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    (AutoModelForCausalLM, "qwen3", SMALL | {"num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True}),
    (AutoModelForCausalLM, "gemma2", {"num_hidden_layers": 2}),
    (AutoModelForCausalLM, "phi", SMALL),
    (AutoModelForSeq2SeqLM, "t5", {}),
    (AutoModelForSeq2SeqLM, "bart", {"decoder_layers": 3}),
]


def planned(arch: str, config: dict[str, object]) -> list[StepRecord]:
    tok = record("tok", kind="tokenizer", vocab_size=8192, algorithm="bpe")
    model = {"arch": arch, "config": config}
    return [tok, record("base", model=model, tokenizer={"stage": "tok"}, trainer={}, context=64)]


@pytest.mark.parametrize(("loader", "arch", "config"), CASES)
def test_the_parameters_of_a_configuration(tmp_path, loader, arch, config) -> None:
    with torch.device("meta"):
        shape = AutoConfig.for_model(arch, vocab_size=8192, pad_token_id=0, **config)
        model = loader.from_config(shape)
    estimate = forecast(planned(arch, config), tmp_path)["base"]
    assert estimate.parameters == pytest.approx(sum(one.numel() for one in model.parameters()), rel=0.06)


@pytest.mark.parametrize("arch", ["mamba", "mixtral"])
def test_a_model_of_another_kind_is_left_out(tmp_path, arch) -> None:
    assert forecast(planned(arch, {}), tmp_path) == {}
