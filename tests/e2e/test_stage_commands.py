"""Stages made from flags, one command after the other: the run's recipe.yaml grows, and repeats the whole run."""

import json

import pytest

from .conftest import actions

TOKENIZER = ("tokenizer", "--run", "mine", "--data", "texts/*.txt", "--set", "vocab_size=280")
PRETRAIN = ("pretrain", "--run", "mine", "--data", "texts/*.txt", "--model", "50k")
PRETRAIN += ("--set", "context=32", "--set", "trainer.max_steps=3", "--set", "trainer.per_device_train_batch_size=2")
SFT = ("sft", "--run", "mine", "--data", "chat.jsonl", "--set", "trainer.max_steps=2")
LORA = ("lora", "--run", "mine", "--model", "sft", "--data", "chat.jsonl", "--set", "trainer.max_steps=2")
EVAL = ("eval", "--run", "mine", "--model", "pretrain", "--model", "lora", "--set", "max_tokens=100")

EXAMPLES = {
    "tokenizer": "--data 'texts/*.txt'",
    "pretrain": "--data 'texts/*.txt' --model 10M",
    "sft": "--data chat.jsonl",
    "lora": "--data chat.jsonl",
    "eval": "--model sft",
}


def test_a_run_grows_by_flags_and_repeats_as_a_recipe(llmpipe):
    for number in range(3):
        llmpipe.write(f"texts/{number}.txt", f"Once upon a time duck {number} found a shoe. " * 40)
    rows = [{"prompt": f"Say {word}", "completion": word} for word in ("duck", "shoe", "wolf", "lamb") * 5]
    llmpipe.write("chat.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    known = []
    for command in (TOKENIZER, PRETRAIN, SFT, LORA, EVAL):
        run = llmpipe.here if command in (LORA, EVAL) else llmpipe  # torch is loaded for each of the others
        done = json.loads(run(*command, "--json").stdout)
        known.append(command[0])
        assert [(step["name"], step["state"]) for step in done["steps"]] == [(name, "done") for name in known]
    assert "vocab_size: 280" in (llmpipe.folder / "mine/recipe.yaml").read_text()
    assert set(actions(llmpipe, "mine").values()) == {"skip"}
    assert "everything is up to date" in llmpipe("run", "mine/recipe.yaml", cwd=llmpipe.folder / "texts" / "..").stderr
    assert "everything is up to date" in llmpipe(*SFT).stderr
    changed = llmpipe("sft", "--run", "mine", "--set", "trainer.max_steps=3", "--dry-run").stderr
    assert "rerun  trainer.max_steps 2 → 3" in changed, "the same name updates the stage and keeps its other keys"
    assert "max_steps: 2" in (llmpipe.folder / "mine/recipe.yaml").read_text(), "a dry run writes nothing"
    again = llmpipe("run", "mine/recipe.yaml", "--run", "again")
    assert "leaked" not in again.stderr, "a worker that merged an adapter has left nothing behind"
    first, second = ((llmpipe.folder / name / "sft/model/model.safetensors").read_bytes() for name in ("mine", "again"))
    assert first == second


WRONG = {
    "no file": (("sft", "--data", "no.jsonl"), "--data no.jsonl: no such file, folder or stage\n"),
    "no such input": (("tokenizer", "--model", "base"), "a tokenizer stage takes no --model\n"),
    "a name that is taken": (("sft", "--name", "base"), "stage 'base' of runs/tiny/recipe.yaml is a pretrain stage\n"),
    "no value": (("sft", "--set", "context"), "--set context: "),
    "a misspelt option": (
        ("sft", "--name", "chat", "--set", "trainer.max_step=3"),
        "stages.chat.trainer.max_step: not an option of SFTConfig, did you mean max_steps?\n",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_flags_change_nothing(llmpipe, run_dir, name):
    (kind, *flags), message = WRONG[name]
    before = (run_dir / "recipe.yaml").read_bytes()
    done = llmpipe(kind, "--run", "runs/tiny", *flags, code=2)
    assert message in done.stderr and done.stdout == ""
    assert (run_dir / "recipe.yaml").read_bytes() == before
    assert set(actions(llmpipe, "runs/tiny").values()) == {"skip"}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_bare_command_shows_an_example(llmpipe, kind):
    done = llmpipe(kind, code=2)
    assert done.stderr == (
        f"llmpipe {kind} needs a recipe, or a run directory and flags\n\n"
        f"hint: llmpipe {kind} --run runs/mine {EXAMPLES[kind]}\n"
    )


def test_flags_for_inputs_do_not_go_with_a_recipe(llmpipe):
    done = llmpipe("sft", "tiny.yaml", "--data", "x.jsonl", code=2)
    assert done.stderr.startswith("--data goes with --run; in a recipe, inputs are written down\n")
