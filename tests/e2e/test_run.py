"""`llmpipe run`: what it leaves on the disk, and that it does only what has to be done, and says why."""

import json
import math
import re
import shutil

import pytest

from .conftest import RECIPE, SECRETS, actions, environment, metrics, pickles, processor_s

TRAINED = {"precision.json", "checkpoints", "log.txt", "manifest.json", "metrics.jsonl", "model", "step.json"}
PRETRAINED = TRAINED | {"held_out.jsonl", "held_out.tokens", "tokens.json", "train.tokens"}
LAYOUT = {
    "": {
        *(".lock", ".lock.json", ".worker.lock", ".worker.lock.json", "recipe.yaml", "report.html", "report"),
        *("tok", "base", "chat", "scores"),
    },
    "tok": {"log.txt", "manifest.json", "pieces.svg", "report.json", "step.json", "tokenizer"},
    "base": PRETRAINED,
    "chat": TRAINED,
    "scores": {"log.txt", "manifest.json", "scores.json", "step.json"},
    "tok/tokenizer": {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"},
    "base/model": {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    },
}
MANIFEST_KEYS = """schema name kind stage_version fingerprint settings inputs outputs metrics gates seed versions
device started seconds""".split()
STEP_KEYS = {"name", "kind", "state", "action", "reason", "inputs", "changes", "fingerprint", "seconds", "metrics"}


@pytest.fixture
def without_torch(llmpipe):
    """Return an environment in which importing torch ends the process."""
    llmpipe.write("fake/torch.py", "raise SystemExit('torch was imported')")
    return environment(PYTHONPATH=str(llmpipe.folder / "fake"))


def test_the_folder_looks_as_documented(finished):
    run_dir, _ = finished
    for folder, names in LAYOUT.items():
        assert {path.name for path in (run_dir / folder).iterdir()} == names, folder


def test_no_pickle_is_among_the_outputs(finished):
    """By their bytes, whatever they are called: only the optimizer's state is one, which is read as tensors alone."""
    run_dir, _ = finished
    found = pickles(run_dir)
    assert {path.name for path in found} == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert {path.relative_to(run_dir).parts[1] for path in found} == {"checkpoints"}


def test_no_secret_is_in_a_run_directory(finished):
    """The run had them in its environment; its logs, report, model card and all the rest do not."""
    run_dir, done = finished
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert {"report.html", "log.txt", "manifest.json", "model-card.md"} <= {path.name for path in files}
    for secret in SECRETS.values():
        assert secret not in done.stdout + done.stderr
        assert not [path for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.parametrize("name", ["tok", "base", "chat", "scores"])
def test_a_manifest_has_exactly_its_public_keys(finished, name):
    run_dir, _ = finished
    manifest = json.loads((run_dir / name / "manifest.json").read_text())
    assert sorted(manifest) == sorted(MANIFEST_KEYS)
    assert manifest["schema"] == 1 and manifest["name"] == name and manifest["seed"] == 1
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in manifest["outputs"].values())
    assert all(gate["passed"] and gate["why"] for gate in manifest["gates"])
    step = json.loads((run_dir / name / "step.json").read_text())
    assert {key: manifest[key] for key in step} == step


@pytest.mark.parametrize("name", ["base", "chat"])
def test_metrics_have_step_and_time(finished, name):
    run_dir, _ = finished
    lines = metrics(run_dir / name)
    assert any("loss" in line for line in lines) and any("held_out_loss" in line for line in lines)
    for key in ("step", "time_s"):
        values = [line[key] for line in lines]
        assert values == sorted(values)
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert {line["max_steps"] for line in lines} == {6 if name == "base" else 4}


def test_json_is_all_that_stdout_holds(finished):
    run_dir, done = finished
    document = json.loads(done.stdout)  # fails on anything beside the one document
    assert set(document) == {"run", "seed", "steps"}
    assert (document["run"], document["seed"]) == ("runs/tiny", 1)
    assert [step["name"] for step in document["steps"]] == ["tok", "base", "chat", "scores"]
    for step in document["steps"]:
        assert set(step) == STEP_KEYS and step["state"] == "done"
        assert step["metrics"] == json.loads((run_dir / step["name"] / "manifest.json").read_text())["metrics"]


def test_nothing_is_printed_to_stdout_without_json(llmpipe, run_dir):
    assert llmpipe("run", "tiny.yaml").stdout == ""


def test_in_process_keeps_stdout_clean(llmpipe, run_dir):
    done = llmpipe("run", "tiny.yaml", "--in-process", "--only", "scores", "--force", "scores", "--json")
    assert json.loads(done.stdout)["steps"][3]["state"] == "done"


@pytest.mark.parametrize("what", ["tiny.yaml", "runs/tiny", "runs/tiny/recipe.yaml"])
def test_a_repeat_skips_all_without_torch(llmpipe, run_dir, without_torch, what):
    before = {path: path.stat().st_mtime_ns for path in run_dir.glob("*/**/*")}
    begun = processor_s()
    done = llmpipe("run", what, env=without_torch)
    assert processor_s() - begun < 2
    assert re.findall(r"^  (\w+) +\w+ +(\w+) +unchanged", done.stderr, re.M) == [
        ("tok", "skip"),
        ("base", "skip"),
        ("chat", "skip"),
        ("scores", "skip"),
    ]
    assert "everything is up to date" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in run_dir.glob("*/**/*")} == before
    assert not (llmpipe.folder / "runs/tiny/runs").exists()


