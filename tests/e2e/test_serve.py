"""llmpipe serve as it is installed, on a tiny run: OpenAI's own client, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import openai
import pytest

from tests.e2e.conftest import Shell

HELLO = [{"role": "user", "content": "Tell me a story."}]


def begun(llmpipe: Shell, *models: str) -> tuple[subprocess.Popen[str], dict[str, str], openai.OpenAI]:
    server = llmpipe.start("serve", *models, "--port", "0", "--no-memory", "--json")
    assert server.stdout is not None
    told = json.loads(server.stdout.readline())
    return server, told, openai.OpenAI(base_url=f"{told['address']}/v1", api_key=told["token"], max_retries=0)


def test_a_run_is_served_until_sigterm(llmpipe: Shell, run_dir: Path) -> None:
    server, told, client = begun(llmpipe, "runs/tiny:base", "runs/tiny:chat")
    try:
        assert told["models"] == ["runs/tiny:base", "runs/tiny:chat"]
        answer = client.chat.completions.create(model="runs/tiny:chat", messages=HELLO, max_tokens=4, seed=1)
        assert answer.usage is not None
        assert 1 <= answer.usage.completion_tokens <= 4
        options = {"include_usage": True}
        chunks = list(
            client.chat.completions.create(
                model="runs/tiny:chat", messages=HELLO, max_tokens=4, seed=1, stream=True, stream_options=options
            )
        )
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        assert streamed == answer.choices[0].message.content
        assert client.completions.create(model="runs/tiny:base", prompt="Once", max_tokens=3).usage is not None
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model="runs/tiny:base", prompt="Once upon a time " * 100)
        assert refused.value.code == "context_length_exceeded"
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="runs/tiny", messages=HELLO)
    finally:
        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=60)
    assert server.returncode == 0, said
    assert "Traceback" not in said


def test_ctrl_c_ends_it_with_130_and_a_run_alone_is_its_last_model(llmpipe: Shell, run_dir: Path) -> None:
    server, told, _ = begun(llmpipe, "runs/tiny")
    server.send_signal(signal.SIGINT)
    _, said = server.communicate(timeout=60)
    assert (server.returncode, told["models"]) == (130, ["runs/tiny:chat"])
    assert "runs/tiny: its last model, chat" in said
    assert "Traceback" not in said
