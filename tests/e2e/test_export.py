"""The model of a finished run, taken out by the installed command."""

import json

import pytest

from .conftest import pickles


def test_a_model_leaves_its_run(llmpipe, run_dir):
    said = json.loads(llmpipe("export", run_dir, "chat", "--to", "out", "--gguf", "q8_0", "--json").stdout)
    assert said["to"] == "out" and said["gguf"]["file"] == "gguf/out-Q8_0.gguf"
    out = llmpipe.folder / "out"
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == set(said["files"])
    assert not pickles(out)
    card = (llmpipe.folder / "out" / "README.md").read_text(encoding="utf-8")
    assert "| scores | perplexity, held-out text |" in card and str(llmpipe.folder) not in card
    again = llmpipe("export", run_dir, "base", "--to", "out", "--json", code=2)
    assert json.loads(again.stdout)["error"]["problems"] == [
        {"where": "--to out", "path": None, "message": "the folder is not empty"}
    ]
    shown = llmpipe("export", run_dir, "base", "--to", "out", "--force")
    assert shown.stdout == "" and shown.stderr.startswith("out · 30.2k parameters\n\n  README.md ")
    assert "%" not in shown.stderr, "a bar of some library"


@pytest.mark.parametrize("stage", ["tok", "scores"])
def test_what_is_no_model_does_not(llmpipe, run_dir, stage):
    done = llmpipe("export", run_dir, stage, "--to", "out", code=2)
    kind = {"tok": "tokenizer", "scores": "eval"}[stage]
    assert done.stderr == (
        f"stage {stage} makes no model: it is a {kind} stage\n\nhint: those with a model: base, chat\n"
    )
    assert not (llmpipe.folder / "out").exists()
