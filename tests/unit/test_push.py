"""Sending an export to the hub: asked before anything is sent, all of it and nothing else, and refusals in plain words.

Against a stand-in on loopback; tests/e2e has the installed command.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import typer
from huggingface_hub import constants

from llmpipe import console
from llmpipe.errors import StageError, UsageError
from llmpipe.export import Exported, show
from llmpipe.push import Destination, destination, push
from tests.unit.hub import COMMIT, TOKEN, Hub, hub

__all__ = ["hub"]

FILES = {
    "README.md": b"---\nlibrary_name: transformers\n---\n",
    "config.json": b"{}",
    "gguf/mine[1]-F16.gguf": b"GGUF",
    "model.safetensors": bytes(range(256)) * 20,
}
TO = Destination("me/mine", public=False, yes=True)


@pytest.fixture(autouse=True)
def sends_here(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(console, "err", console.Console(stderr=True, highlight=False, soft_wrap=True, width=200))


@pytest.fixture
def done(tmp_path: Path) -> Exported:
    """An export, in a folder with a file of the user's."""
    for name, content in FILES.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(content)
    (tmp_path / "out" / "notes.txt").write_text("mine alone", encoding="utf-8")
    sizes = {name: len(content) for name, content in FILES.items()}
    return Exported(run="run", stage="chat", to=str(tmp_path / "out"), parameters=1, merged=False, files=sizes)


def answers(monkeypatch: pytest.MonkeyPatch, hub: Hub, answer: bool) -> list[str]:
    """Answer the question, and check that nothing was sent before it."""
    asked: list[str] = []

    def confirm(text: str, err: bool) -> bool:
        asked.append(text)
        assert err and hub.sent == [], "sent before it was agreed to"
        return answer

    monkeypatch.setattr(typer, "confirm", confirm)
    return asked


