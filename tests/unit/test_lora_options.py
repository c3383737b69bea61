"""What a recipe may write under `lora:`, said at its place before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmpipe import lora, stages
from llmpipe.passthrough import options_of
from tests.unit.test_mistakes import problems

PPO = """name: x
stages:
  ppo:
    kind: rlhf-ppo
    model: {path: chat}
    reward: {path: judge}
    data: {path: p.jsonl}
    OPTIONS
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folders that the recipe names; `chat` is an adapter."""
    for name, mark in (("chat", "adapter_config.json"), ("judge", "config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / mark).write_text("{}")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    return tmp_path


def test_what_is_reserved_is_an_option_of_peft() -> None:
    assert lora.RESERVED.keys() | lora.DEFAULTS.keys() <= options_of("peft.LoraConfig").keys()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("lora: {}", None),
        ("lora: {r: 8, lora_alpha: 16, target_modules: all-linear, lora_dropout: 0.0, use_rslora: true}", None),
        ("lora: {target_modules: [q_proj, v_proj]}", None),
        ("lora: {rank: 8}", "8:12: stages.ppo.lora.rank: not an option of LoraConfig"),
        ("lora: {r: eight}", "8:15: stages.ppo.lora.r: must be a whole number (int), not the text 'eight'"),
        ("lora: {task_type: CAUSAL_LM}", "8:12: stages.ppo.lora.task_type: is reserved: it is a language model's"),
        ("lora: {init_lora_weights: pissa}", "is reserved: an adapter begins as nothing"),
        ("lora: {base_model_name_or_path: x}", "is reserved: set `model:` of the stage"),
        ("lora: {lora_dropout: 0.1}", "lora.lora_dropout makes the probabilities before and after a step differ"),
        ("{lora: {}, trainer: {gradient_checkpointing: true}}", "with lora: gives wrong gradients"),
        ("{lora: {}, trainer: {activation_checkpointing: true}}", "with lora: gives wrong gradients"),
        ("{lora: {}, value_model: head, trainer: {gradient_checkpointing: true}}", None),
        ("{lora: {}, quantize: nf4}", None),
        ("quantize: nf4", "quantize: nf4 is for the model under an adapter; add lora: {}"),
        (
            "{lora: {}, quantize: nf4, rollout: {engine: vllm, url: 'http://gpu:8000'}}",
            "samples from the model in full",
        ),
        ("rollout: {engine: vllm, url: 'http://gpu:8000'}", "rollout.engine: vllm needs lora:"),
        ("{lora: {}, rollout: {engine: vllm, url: 'http://gpu:8000'}}", None),
        ("{lora: {}, rollout: {engine: vllm}}", "engine: vllm and url: belong together"),
        ("{lora: {}, rollout: {engine: vllm, url: 'gpu:8000'}}", "stages.ppo.rollout.url"),
    ],
)
def test_options(folder: Path, options: str, said: str | None) -> None:
    several = options.removeprefix("{").removesuffix("}").replace(", trainer", "\n    trainer")
    several = several.replace(", rollout", "\n    rollout").replace(", value_model", "\n    value_model")
    several = several.replace(", quantize", "\n    quantize")
    found = problems(folder, PPO.replace("OPTIONS", several if options.startswith("{") else options))
    assert len(found) == (said is not None), found
    assert all(said is not None and said in problem for problem in found)


SFT = """name: x
stages:
  tuned:
    kind: KIND
    model: {path: chat}
    data: {path: p.jsonl}
"""


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("sft", "lora: {}", None),
        ("sft", "lora: {lora_dropout: 0.1, use_dora: true}", None),
        ("sft", "lora: {trainable_token_indices: [3, 4]}", None),
        ("sft", "lora: {rank: 8}", "7:12: stages.tuned.lora.rank: not an option of LoraConfig"),
        ("sft", "lora: {modules_to_save: [lm_head]}", "is reserved: an adapter is trained here, and the model under"),
        ("sft", "lora: {init_lora_weights: pissa}", "is reserved: an adapter begins as nothing"),
        ("reward", "lora: {lora_dropout: 0.1, use_dora: true}", None),
        ("reward", "lora: {rank: 8}", "7:12: stages.tuned.lora.rank: not an option of LoraConfig"),
        ("reward", "lora: {trainable_token_indices: [3]}", "is reserved: an adapter is trained here, and the model"),
        *((kind, "lora: {}\n    quantize: nf4", None) for kind in ("sft", "lora", "dpo", "kto")),
        *(
            (kind, "quantize: nf4", "quantize: nf4 is for the model under an adapter; add lora: {}")
            for kind in ("sft", "dpo", "kto")
        ),
        ("lora", "quantize: nf4", None),
        ("sft", "lora: {}\n    quantize: int8", "stages.tuned.quantize: must be 'nf4'"),
        ("kto", "lora: {r: 4}", None),
        ("kto", "lora: {lora_dropout: 0.1}", "lora.lora_dropout makes the policy differ from the reference before it"),
        ("dpo", "lora: {r: 4, use_dora: true}", None),
        ("dpo", "lora: {trainable_token_indices: [3, 4]}", "is reserved: an adapter is trained here, and the model"),
        ("dpo", "lora: {lora_dropout: 0.1}", "lora.lora_dropout makes the policy differ from the reference before it"),
        ("lora", "", None),
        ("lora", "lora: {r: 4}", None),
        ("lora", "lora: null", "7:11: stages.tuned.lora: must be a mapping"),
        ("lora", "r: 4", "7:5: stages.tuned.r: unknown key"),
    ],
)
def test_options_of_a_supervised_stage(folder: Path, kind: str, options: str, said: str | None) -> None:
    found = problems(folder, SFT.replace("KIND", kind) + f"    {options}\n")
    assert len(found) == (said is not None), found
    assert all(said is not None and said in problem for problem in found)


@pytest.mark.parametrize(
    ("kind", "settings", "made"),
    [
        ("sft", {}, "causal-lm"),
        ("sft", {"lora": {}}, "adapter"),
        ("lora", {}, "adapter"),
        ("reward", {"lora": {}}, "reward-model"),
        ("dpo", {}, "causal-lm"),
        ("dpo", {"lora": {}}, "adapter"),
        ("kto", {}, "causal-lm"),
        ("kto", {"lora": {}}, "adapter"),
    ],
)
def test_what_comes_out(kind: str, settings: dict[str, Any], made: str) -> None:
    stage = stages.load(kind)
    assert stage.produces(stage.Settings.model_validate({"kind": kind, **settings})) == made
