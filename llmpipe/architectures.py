"""The architectures of the installed transformers, read from its source like the options in `passthrough`.

transformers takes any key in a configuration and keeps a misspelt one as an attribute that nothing reads, so that a
model of the wrong size trains without a word. Here such keys are refused before torch is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from llmpipe import passthrough
from llmpipe.errors import StageError, did_you_mean

OURS = {
    "vocab_size": "the tokenizer decides it",
    "max_position_embeddings": "set `context:` of the stage",
    "n_positions": "set `context:` of the stage",
    "use_cache": "it is off in training and on afterwards",
    "bos_token_id": "the tokenizer decides it",
    "eos_token_id": "the tokenizer decides it",
    "pad_token_id": "the tokenizer decides it",
}
COMMON = {"hidden_size", "num_hidden_layers", "num_attention_heads"}
"""Names that every configuration understands, whatever it calls them itself."""


@cache
def _auto() -> Path:
    """Return the folder of transformers' auto classes."""
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        raise StageError("the package transformers is not installed", hint="pip install transformers")
    return Path(spec.origin).parent / "models" / "auto"


@cache
def _parsed(file: str) -> ast.Module:
    """Parse a file of auto classes; the longest of them takes a while."""
    return ast.parse((_auto() / file).read_text(encoding="utf-8"))


@cache
def _names(file: str, variable: str) -> dict[str, str]:
    """Read an OrderedDict of (model type, class name) pairs from transformers' auto classes."""
    for node in _parsed(file).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == variable:
            pairs = [item for item in ast.walk(node) if isinstance(item, ast.Tuple) and len(item.elts) == 2]
            texts = [[part.value for part in pair.elts if isinstance(part, ast.Constant)] for pair in pairs]
            return {str(pair[0]): str(pair[1]) for pair in texts if len(pair) == 2}
    raise StageError(f"the installed transformers has no {variable}", hint="pip install 'transformers>=5.23,<6'")


MAPPINGS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "denoising": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}
TWO_OF_THEM = {"causal": "llama and gpt2", "masked": "bert and modernbert", "denoising": "t5 and bart"}


def architectures(objective: str) -> list[str]:
    """Name the architectures that an objective can train; encoder–decoders are no masked models here."""
    names = _names("modeling_auto.py", MAPPINGS[objective])
    pairs = _names("modeling_auto.py", MAPPINGS["denoising"]) if objective == "masked" else {}
    return [name for name in names if name not in pairs]


def architecture_problem(arch: str) -> str | None:
    """Return what is wrong with the name of an architecture of any objective, or None."""
    known = list(dict.fromkeys(name for objective in MAPPINGS for name in architectures(objective)))
    if arch in known:
        return None
    near = did_you_mean(arch, known) or f"; it has {', '.join(TWO_OF_THEM.values())}"
    return f"transformers has no language model '{arch}'{near}"


def objective_problem(arch: str, objective: str) -> str | None:
    """Return why an objective cannot train an architecture, or None."""
    if arch in architectures(objective):
        return None
    fitting = [other for other in MAPPINGS if arch in architectures(other)]
    return f"{arch} is not for objective: {objective}, as {TWO_OF_THEM[objective]} are, but for {' or '.join(fitting)}"


def _config_class(arch: str) -> str | None:
    """Name the class of an architecture's configuration."""
    class_name = _names("auto_mappings.py", "CONFIG_MAPPING_NAMES").get(arch)
    if class_name is None:
        return None
    folder = _auto().parent / arch.replace("-", "_")  # a search through all of transformers takes a while
    return f"{f'transformers.models.{folder.name}' if folder.is_dir() else 'transformers'}.{class_name}"


def config_problems(arch: str, config: Mapping[str, object]) -> list[str]:
    """Return what is wrong with the keys of an architecture's configuration, one text for each."""
    found = [f"{key} is not yours to set: {OURS[key]}" for key in config if key in OURS]
    config_class = _config_class(arch)
    if config_class is None:
        return found
    rest = {key: value for key, value in config.items() if key not in OURS and key not in COMMON}
    wrong = passthrough.option_problems(config_class, rest)
    return found + [f"{key} {'is ' if message.startswith('not') else ''}{message}" for key, message in wrong]


def completed(arch: str, config: Mapping[str, object]) -> dict[str, object]:
    """Return an architecture's whole configuration: what is given, and the defaults that are plain values."""
    config_class = _config_class(arch)
    defaults = passthrough.options_of(config_class) if config_class else {}
    found: dict[str, object] = {}
    for name, option in defaults.items():
        with suppress(ValueError, SyntaxError):
            found[name] = ast.literal_eval(option.default)
    return found | dict(config)
