"""A server that speaks the part of vLLM's HTTP interface that PPO uses, and really samples from a tiny model.

It reads the adapters that it is sent with peft alone, as vLLM reads them with code of its own. `faults` makes it a bad
server in one of the ways that there are.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel


class Stub(ThreadingHTTPServer):
    """The server, and what it was asked."""

    def __init__(self, base: PreTrainedModel, *, max_model_len: int, faults: set[str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.base, self.max_model_len, self.faults = base, max_model_len, faults
        self.served: dict[str, PreTrainedModel] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.failures_left = 0
        self.working = threading.Lock()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    def load(self, body: dict[str, Any]) -> tuple[int, Any]:
        name = body["lora_name"]
        if "no updating" in self.faults:
            return 404, {"detail": "Not Found"}
        if "small rank" in self.faults:
            return error(400, "LoRA rank 4 is greater than max_lora_rank 2.")
        if name in self.served:
            return error(400, f"The lora adapter '{name}' has already been loaded.")
        if "stale" in self.faults and self.served:
            self.served[name] = next(iter(self.served.values()))
        else:
            adapted = PeftModel.from_pretrained(deepcopy(self.base), body["lora_path"])
            self.served[name] = adapted.merge_and_unload().eval()
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, body: dict[str, Any]) -> tuple[int, Any]:
        if "stale" not in self.faults and self.served.pop(body["lora_name"], None) is None:
            return error(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
        return 200, "Success"

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        model = self.served.get(body["model"])
        if model is None or "forgets" in self.faults:
            return error(404, f"The model `{body['model']}` does not exist.")
        if len(body["prompt"]) + body["max_tokens"] > self.max_model_len:
            return error(400, f"This model's maximum context length is {self.max_model_len} tokens.")
        ids, logps = self.sampled(model, body)
        choice = {"index": 0, "text": "", "token_ids": ids, "logprobs": {"token_logprobs": logps}}
        if "old" in self.faults:
            del choice["token_ids"]
        return 200, {"model": "base" if "base answers" in self.faults else body["model"], "choices": [choice]}

    @torch.no_grad()
    def sampled(self, model: PreTrainedModel, body: dict[str, Any]) -> tuple[list[int], list[float]]:
        """Sample token by token; log-probabilities are those after the temperature, or `raw` ones."""
        chance = torch.Generator().manual_seed(body["seed"])
        ids: list[int] = []
        logps: list[float] = []
        while len(ids) < body["max_tokens"] and not (ids and ids[-1] in body["stop_token_ids"]):
            logits = model(torch.tensor([body["prompt"] + ids])).logits[0, -1].float()
            likely = (logits / body["temperature"]).log_softmax(-1)
            ids.append(int(torch.multinomial(likely.exp(), 1, generator=chance)))
            told = logits.log_softmax(-1) if "raw" in self.faults else likely
            logps.append(float(told[ids[-1]]))
        return ids, logps


def error(code: int, message: str) -> tuple[int, Any]:
    return code, {"error": {"message": message, "type": "x", "param": None, "code": code}}


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        verbs = {
            "/v1/load_lora_adapter": self.server.load,
            "/v1/unload_lora_adapter": self.server.unload,
            "/v1/completions": self.server.complete,
        }
        with self.server.working:
            self.server.asked.append((self.path, body))
            if self.server.failures_left:
                self.server.failures_left -= 1
                status, reply = 503, {"message": "busy"}
            else:
                status, reply = verbs[self.path](body)
        data = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(base: PreTrainedModel, *faults: str, max_model_len: int = 32) -> Iterator[Stub]:
    """Run a stub server for a model."""
    stub = Stub(deepcopy(base).eval(), max_model_len=max_model_len, faults=set(faults))
    thread = threading.Thread(target=stub.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.shutdown()
        stub.server_close()
        thread.join()
