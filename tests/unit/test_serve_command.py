"""What llmpipe serve refuses before it loads a model."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmpipe import packages
from llmpipe.cli import app


def refused(*arguments: str, **environment: str) -> str:
    done = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "200", **environment}).invoke(app, ["serve", "none", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    return done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_other_machines_are_let_in_only_by_a_flag(host: str) -> None:
    assert refused("--host", host) == (
        f"--host {host} lets other machines reach the server, over HTTP that anyone on the way can read\n\n"
        "hint: leave --host out and come through ssh -L or a TLS proxy; or add --expose\n"
    )


@pytest.mark.parametrize("token", ["", "short", "with a space in its middle", "ümlauts-are-not-ascii"])
def test_a_token_that_is_easily_guessed_or_cannot_be_sent_is_refused(tmp_path: Path, token: str) -> None:
    file = tmp_path / "token"
    file.write_text(token + "\n", encoding="utf-8")
    said = f"the token of {file} is not 16 or more ASCII characters without spaces"
    assert refused("--token-file", str(file)).replace("\n", "").startswith(said.replace("\n", ""))
    assert "the token of LLMPIPE_TOKEN is not 16" in refused(LLMPIPE_TOKEN=token)


def test_a_token_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    assert "gone cannot be read: " in refused("--token-file", str(tmp_path / "gone"))


def test_a_port_that_is_taken_is_said_before_models_are_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refused("--port", str(port)) == (
            f"cannot listen on 127.0.0.1, port {port}: Address already in use\n\nhint: --port 0 takes a free one\n"
        )


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "is_there", lambda module: module != "uvicorn")
    assert refused() == (
        "serve needs the package uvicorn, which is not installed\n\nhint: pip install 'llmpipe[serve]'\n"
    )
