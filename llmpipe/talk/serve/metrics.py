"""Counters for `/metrics`, in Prometheus's text format (version 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

FIRST_TOKEN_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
NAMED_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics", "/")


class Metrics:
    """What a server did since it began. Used from the event loop's thread alone."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._tokens: Counter[str] = Counter()
        self._first_tokens = [0] * (len(FIRST_TOKEN_S) + 1)
        self._first_tokens_s = 0.0

    def count_request(self, path: str, status: int) -> None:
        """Count a request; paths are named from a short list, so that nobody can fill the memory with them."""
        self._requests[path if path in NAMED_PATHS else "other", status] += 1

    def count_tokens(self, *, prompt: int, answer: int) -> None:
        """Count what an answer took."""
        self._tokens["prompt"] += prompt
        self._tokens["answer"] += answer

    def count_first_token(self, seconds: float) -> None:
        """Count how long a client waited for its first token, in the queue too."""
        self._first_tokens[bisect_left(FIRST_TOKEN_S, seconds)] += 1
        self._first_tokens_s += seconds

    def text(self, **gauges: int) -> str:
        """Write all of them, and what `gauges` stand at now."""
        lines = ["# TYPE llmpipe_requests_total counter"]
        for (path, status), count in sorted(self._requests.items()):
            lines.append(f'llmpipe_requests_total{{path="{path}",status="{status}"}} {count}')
        lines.append("# TYPE llmpipe_tokens_total counter")
        lines += [f'llmpipe_tokens_total{{kind="{kind}"}} {self._tokens[kind]}' for kind in ("prompt", "answer")]
        lines.append("# TYPE llmpipe_time_to_first_token_seconds histogram")
        total = 0
        for bound, count in zip((*FIRST_TOKEN_S, "+Inf"), self._first_tokens, strict=True):
            total += count
            lines.append(f'llmpipe_time_to_first_token_seconds_bucket{{le="{bound}"}} {total}')
        lines.append(f"llmpipe_time_to_first_token_seconds_sum {self._first_tokens_s:.6f}")
        lines.append(f"llmpipe_time_to_first_token_seconds_count {total}")
        for name, value in gauges.items():
            lines += [f"# TYPE llmpipe_answers_{name} gauge", f"llmpipe_answers_{name} {value}"]
        return "\n".join(lines) + "\n"
