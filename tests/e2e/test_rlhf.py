"""`llmpipe rlhf` plans and writes two stages; the user's reward functions run only when that was said."""

import json
import shutil

import pytest

from .conftest import actions

MODEL = ("--run", "runs/tiny", "--model", "chat")
CODE = """\
from pathlib import Path

Path("it_ran").touch()

def brevity(prompts, answers):
    return [-len(answer) for answer in answers]
"""


@pytest.fixture
def prefs(llmpipe):
    rows = [
        {"prompt": f"Say {word}", "chosen": word, "rejected": "no"} for word in ("duck", "shoe", "wolf", "lamb") * 5
    ]
    return llmpipe.write("prefs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def test_rlhf_plans_a_reward_model_and_a_policy_that_begin_from_one_model(llmpipe, run_dir, prefs):
    before = (run_dir / "recipe.yaml").read_bytes()
    settings = ("--set", "reward.trainer.max_steps=5", "--set", "ppo.rollouts=3")
    done = json.loads(llmpipe("rlhf", *MODEL, "--data", "prefs.jsonl", *settings, "--dry-run", "--json").stdout)
    steps = {step["name"]: step for step in done["steps"]}
    assert {name: step["action"] for name, step in steps.items()} == {
        **dict.fromkeys(("tok", "base", "chat", "scores"), "skip"),
        **dict.fromkeys(("reward", "ppo"), "run"),
    }
    assert steps["reward"]["inputs"] == ["chat", str(prefs)]
    assert steps["ppo"]["inputs"] == ["chat", "reward", str(prefs)]
    assert (run_dir / "recipe.yaml").read_bytes() == before, "a dry run writes nothing"
    prompts = llmpipe.write("prompts.jsonl", '{"prompt": "Say lamp"}\n')
    found = llmpipe("rlhf", *MODEL, "--data", "prefs.jsonl", "--prompts", "prompts.jsonl", "--dry-run").stderr
    plan, _, data = " ".join(found.split()).partition(" data file read as columns ")
    assert plan.endswith(f"chat, reward, {prompts} → ppo")
    data = data.partition(" parameters ")[0]
    assert data == "reward prefs.jsonl prompt-pairs prompt, chosen, rejected ppo prompts.jsonl prompt prompt"


def test_rlhf_runs_those_stages_of_a_recipe_and_nothing_above(llmpipe, run_dir, prefs):
    added = "  judge: {kind: reward, model: chat, data: {path: prefs.jsonl}}\n  ppo: {kind: rlhf-ppo, reward: judge}\n"
    recipe = llmpipe.write("more.yaml", (llmpipe.folder / "tiny.yaml").read_text() + added)
    planned = json.loads(llmpipe("rlhf", recipe, "--run", "runs/tiny", "--dry-run", "--json").stdout)["steps"]
    assert [(step["name"], step["action"]) for step in planned if step["action"] != "skip"] == [
        ("judge", "run"),
        ("ppo", "run"),
    ]
    done = llmpipe("rlhf", recipe, "--run", "runs/new", code=2)
    assert done.stderr.startswith("judge needs chat, which is not finished\n")


def test_code_is_refused_until_it_is_allowed(llmpipe, run_dir, prefs):
    llmpipe.write("rewards.py", CODE)
    before = (run_dir / "recipe.yaml").read_bytes()
    command = ("rlhf-ppo", *MODEL, "--data", "prefs.jsonl", "--reward", "rewards.py:brevity")
    planned = json.loads(llmpipe(*command, "--dry-run", "--json").stdout)["steps"]
    assert planned[-1]["inputs"] == ["chat", f"{llmpipe.folder}/rewards.py:brevity", str(prefs)]
    done = llmpipe(*command, code=2)
    assert done.stderr == (
        "rewards.py: stage rlhf-ppo would run 'brevity' of this file\n\n"
        "hint: read it; if it may run, add --allow-code\n"
    )
    assert done.stdout == ""
    assert (run_dir / "recipe.yaml").read_bytes() == before
    assert not (run_dir / "rlhf-ppo").exists()
    assert not (llmpipe.folder / "it_ran").exists()
    error = json.loads(llmpipe(*command, "--json", code=2).stdout)["error"]
    assert error["problems"][0]["where"] == "rewards.py"


def test_a_kept_recipe_finds_its_function_from_anywhere(llmpipe, run_dir, prefs):
    llmpipe.write("rewards.py", CODE)
    ppo = "  ppo: {kind: rlhf-ppo, model: chat, data: {path: prefs.jsonl}, reward: {function: rewards.py:brevity}}\n"
    llmpipe.write("more.yaml", (llmpipe.folder / "tiny.yaml").read_text() + ppo)
    llmpipe("run", "more.yaml", "--run", "runs/tiny", "--until", "chat")
    moved = shutil.copytree(run_dir, llmpipe.folder / "elsewhere" / "tiny")
    assert actions(llmpipe, moved)["ppo"] == "run"
    llmpipe.write("rewards.py", "")
    assert "has no function 'brevity'; it has none" in llmpipe("plan", moved, code=2).stderr


def test_a_bare_rlhf_shows_an_example(llmpipe):
    assert llmpipe("rlhf", code=2).stderr == (
        "llmpipe rlhf needs a recipe, or a run directory and flags\n\n"
        "hint: llmpipe rlhf --run runs/mine --model sft --data pairs.jsonl\n"
    )
