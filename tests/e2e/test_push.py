"""An export that goes to the hub, by the installed command: against a stand-in on loopback, and nowhere else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.unit.hub import COMMIT, TOKEN, Hub, hub

from .conftest import LLMPIPE, environment

__all__ = ["hub"]

OFFLINE = Path(__file__).parents[1] / "offline"


@pytest.fixture
def env(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """What the command runs in: its hub is the stand-in, and every other connection is refused and recorded."""
    found = environment(
        HF_ENDPOINT=hub.address, HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1", HF_HOME=str(tmp_path / "hf"),
        PYTHONPATH=f"{OFFLINE}:{Path(__file__).parents[2]}", ATTEMPTS=str(tmp_path / "attempts"),
    )  # fmt: skip
    found.pop("HF_HUB_OFFLINE", None)
    return found


def test_what_arrives_is_what_was_written(llmpipe, run_dir, hub, env, tmp_path) -> None:
    export = ("export", run_dir, "chat", "--to", "out", "--gguf", "F16", "--push", "me/stories")
    refused = llmpipe(*export, env=env, code=2)
    assert refused.stderr == (
        "--push me/stories: asks before it sends anything, and there is no terminal to ask on\n\n"
        "hint: add --yes to send without a question\n"
    )
    assert hub.asked == [] and not (llmpipe.folder / "out").exists()
    done = llmpipe(*export, "--yes", "--json", env=env)
    said = json.loads(done.stdout)
    assert said["push"] == {
        "repo": "me/stories", "url": f"{hub.address}/me/stories", "commit": COMMIT, "private": True,
    }  # fmt: skip
    arrived = hub.repos["me/stories"]["files"]
    assert arrived.pop(".gitattributes") == b""
    assert arrived == {name: (llmpipe.folder / "out" / name).read_bytes() for name in said["files"]}
    assert "model.safetensors" in arrived and "gguf/out-F16.gguf" in arrived
    assert TOKEN not in done.stdout + done.stderr
    assert "%" not in done.stderr, "a bar of some library"
    assert not (tmp_path / "attempts").exists(), (tmp_path / "attempts").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="pexpect has no terminal there")
def test_a_terminal_is_asked_and_a_no_is_kept(llmpipe, run_dir, hub, env) -> None:
    import pexpect

    arguments = ["export", str(run_dir), "base", "--to", "out", "--push", "me/stories"]
    terminal = pexpect.spawn(LLMPIPE, arguments, cwd=str(llmpipe.folder), env=env, timeout=120, encoding="utf-8")
    terminal.expect(r"send \d+ files, [\d.]+kB, to me/stories\?")
    shown = terminal.before
    assert "model.safetensors" in shown and "me/stories will be made, and is going to be private" in shown
    terminal.sendline("n")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0 and "nothing was sent" in terminal.before
    assert hub.sent == [] and (llmpipe.folder / "out" / "model.safetensors").is_file()
    assert TOKEN not in shown + terminal.before
