"""Sampling from a vLLM server over HTTP: it gets the policy's adapter at every rollout, and gives answers back.

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora --max-lora-rank R
        --logprobs-mode processed_logprobs

The server reads the adapter from the stage's folder, which it has to see under the same path. An adapter is named by
its weights, so that a name never means older ones.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from peft import PeftModel

from llmpipe.artifact import sha256_of
from llmpipe.errors import StageError
from llmpipe.server import Server
from llmpipe.training import adapters
from llmpipe.training.ppo.rollout import Answer, cut
from llmpipe.training.ppo.shared import POLICY

FIRST_WAIT_S = 1.0
AT_ONCE = 64
"""Requests in flight; the server batches what it has."""


@dataclass
class VLLM:
    """Samples on a server.

    `folder` is where adapters are put for the server to read, the newest one alone.
    """

    url: str
    folder: Path
    end_ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float
    first_wait_s: float = FIRST_WAIT_S
    served: str | None = field(default=None, init=False)
    """Name of the adapter that the server has."""

    def sample(self, policy: PeftModel, prompts: Sequence[list[int]], *, seed: int) -> list[Answer]:
        """Return one answer for each prompt, with the server's log-probabilities.

        Raises:
            StageError: the server cannot be reached, or cannot do what is asked.
        """
        self._bring_up_to_date(policy)
        seeds = random.Random(seed)
        jobs = [(prompt, seeds.getrandbits(31)) for prompt in prompts]
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            return list(pool.map(lambda job: self._answer(*job), jobs))
        finally:
            pool.shutdown(cancel_futures=True)  # where one failed, the others are not even asked for

    def _bring_up_to_date(self, policy: PeftModel) -> None:
        """Have the server read the policy's adapter; one process does, and the others wait for it."""
        alone = not dist.is_initialized()
        failure: list[StageError | None] = [None]
        if alone or dist.get_rank() == 0:
            try:
                self._send(policy)
            except StageError as error:
                if alone:
                    raise
                failure = [error]
        if not alone:
            shared: list[Any] = [self.served, failure[0]]
            dist.broadcast_object_list(shared)
            self.served, raised = shared
            if raised is not None:
                raise raised

    def _send(self, policy: PeftModel) -> None:
        fresh = self.folder / "new"
        shutil.rmtree(fresh, ignore_errors=True)
        adapters.save(policy, fresh)
        digest = hashlib.sha256(f"{self.folder.resolve()} {sha256_of(fresh / adapters.WEIGHTS)}".encode()).hexdigest()
        name, older = f"llmpipe-{digest[:16]}", self.served
        if name == older:
            return
        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)
        fresh.rename(place)
        if older is not None:
            self._post("/v1/unload_lora_adapter", {"lora_name": older})  # a server that has lost it is no matter
        status, body = self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(place.resolve())})
        if status != 200 and "already been loaded" not in body:  # by this run, before it was interrupted
            raise self._cannot_load(status, body, rank=policy.peft_config[POLICY].r)
        self.served = name
        for other in self.folder.iterdir():
            if other != place:
                shutil.rmtree(other, ignore_errors=True)

    def _cannot_load(self, status: int, body: str, *, rank: int) -> StageError:
        if status == 404 and "No adapter found" not in body:
            return StageError(
                f"the server at {self.url} takes no adapters while it runs",
                hint=f"start it with: VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora "
                f"--max-lora-rank {rank} --logprobs-mode processed_logprobs",
            )
        return StageError(
            f"the server at {self.url} cannot load the adapter: {body}",
            hint=f"does it serve this adapter's base, with --enable-lora --max-lora-rank {rank}, and does it see "
            f"{self.folder} under the same path?",
        )

    def _answer(self, prompt: list[int], seed: int) -> Answer:
        """Ask for one answer; everything is said, for a server takes defaults from the model's generation config."""
        assert self.served is not None
        status, body = self._post(
            "/v1/completions",
            {
                "model": self.served,
                "prompt": prompt,
                "max_tokens": self.max_new_tokens,
                "temperature": self.temperature,
                "top_p": 1.0,
                "top_k": -1,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                "stop_token_ids": list(self.end_ids),
                "ignore_eos": True,  # what ends an answer is in stop_token_ids, and nothing else does
                "seed": seed,
                "logprobs": 1,
                "return_token_ids": True,
            },
        )
        if status != 200:
            raise self._cannot_answer(status, body)
        return self._read(body)

    def _cannot_answer(self, status: int, body: str) -> StageError:
        if status == 404:
            return StageError(
                f"the server at {self.url} does not know the adapter {self.served} that it loaded: {body}",
                hint="does another run use this server, or are there several behind this address?",
            )
        hint = "start it with a longer --max-model-len, or lower rollout.max_new_tokens" if "context" in body else None
        return StageError(f"the server at {self.url} cannot answer (status {status}): {body}", hint=hint)

    def _read(self, body: str) -> Answer:
        """Take the tokens and their log-probabilities from a completion."""
        try:
            reply = json.loads(body)
            choice = reply["choices"][0]
            ids, logps = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            answer = cut([int(token) for token in ids], end_ids=self.end_ids)
            logps = [float(logp) for logp in logps[: len(answer.ids)]]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise StageError(
                f"the server at {self.url} gave no token ids with log-probabilities",
                hint="a vLLM that knows return_token_ids does",
            ) from error
        if reply.get("model") != self.served:
            raise StageError(f"the server at {self.url} answered with {reply.get('model')}, and not {self.served}")
        if len(logps) != len(answer.ids):
            raise StageError(
                f"the server at {self.url} gave {len(logps)} log-probabilities of {len(answer.ids)} tokens"
            )
        return Answer(answer.ids, answer.finished, logps)

    def _post(self, path: str, content: dict[str, Any]) -> tuple[int, str]:
        """Send JSON and return status and what came back."""
        hint = "is it up, and is rollout.url its address, such as http://localhost:8000?"
        return Server(self.url, hint, first_wait_s=self.first_wait_s).post(path, content)
