"""What `/v1/chat/completions` and `/v1/completions` may be asked, and what an engine is then told.

A parameter passes if it is supported, or if its value is the one that changes nothing; all others are refused by name,
so that nobody takes an answer for what it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmpipe.errors import did_you_mean
from llmpipe.talk.engine import Message, Sampling
from llmpipe.talk.serve.guard import Refused

NEUTRAL: dict[str, Sequence[Any]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("auto", "none"),
    "logit_bias": ({},),
    "logprobs": (False, 0),
    "metadata": ({},),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "top_logprobs": (0,),
}
"""Parameters of OpenAI's API that nothing here implements, with the values that ask for nothing."""
KNOWN_ONLY = {"audio", "functions", "prediction", "reasoning_effort", "verbosity", "web_search_options"}
IGNORED = {"user", "safety_identifier", "prompt_cache_key"}
"""They say who asks, not what."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Strict):
    """How a stream ends."""

    include_usage: bool = False


class Part(_Strict):
    """A part of a message; only text is read here."""

    type: Literal["text"]
    text: str


class Turn(_Strict):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    refusal: None = None

    def message(self) -> Message:
        """Return the message as engines take it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        told: Message = {"role": "system" if self.role == "developer" else self.role, "content": content}
        rest = {"name": self.name, "tool_calls": self.tool_calls, "tool_call_id": self.tool_call_id}
        return told | {key: value for key, value in rest.items() if value is not None}


class Function(_Strict):
    """What a tool's function is called with."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Strict):
    """A tool that an answer may call."""

    type: Literal["function"]
    function: Function


class Asked(_Strict):
    """What both kinds of requests have."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(max_length=4)] | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with what it took."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, room: int, longest: int | None = None) -> Sampling:
        """Return how to sample an answer that has room for so many tokens."""
        longest = longest or self.max_tokens or Sampling().max_new_tokens
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(filter(None, self.stop or ()))
        return Sampling(
            max_new_tokens=min(longest, room),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=stop,
        )


class ChatAsked(Asked):
    """A request for the next turn of a conversation."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none"] | None = None

    def sampling(self, room: int, longest: int | None = None) -> Sampling:
        """Return how to sample an answer that has room for so many tokens."""
        return super().sampling(room, longest or self.max_completion_tokens)

    def offered(self) -> list[Message]:
        """Return the tools that the answer may call."""
        if self.tool_choice == "none":
            return []
        return [tool.model_dump(exclude_none=True) for tool in self.tools or ()]


class TextAsked(Asked):
    """A request to continue a text."""

    prompt: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1, max_length=1)]

    @property
    def text(self) -> str:
        """The text to continue."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


Request = TypeVar("Request", bound=Asked)


def read(kind: type[Request], body: bytes) -> Request:
    """Read a request.

    Raises:
        Refused: it is no JSON, or a parameter is unknown, unsupported or wrong; the first one is named.
    """
    try:
        given = _Object.model_validate_json(body).model_extra or {}
    except ValidationError:
        raise Refused(400, "the body is not a JSON object") from None
    for name in [name for name in given if name not in kind.model_fields]:
        _refuse_unless_neutral(kind, name, given.pop(name))
    try:
        return kind.model_validate(given)
    except ValidationError as wrong:
        first = wrong.errors(include_url=False, include_input=False)[0]
        where = _path(first["loc"])
        raise Refused(400, f"{where}: {_lower(first['msg'])}", param=where, code="invalid_value") from None


class _Object(BaseModel):
    model_config = ConfigDict(extra="allow")


def _refuse_unless_neutral(kind: type[Asked], name: str, value: Any) -> None:
    if name in IGNORED or ((name in NEUTRAL or name in KNOWN_ONLY) and value is None):
        return
    if name in NEUTRAL:
        if any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in NEUTRAL[name]):
            return
        raise Refused(400, f"{name} is not supported", param=name, code="unsupported_parameter")
    if name in KNOWN_ONLY:
        raise Refused(400, f"{name} is not supported", param=name, code="unsupported_parameter")
    near = did_you_mean(name, list(kind.model_fields))
    raise Refused(400, f"{name} is not a parameter{near}", param=name, code="unknown_parameter")


def _path(keys: tuple[int | str, ...]) -> str:
    """Write where a value is, as `messages[0].content`; pydantic adds the names of types in unions, left out here."""
    path = ""
    for key in keys:
        if isinstance(key, int):
            path += f"[{key}]"
        elif not path:
            path = key
        elif key.isidentifier() and not key[0].isupper() and key not in ("str", "list"):
            path += f".{key}"
    return path


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