def test_the_fake_torch_would_be_noticed(llmpipe, run_dir, without_torch):
    done = llmpipe("run", "tiny.yaml", "--force", "tok", "--only", "tok", code=1, env=without_torch)
    assert "tok" in done.stderr


def test_a_changed_key_reruns_its_stage_and_what_follows(llmpipe, run_dir):
    old = json.loads((run_dir / "chat/manifest.json").read_text())
    llmpipe.write("tiny.yaml", RECIPE.replace("max_steps: 4", "max_steps: 5"))
    done = llmpipe("run", "tiny.yaml", "--json")
    assert "  chat    sft        rerun  trainer.max_steps 4 → 5 " in done.stderr
    assert "  scores  eval       rerun  chat changed " in done.stderr
    assert re.search(r"^  base +pretrain +skip", done.stderr, re.M)
    kept = [path.name for path in (run_dir / ".history").iterdir()]
    assert sorted(name.split("-")[0] for name in kept) == ["chat", "scores"]
    was = json.loads((run_dir / ".history" / f"chat-{old['fingerprint'][:8]}" / "manifest.json").read_text())
    assert was == old
    assert json.loads((run_dir / "chat/manifest.json").read_text())["metrics"]["steps"] == 5
    assert "max_steps: 5" in (run_dir / "recipe.yaml").read_text()


def test_an_override_is_kept_in_the_run(llmpipe, run_dir):
    llmpipe("run", "tiny.yaml", "--set", "scores.max_new_tokens=3")
    assert set(actions(llmpipe, "runs/tiny").values()) == {"skip"}
    assert actions(llmpipe, "tiny.yaml")["scores"] == "rerun"


def test_selections(llmpipe, run_dir):
    for name in ("base", "chat", "scores"):
        shutil.rmtree(run_dir / name)
    llmpipe("run", "tiny.yaml", "--until", "base")
    assert actions(llmpipe, "tiny.yaml") == {"tok": "skip", "base": "skip", "chat": "run", "scores": "run"}
    done = llmpipe("run", "tiny.yaml", "--from", "scores", code=2)
    assert done.stderr == "scores needs chat, which is not finished\n\nhint: llmpipe run tiny.yaml --until chat\n"
    done = llmpipe("sft", "tiny.yaml", "--dry-run")
    assert re.search(r"^  chat +sft +run +first time", done.stderr, re.M)
    assert re.search(r"^  scores +eval +wait +not asked for", done.stderr, re.M)
    llmpipe("run", "tiny.yaml", "--only", "chat", "--force", "chat")
    assert actions(llmpipe, "tiny.yaml") == {"tok": "skip", "base": "skip", "chat": "skip", "scores": "run"}


def test_force_runs_an_unchanged_stage_again(llmpipe, run_dir):
    before = json.loads((run_dir / "tok/manifest.json").read_text())
    done = llmpipe("run", "tiny.yaml", "--only", "tok", "--force", "tok")
    assert "asked for with --force" in done.stderr
    assert json.loads((run_dir / "tok/manifest.json").read_text())["outputs"] == before["outputs"]
    assert (run_dir / ".history" / f"tok-{before['fingerprint'][:8]}").is_dir()


def test_a_stage_command_does_not_run_what_is_above_it(llmpipe):
    done = llmpipe("sft", "tiny.yaml", code=2)
    assert done.stderr == "chat needs base, which is not finished\n\nhint: llmpipe run tiny.yaml --until base\n"
    assert not (llmpipe.folder / "runs/tiny/chat").exists()


def test_an_output_that_is_gone_is_made_again(llmpipe, run_dir):
    (run_dir / "scores/scores.json").unlink()
    done = llmpipe("plan", "tiny.yaml")
    assert "rerun  its output scores.json is gone" in done.stderr


def test_a_dry_run_writes_nothing(llmpipe):
    llmpipe("run", "tiny.yaml", "--dry-run")
    assert not (llmpipe.folder / "runs").exists()
