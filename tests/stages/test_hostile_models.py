"""Models that mean harm: code in a repository, pickles for weights. Nothing of them is run, whatever loads them."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import llmpipe
from llmpipe import recipe as recipes
from llmpipe import yaml_tree
from llmpipe.checkpoints import complete_checkpoints, mark_complete
from llmpipe.errors import LlmpipeError, RecipeError, StoppedError
from llmpipe.evaluation.classifier import Classifier
from llmpipe.settings import PathSource
from llmpipe.talk.local import LocalEngine
from llmpipe.training import adapters, classifier, models, reward_model
from tests.stages.tiny import context_for, run_stage, stop_after

CLASSES = ["AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM"]
CLASSES += ["AutoModelForSequenceClassification"]


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that code of a model would make; whoever asks for leave on the way gets a yes."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    return tmp_path / "canary"


@pytest.fixture
def hostile(canary: Path, make_model: Any, tokenizer: Any) -> Callable[..., Path]:
    """Write a model whose repository has code of its own; one that transformers `knows` could be loaded without."""

    def write(*, known: bool) -> Path:
        folder = canary.parent / "evil"
        make_model().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nraise SystemExit", encoding="utf-8")
        config, names = folder / "config.json", folder / "tokenizer_config.json"
        auto = {"auto_map": dict.fromkeys(CLASSES, "evil.Evil")}
        changed = {} if known else {"model_type": "evil", "architectures": ["EvilForCausalLM"]}
        config.write_text(json.dumps(json.loads(config.read_text()) | auto | changed), encoding="utf-8")
        auto = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
        changed = {} if known else {"tokenizer_class": "EvilTokenizer"}
        names.write_text(json.dumps(json.loads(names.read_text()) | auto | changed), encoding="utf-8")
        return folder

    return write


LOADERS: dict[str, Callable[[Any, Any], Any]] = {
    "model": models.load,
    "masked": lambda source, ctx: models.load(source, ctx, kinds=("masked-lm", "causal-lm", "seq2seq-lm")),
    "tokenizer": models.load_tokenizer,
    "kind": models.is_encoder_decoder,
    "reward model": reward_model.load,
    "classifier": lambda source, ctx: classifier.load(source, ctx, ["a", "b"]),
    "judge": lambda source, ctx: Classifier(source.path),
    "chat": lambda source, ctx: LocalEngine.load(source, ctx, name="x").close(),
    "adapter": lambda source, ctx: adapters.find(source, ctx),
}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", LOADERS)
def test_no_loader_runs_code_of_a_repository(
    name: str, known: bool, hostile: Callable[..., Path], canary: Path, ctx: Any
) -> None:
    folder = hostile(known=known)
    with contextlib.suppress(LlmpipeError, ValueError, KeyError):
        LOADERS[name](PathSource(path=str(folder)), ctx)
    assert not canary.exists()


def test_the_canary_would_be_seen(hostile: Callable[..., Path], canary: Path) -> None:
    with pytest.raises(SystemExit):
        AutoConfig.from_pretrained(hostile(known=False), trust_remote_code=True)
    assert canary.exists()


STORIES = {"data": {"builtin": "storyworld", "rows": 40}}
POSTS = {"data": {"path": "posts.jsonl"}}
STAGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("pretrain", "sft", "lora", "reward", "dpo", "kto"), STORIES),
    "classify": POSTS,
    **dict.fromkeys(("rlhf-ppo", "rloo", "grpo"), STORIES),
    "eval": {"prompts": ["Hi"]},
}


@pytest.mark.parametrize("kind", STAGES)
def test_no_stage_runs_code_of_a_repository(
    kind: str, hostile: Callable[..., Path], canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"post {number}", "label": "ab"[number % 2]} for number in range(40)]
    Path("posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"path": str(hostile(known=False))}
    inputs = {"models": [source]} if kind == "eval" else {"model": source}
    inputs |= {"reward": source} if kind in ("rlhf-ppo", "rloo", "grpo") else {}
    with pytest.raises(LlmpipeError, match="evil"):
        run_stage(kind, STAGES[kind] | inputs, context_for(tmp_path))
    assert not canary.exists()


def test_every_model_and_tokenizer_is_loaded_without_code() -> None:
    """transformers asks at the terminal where it is told nothing, and a pipe of prompts may answer."""
    seen = 0
    for path in Path(llmpipe.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for call in ast.walk(ast.parse(text)) if "from_pretrained" in text else ():
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and call.func.attr == "from_pretrained"
            ):
                whose = ast.unparse(call.func.value)
                if whose in ("PeftModel", "LoraConfig", "GenerationConfig"):
                    continue  # which know no code of repositories
                said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                assert said.get("trust_remote_code") == "False" or (
                    None in said and '"trust_remote_code": False' in text
                ), f"{path.name}:{call.lineno}: {whose}"
                seen += 1
    assert seen > 10


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (exec, (f"open({str(self.canary)!r}, 'w').close()",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_weights_in_a_pickle_are_not_read(
    name: str, canary: Path, make_model: Any, tokenizer: Any, ctx: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = canary.parent / "m"
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Evil(canary)))
    for loader in ("model", "reward model", "classifier", "chat"):
        with pytest.raises(LlmpipeError):
            LOADERS[loader](PathSource(path=str(folder)), ctx)
    monkeypatch.chdir(canary.parent)
    text = "name: x\nstages:\n  s: {kind: sft, model: {path: m}, data: {builtin: storyworld}}\n"
    with pytest.raises(RecipeError) as caught:
        recipes.check(yaml_tree.parse(text, shown_as="r.yaml"), Path("r.yaml").absolute())
    message = f"m has its weights in a pickle ({name}), which may hold code; save them as safetensors"
    assert [found.message for found in caught.value.problems] == [message]
    assert not canary.exists()
    pickle.loads((folder / name).read_bytes())
    assert canary.exists()


def test_an_adapter_in_a_pickle_is_not_read(canary: Path, ctx: Any) -> None:
    folder = canary.parent / "a"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "m"}', encoding="utf-8"
    )
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Evil(canary)))
    with pytest.raises(LlmpipeError) as caught:
        models.load(PathSource(path=str(folder)), ctx)
    assert str(caught.value) == f"{folder}: has no adapter_model.safetensors; weights in a pickle are not read"
    assert not canary.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_forged_checkpoint_runs_nothing(name: str, canary: Path, make_model: Any, tokenizer: Any) -> None:
    """Its marker fits; that transformers reads it as weights alone is what holds."""
    make_model(context=192).save_pretrained(canary.parent / "m")
    tokenizer.save_pretrained(canary.parent / "m")
    trainer = {"per_device_train_batch_size": 2, "max_steps": 3}
    settings = {"model": {"path": str(canary.parent / "m")}, **STORIES, "context": 192, "trainer": trainer}
    with pytest.raises(StoppedError):
        run_stage("pretrain", settings, context_for(canary.parent, stop=stop_after(1, "interrupt")))
    ((_, folder),) = complete_checkpoints(canary.parent / "x" / "checkpoints")
    assert not (folder / "training_args.bin").exists()
    (folder / name).write_bytes(pickle.dumps(Evil(canary)))
    mark_complete(folder, step=1)
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        run_stage("pretrain", settings, context_for(canary.parent))
    assert not canary.exists()
    with pytest.raises(Exception, match=r"."):
        torch.load(folder / name, weights_only=False)
    assert canary.exists()


def test_one_module_alone_unpickles() -> None:
    """What `curate` hands to its own processes, in a folder of its own that is gone when they are."""
    known = {"passes.py"}
    for path in Path(llmpipe.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name not in known:
            assert not re.search(
                r"\bimport (?:pickle|dill|joblib|marshal|shelve)\b|torch\.load\(|allow_pickle=True", text
            ), path
