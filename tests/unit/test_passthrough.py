"""The options of the installed Hugging Face classes, read from source: names, types, defaults, messages."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmpipe.errors import StageError
from llmpipe.option import Option, type_problem
from llmpipe.passthrough import option_problems, options_of

needs_hf = pytest.mark.skipif(
    not all(find_spec(name) for name in ("transformers", "trl", "peft")),
    reason="reads the source of trl and peft",
)


def option(declared: str, *, default: str = "1", choices: tuple[str, ...] = ()) -> Option:
    return Option("x", declared, default, "", "Config", choices)


# ---- Reading the source -----------------------------------------------------------------------


@needs_hf
@pytest.mark.parametrize(
    "name",
    [
        *("learning_rate", "max_steps", "lr_scheduler_type", "gradient_accumulation_steps"),
        *("packing", "assistant_only_loss", "max_length"),
    ],
)
def test_a_trainer_option_has_a_type_a_default_and_a_help_text(name: str) -> None:
    found = options_of("trl.SFTConfig")[name]

    assert found.name == name
    assert found.type
    assert found.default
    assert found.help
    assert "\n" not in found.help


@needs_hf
def test_the_subclass_wins() -> None:
    base, sub = (options_of(name)["learning_rate"] for name in ("transformers.TrainingArguments", "trl.SFTConfig"))

    assert (base.default, base.owner) == ("5e-5", "TrainingArguments")
    assert (sub.default, sub.owner) == ("2e-5", "SFTConfig")
    assert options_of("trl.SFTConfig")["logging_steps"].owner == "_BaseConfig"


@needs_hf
def test_a_default_that_is_a_constant_or_a_factory_is_resolved() -> None:
    assert options_of("trl.SFTConfig")["optim"].default == '"adamw_torch_fused"'
    assert options_of("peft.LoraConfig")["rank_pattern"].default == "{}"


@needs_hf
def test_model_configs_are_read_from_annotations_and_from_init() -> None:
    llama = options_of("transformers.LlamaConfig")
    quantization = options_of("transformers.BitsAndBytesConfig")

    assert (llama["hidden_size"].type, llama["hidden_size"].default) == ("int", "4096")
    assert llama["initializer_range"].default == "0.02"  # interval(min=0.0, max=1.0)(default=0.02)
    assert llama["architectures"].owner == "PreTrainedConfig"
    assert "base_model_tp_plan" not in llama  # a class attribute, not an option
    assert quantization["load_in_4bit"].default == "False"
    assert "4-bit" in quantization["load_in_4bit"].help  # from the docstring


def package_with(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "hf_like").mkdir()
    (folder / "hf_like" / "__init__.py").write_text("from .config import *\nraise ImportError('never import me')\n")
    (folder / "hf_like" / "config.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    options_of.cache_clear()
    for cached in ("_package", "_parsed", "_declared"):
        getattr(sys.modules["llmpipe.passthrough"], cached).cache_clear()


def test_a_class_is_parsed_and_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = '''
from dataclasses import dataclass, field
from typing import ClassVar
class Mixin:
    note: str = "no option"
@dataclass
class Base(Mixin):
    """Base.

    Args:
        depth (`int`, *optional*):
            How deep,
            in layers.
        other: no entry
    """
    depth: "int | None" = None
    rate: float = field(default=1e-3, metadata={"help": "50%% of it."})
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    required: str = field(metadata={"help": "Needed."})
    kind: ClassVar[str] = "base"
    hidden: int = field(default=1, init=False)
@dataclass
class SmallConfig(Base):
    rate: float = 1e-4
class OldConfig:
    def __init__(self, width=3, *, name: str, **kwargs): ...
class FreeConfig:
    def __init__(self, **kwargs): ...
'''
    package_with(source, tmp_path, monkeypatch)

    small = options_of("hf_like.SmallConfig")
    old = options_of("hf_like.OldConfig")

    assert list(small) == ["depth", "rate", "sizes", "required"]
    assert small["depth"] == Option("depth", "int | None", "None", "How deep, in layers.", "Base")
    assert small["sizes"] == Option("sizes", "list[int]", "[1, 2]", "", "Base")
    assert small["required"] == Option("required", "str", "", "Needed.", "Base")
    assert (small["rate"].default, small["rate"].owner) == ("1e-4", "SmallConfig")
    assert options_of("hf_like.Base")["rate"].help == "50% of it."
    assert old == {
        "width": Option("width", "Any", "3", "", "OldConfig"),
        "name": Option("name", "str", "", "", "OldConfig"),
    }
    with pytest.raises(StageError, match="has no class FreeConfig that declares options"):
        options_of("hf_like.FreeConfig")
    with pytest.raises(StageError, match="The installed hf_like has no class Missing") as error:
        options_of("hf_like.Missing")
    assert error.value.hint == "Check the name, and the version: pip show hf_like"


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(StageError, match="The package no_such_package is not installed") as error:
        options_of("no_such_package.Config")

    assert error.value.hint == "pip install no_such_package"


@needs_hf
def test_nothing_heavy_is_imported_and_it_is_quick() -> None:
    """In a process of its own: this one may have imported torch for another test."""
    script = """