def test_a_new_repository_is_private_and_gets_the_bytes(
    hub: Hub, done: Exported, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answers(monkeypatch, hub, True)
    show(done)
    found = push(done, Destination("me/mine", public=False, yes=False))
    assert found == {"repo": "me/mine", "url": f"{hub.address}/me/mine", "commit": COMMIT, "private": True}
    assert asked == ["  send 4 files, 5.2kB, to me/mine?"]
    assert hub.created == [{"name": "mine", "organization": "me", "visibility": "private"}]
    assert hub.repos["me/mine"]["files"] == {".gitattributes": b"", **FILES}
    assert [commit["parentCommit"] for commit in hub.commits] == ["a" * 40], "one commit, on what was looked at"
    assert {hashlib.sha256(content).hexdigest() for content in hub.stored.values()} == set(hub.stored)
    said = capsys.readouterr()
    assert said.out == "" and TOKEN not in said.err
    assert all(name in said.err for name in FILES)
    assert "\n  me/mine will be made, and is going to be private\n" in said.err
    assert said.err.endswith(f"\n  sent to {hub.address}/me/mine, which is private\n")


def test_the_token_goes_to_the_hub_alone(hub: Hub, done: Exported) -> None:
    push(done, TO)
    assert {key for _, path, key in hub.asked if path.startswith("/stored/")} == {""}, "the storage signs its addresses"
    assert {key for _, path, key in hub.asked if not path.startswith("/stored/")} == {f"Bearer {TOKEN}"}


def test_public_makes_a_new_repository_public(hub: Hub, done: Exported) -> None:
    found = push(done, Destination("me/mine", public=True, yes=True))
    assert found is not None and found["private"] is False
    assert [asked["visibility"] for asked in hub.created] == ["public"]


@pytest.mark.parametrize("private", [True, False])
def test_a_repository_that_is_there_stays_what_it_is(
    private: bool, hub: Hub, done: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    """What transformers would load beside the new weights goes, in the same commit; what else is there stays."""
    old = dict.fromkeys(("README.md", "model.safetensors", "adapter_config.json", "LICENSE"), b"old")
    hub.repos["me/mine"] = {"private": private, "files": dict(old)}
    found = push(done, Destination("me/mine", public=True, yes=True))
    assert found is not None and found["private"] is private
    assert hub.created == [] and len(hub.commits) == 1
    assert hub.repos["me/mine"]["files"] == {**FILES, "LICENSE": b"old"}
    assert (
        f"\n  me/mine is there, and stays {'private' if private else 'public'}: 2 of its 4 files are replaced, and "
        "adapter_config.json taken away, which would be loaded too, in one commit\n"
    ) in capsys.readouterr().err


def test_nothing_is_sent_without_a_yes(
    hub: Hub, done: Exported, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answers(monkeypatch, hub, False)
    assert push(done, Destination("me/mine", public=False, yes=False)) is None
    assert len(asked) == 1 and hub.sent == [] and hub.repos == {}
    assert capsys.readouterr().err.endswith("\n  nothing was sent\n")


LOGIN = "hf auth login, or HF_TOKEN, with a token that may write"
AGAIN = "the same command with --force tries again"
REFUSALS = {
    "the token": (
        ("/api/models", 401, "Invalid credentials in Authorization header"),
        "the hub does not accept the token (401)",
        f"{LOGIN}; then {AGAIN}",
    ),
    "the owner": (
        ("/api/repos/create", 403, "You don't have the rights to create a model under the namespace"),
        "the token may not write there (403)",
        f"{LOGIN}; then {AGAIN}",
    ),
    "a name that was taken meanwhile": (
        ("/api/repos/create", 409, "You already created this model repo"),
        "the repository came about or changed meanwhile (409)",
        f"the folder is written; {AGAIN}",
    ),
    "a commit": (
        ("/commit/", 412, "A commit has happened since"),
        "the repository changed meanwhile (412)",
        f"the folder is written; {AGAIN}",
    ),
    "a file": (
        ("/stored/", 400, "cut off"),
        "the hub could not take it: cut off",
        f"the folder is written; {AGAIN}",
    ),
    "the card": (
        ("/api/validate-yaml", 400, f"bad metadata of {TOKEN}"),
        "the hub could not take it: Invalid metadata in README.md.",
        f"the folder is written; {AGAIN}",
    ),
    "too much": (
        ("/preupload/", 413, f"too large for {TOKEN}"),
        "the hub could not take it: too large for the token",
        f"the folder is written; {AGAIN}",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_refusal_is_said_in_plain_words(what: str, hub: Hub, done: Exported) -> None:
    (path, status, said), message, hint = REFUSALS[what]
    hub.refuse[path] = (status, said)
    with pytest.raises(StageError) as failure:
        push(done, TO)
    assert (str(failure.value), failure.value.hint) == (f"--push me/mine: {message}", hint)
    assert hub.commits == []


def test_a_hub_out_of_reach_is_said_in_plain_words(done: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StageError, match=r"--push me/mine: the hub could not take it: \S+"):
        push(done, TO)


@pytest.mark.parametrize("repo", ["mine", "a/b/c", "me/", "/mine", "me/mi ne", "me/a--b", "me/mine.git", "../mine"])
def test_what_is_no_id_is_refused_before_anything_runs(repo: str, hub: Hub) -> None:
    with pytest.raises(UsageError) as failure:
        destination(repo, public=False, yes=True)
    assert str(failure.value) == f"--push {repo}: is no repository of the hub"
    assert failure.value.hint is not None and failure.value.hint.startswith("OWNER/NAME, of letters, digits, - and _")
    assert hub.asked == []


def test_without_a_token_nothing_is_begun(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UsageError) as failure:
        destination("me/mine", public=False, yes=True)
    assert str(failure.value) == "--push me/mine: the hub asks for a token, and there is none"
    assert failure.value.hint == LOGIN and hub.asked == []


def test_without_a_terminal_it_has_to_be_agreed_to_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(UsageError) as failure:
        destination("me/mine", public=False, yes=False)
    assert str(failure.value) == "--push me/mine: asks before it sends anything, and there is no terminal to ask on"
    assert failure.value.hint == "add --yes to send without a question"
    assert destination("me/mine", public=True, yes=True) == Destination("me/mine", public=True, yes=True)


@pytest.mark.parametrize(
    ("flags", "name"), [({"public": True, "yes": False}, "--public"), ({"public": False, "yes": True}, "--yes")]
)
def test_its_flags_go_with_it(flags: dict[str, bool], name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} goes with --push"):
        destination(None, **flags)
    assert destination(None, public=False, yes=False) is None