import json, sys, time
from llmpipe.passthrough import option_problems, options_of
start = time.perf_counter()
option_problems("trl.SFTConfig", {"learning_rate": "2e-5", "optim": "adam"})
for name in ("transformers.TrainingArguments", "peft.LoraConfig", "transformers.LlamaConfig"):
    options_of(name)
heavy = {"torch", "transformers", "trl", "peft", "accelerate", "huggingface_hub"} & sys.modules.keys()
print(json.dumps([time.perf_counter() - start, sorted(heavy)]))
"""
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    seconds, heavy = json.loads(output)

    assert heavy == []
    assert seconds < 1


# ---- Checking values --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        *[("float", good) for good in (1, 2e-5, float("nan"), float("inf"))],
        *[("int", -1), ("bool", False), ("str", ""), ("str", "5"), ("dict[str, Any]", {"a": None})],
        *[("float | None", None), ("Optional[int]", None), ("Union[int, str]", "a"), ("Union[int, str]", 1)],
        *[("list[int]", [1, 2]), ("list[float]", [1, 0.5]), ("List[str]", []), ("list", [1, "a"])],
        *[("list[str] | str | None", good) for good in (["a"], "a", None)],
        *[("dict | str | None", good) for good in ({}, "a.json", None)],
        *[("set[str]", ["a"]), ("Sequence[int]", [1]), ("list[tuple[int, int]]", [[0, 4]])],
        *[("Any", good) for good in (None, True, 1, "a", [], {})],
        *[("Optional[EvaConfig]", {"rho": 2}), ("str | torch.dtype | None", "bfloat16"), ("peft.X", 3)],
        *[
            ("Literal['a', 'b']", "b"),
            ("bool | Literal['eva']", True),
            ("str | None | Literal[False]", False),
        ],
        *[("Literal['pissa', 'pissa_niter_[number of iters]']", "pissa_niter_16"), ("'int | None'", None)],
        *[("Optional[Literal['a']]", None), ("typing.Optional[typing.List[str]]", ["a"])],
    ],
)
def test_a_value_of_the_declared_type_is_accepted(declared: str, value: object) -> None:
    assert type_problem(option(declared), value) is None


@pytest.mark.parametrize(
    ("declared", "value", "message"),
    [
        ("float", "2e-5", "must be a number (float), not the text '2e-5'; write 2e-5 without quotes"),
        ("float", "fast", "must be a number (float), not the text 'fast'"),
        ("float", True, "must be a number (float), not true"),
        ("float", None, "must be a number (float), not null; leave the line out for the default 1"),
        ("float | None", "x", "must be a number (float | None), not the text 'x'"),
        ("int", "12", "must be a whole number (int), not the text '12'; write 12 without quotes"),
        ("int", "1.5", "must be a whole number (int), not the text '1.5'"),
        ("int", 1.5, "must be a whole number (int), not 1.5"),
        ("int", 100.0, "must be a whole number (int), not 100.0; write 100"),
        ("int", False, "must be a whole number (int), not false"),
        ("int | float", "a", "must be a number (int | float), not the text 'a'"),
        ("bool", "yes", "must be true or false (bool), not the text 'yes'; write true"),
        ("bool", "Off", "must be true or false (bool), not the text 'Off'; write false"),
        ("bool", 1, "must be true or false (bool), not 1; write true"),
        ("bool", 2, "must be true or false (bool), not 2"),
        ("str", 5, 'must be a text (str), not 5; write "5" in quotes'),
        ("str", True, 'must be a text (str), not true; write "true" in quotes'),
        ("str", ["a"], 'must be a text (str), not ["a"]'),
        ("list[str]", "a", "must be a list (list[str]), not the text 'a'; write [a]"),
        ("list[int]", [1, "a"], 'must be a list (list[int]), not [1, "a"]'),
        ("list[int]", [True], "must be a list (list[int]), not [true]"),
        ("list[str] | str | None", [1], "must be a list or a text (list[str] | str | None), not [1]"),
        (
            "dict | str | None",
            3,
            'must be a mapping or a text (dict | str | None), not 3; write "3" in quotes',
        ),
        ("dict", "a", "must be a mapping (dict), not the text 'a'"),
        ("Literal['none', 'all']", "al", "'al' is not one of none, all; did you mean all?"),
        ("Literal['none', 'all']", 3, "must be one of none, all, not 3"),
        ("bool | Literal['eva']", 3, "must be true or false or one of eva, not 3"),
        ("Literal[1, 2]", 3, "must be as declared (Literal[1, 2]), not 3"),
    ],
)
def test_a_value_of_another_type_is_refused(declared: str, value: object, message: str) -> None:
    assert type_problem(option(declared), value) == message


def test_none_is_accepted_where_it_is_the_default() -> None:
    assert type_problem(option("int", default="None"), None) is None  # PEFT: num_virtual_tokens


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("cosine", None),
        ("cosin", "'cosin' is not one of no, linear, cosine; did you mean cosine?"),
        ("zzz", "'zzz' is not one of no, linear, cosine"),
        (False, 'must be one of no, linear, cosine, not false; write "no" in quotes'),
        (3, "must be one of no, linear, cosine, not 3"),
    ],
)
def test_an_enum_means_its_values_only(value: object, message: str | None) -> None:
    scheduler = option("SchedulerType | str", default='"linear"', choices=("no", "linear", "cosine"))

    assert type_problem(scheduler, value) == message


@needs_hf
def test_every_problem_of_a_recipe_is_told_in_its_order() -> None:
    values = {
        "lerning_rate": 1e-5,
        "max_steps": 100,
        "learning_rate": "2e-5",
        "save_strategy": False,
        "loss_type": "nnl",
        "lr_scheduler_type": "cosin",
        "zzz": 1,
    }

    problems = option_problems("trl.SFTConfig", values)

    assert [key for key, _ in problems] == [key for key in values if key != "max_steps"]
    told = dict(problems)
    assert told["lerning_rate"] == "not an option of SFTConfig, did you mean learning_rate?"
    assert told["zzz"] == "not an option of SFTConfig"
    assert told["learning_rate"] == "must be a number (float), not the text '2e-5'; write 2e-5 without quotes"
    assert told["save_strategy"].endswith('not false; write "no" in quotes')
    assert told["loss_type"].startswith("'nnl' is not one of nll, dft")  # metadata choices
    assert told["lr_scheduler_type"].startswith("'cosin' is not one of linear, cosine,")
    assert told["lr_scheduler_type"].endswith("; did you mean cosine?")


@needs_hf
def test_of_a_long_list_of_choices_the_near_ones_are_shown() -> None:
    ((_, message),) = option_problems("trl.SFTConfig", {"optim": "adamw_torch_fuse"})

    assert message.startswith("'adamw_torch_fuse' is not one of adamw_torch_fused, ")
    assert message.endswith(", ...; did you mean adamw_torch_fused?")


@needs_hf
def test_a_usual_recipe_has_no_problems() -> None:
    trainer = {
        "learning_rate": 2e-5,
        "max_steps": 100,
        "optim": "adamw_torch",
        "report_to": ["wandb"],
        "bf16": True,
    }
    trainer |= {"warmup_steps": 10, "eval_strategy": "steps", "lr_scheduler_kwargs": {"num_cycles": 2}}
    lora = {
        "r": 8,
        "target_modules": ["q_proj"],
        "init_lora_weights": "pissa_niter_4",
        "task_type": "CAUSAL_LM",
    }

    assert option_problems("trl.SFTConfig", trainer) == []
    assert option_problems("peft.LoraConfig", lora | {"use_bdlora": {"nblocks": 2}}) == []
