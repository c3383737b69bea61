"""Calls of tools as models write them: how a model is told of tools, and how its calls are found in what it says.

Chat templates that know tools have one of three forms of a call; a model whose template knows none is told in the
system text, and writes calls as Hermes does. Which form it is, the text of the template says.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from llmpipe.talk.engine import Message, Piece
from llmpipe.talk.words import text_of

Call = dict[str, Any]
"""A call as OpenAI's chat API has it; what cannot be read has no name, and is its arguments word for word."""

TOLD = """\
You may use tools. To use one, write nothing but a call like this, and wait for its result:
<tool_call>
{{"name": "NAME", "arguments": {{"PARAMETER": "VALUE"}}}}
</tool_call>
The tools, each with the JSON schema of its arguments:
{tools}
Use a tool only where it helps; else answer directly."""


@dataclass(frozen=True)
class Form:
    """How calls are written: patterns of what goes before and after one, the latter None where it is the answer's end.

    `marks` are kept where they are special tokens. `is_single`: the template takes one call a turn. `is_told`: the
    template knows nothing of tools, and `told` writes all of it out.
    """

    opens: str
    closes: str | None
    marks: tuple[str, ...]
    is_single: bool = False
    is_told: bool = False

    def schema(self) -> dict[str, Any]:
        """Return the form as a `response_template` of transformers 5.24."""
        call = {"open_pattern": self.opens, "content": "text", "repeats": True}
        call |= {"close_pattern": self.closes} if self.closes else {}
        return {"start_anchor": "\0", "fields": {"content": {"content": "text"}, "tool_calls": call}}


_TAGS = (r"\s*<tool_call>", r"</tool_call>\s*", ("<tool_call>", "</tool_call>"))
HERMES = Form(*_TAGS)
"""`<tool_call>{"name": …, "arguments": {…}}</tool_call>`; between the tags Qwen 3.5 has another form, which is read."""
LLAMA = Form(
    r'\A\s*(?:<\|python_tag\|>\s*(?=\{)|(?=\{\s*"(?:name|type)"\s*:))', None, ("<|python_tag|>",), is_single=True
)
"""The whole answer is `{"name": …, "parameters": {…}}`."""
MISTRAL = Form(r"\s*\[TOOL_CALLS\]", None, ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"))
"""`[TOOL_CALLS] [{"name": …, "arguments": {…}}]`, or in newer ones `[TOOL_CALLS]NAME[ARGS]{…}`."""
SAID = Form(*_TAGS, is_told=True)


def form_of(template: str | None) -> Form:
    """Return the form of a chat template."""
    template = template or ""
    if "tools" not in template:
        return SAID
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    if "<tool_call>" in template:
        return HERMES
    return LLAMA if "ipython" in template else SAID


# ---- Telling ------------------------------------------------------------------------------------


def told(messages: Sequence[Message], tools: Sequence[Message]) -> list[Message]:
    """Write a conversation for a template that knows no tools.

    Tools are described in the system text; calls are words of the assistant, results words of the user in a fence.
    """
    plain: list[Message] = []
    for message in messages:
        turn = _written_out(message)
        if turn["role"] == "tool":
            turn = {"role": "user", "content": fenced(str(turn["content"]))}
        if plain and plain[-1]["role"] == turn["role"] == "user":  # several results, or a question after them
            plain[-1] = {"role": "user", "content": f"{plain[-1]['content']}\n\n{turn['content']}"}
        else:
            plain.append(turn)
    if tools:
        listed = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
        before = f"{plain.pop(0)['content']}\n\n" if plain and plain[0]["role"] == "system" else ""
        plain.insert(0, {"role": "system", "content": before + TOLD.format(tools=listed)})
    return plain


def fenced(result: str) -> str:
    """Put what a tool gave between marks that it cannot end."""
    inside = re.sub(r"<(/?\s*tool_response)", r"< \1", result, flags=re.IGNORECASE)
    return f"<tool_response>\n{inside}\n</tool_response>"


def written_out(messages: Sequence[Message]) -> list[Message]:
    """Write calls as words, so that role and content say all: what `sft`, `reward` and `dpo` read."""
    return [_written_out(message) for message in messages]


def _written_out(message: Message) -> Message:
    words = [text_of(message)]
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except ValueError:
            arguments = function["arguments"]
        content = json.dumps({"name": function.get("name"), "arguments": arguments}, ensure_ascii=False)
        words.append(f"<tool_call>\n{content}\n</tool_call>")
    return {"role": message["role"], "content": "\n".join(filter(None, words))}


# ---- Finding ------------------------------------------------------------------------------------


class Parser(Protocol):
    """What transformers' `ResponseParser` does of a stream."""

    def feed(self, text: str) -> list[dict[str, Any]]:
        """Take text, and return what it opened, added to and closed."""
        ...

    def finalize(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the whole, and what the end closed."""
        ...


def with_calls(pieces: Iterator[Piece], parser: Parser, form: Form, tools: Sequence[Message]) -> Iterator[Piece]:
    """Take the calls out of an answer; text before and after them goes on at once, a call when it is whole.

    A call that was cut off because the answer became too long is dropped.
    """
    found = _Found(parser, form, tools)
    with closing(pieces):  # type: ignore[type-var]  # an iterator of an engine is a generator
        for piece in pieces:
            if text := found.read(piece.text):
                yield Piece(text)
            if piece.finish is None:
                continue
            if text := found.rest():
                yield Piece(text)
            calls = found.calls if piece.finish != "length" else [call for call in found.calls if is_read(call)]
            calls = calls[:1] if form.is_single else calls
            finish = "tool_calls" if calls and piece.finish == "stop" else piece.finish
            yield Piece("", finish, piece.usage, tuple(calls))


def unread_as_text(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Give calls that could not be read back as what the model wrote: a client has no use for one without a name."""
    with closing(pieces):  # type: ignore[type-var]
        for piece in pieces:
            read = tuple(call for call in piece.tool_calls if is_read(call))
            for call in piece.tool_calls:
                if not is_read(call):
                    yield Piece(call["function"]["arguments"])
            finish = "stop" if piece.finish == "tool_calls" and not read else piece.finish
            yield replace(piece, finish=finish, tool_calls=read)


class _Found:
    """What a parser found so far."""

    def __init__(self, parser: Parser, form: Form, tools: Sequence[Message]) -> None:
        self._parser, self._form = parser, form
        functions = [tool.get("function", tool) for tool in tools]
        self._schemas = {one.get("name"): one.get("parameters") or {} for one in functions}
        self._body = ""
        self._is_lost = False
        self.calls: list[Call] = []

    def read(self, text: str) -> str:
        """Return what is said to the user."""
        if self._is_lost:
            self._body += text
            return ""
        try:
            return self._taken(self._parser.feed(text))
        except ValueError:  # a model's own response template reads bodies as JSON, and this one is none
            self._is_lost = True
            return ""

    def rest(self) -> str:
        """Return what was held back, at the end."""
        try:
            return "" if self._is_lost else self._taken(self._parser.finalize()[1])
        except ValueError:
            self._is_lost = True
            return ""
        finally:
            if self._is_lost:
                self.calls.append(made("", self._body.strip()))

    def _taken(self, events: list[dict[str, Any]]) -> str:
        said = ""
        for event in events:
            match event:
                case {"type": "region_chunk", "field": "content", "text": text}:
                    said += text
                case {"type": "region_open", "field": "tool_calls"}:
                    self._body = ""
                case {"type": "region_chunk", "field": "tool_calls", "text": text}:
                    self._body += text
                case {"type": "region_close", "field": "tool_calls", "value": value}:
                    self.calls += self._calls(value)
        return said

    def _calls(self, value: Any) -> list[Call]:
        if not isinstance(value, str):  # a model's own response template has read it
            return [_of(one, self._body) for one in (value if isinstance(value, list) else [value])]
        return calls_in(value, self._schemas)


_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\s*(.*?)\s*</parameter>", re.DOTALL)
_NAMED = re.compile(r"\s*([\w.-]+)(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*(?=\{)")


def calls_in(body: str, schemas: Mapping[str, Any]) -> list[Call]:
    """Read what stands between the marks of calls; `schemas` are those of the tools' parameters, by name."""
    if functions := _FUNCTION.findall(body):
        return [made(name.strip(), json.dumps(_typed(inside, schemas.get(name)))) for name, inside in functions]
    return [call for part in body.split("[TOOL_CALLS]") for call in _in_json(part)]


def _in_json(text: str) -> list[Call]:
    """Read objects, lists of them, or a name with an object after it; what separates them is skipped."""
    calls: list[Call] = []
    at, decoder = 0, json.JSONDecoder()
    while rest := text[at:].rstrip().lstrip("\n\t ;,"):
        at = text.index(rest, at)
        named = _NAMED.match(rest)
        try:
            value, length = decoder.raw_decode(rest[named.end() :] if named else rest)
        except (ValueError, RecursionError):
            return [*calls, made("", rest)]
        if named:
            value, length = {"name": named[1], "arguments": value}, length + named.end()
        calls += [_of(one, rest) for one in (value if isinstance(value, list) else [value])]
        at += length
    return calls or [made("", text)]


def _of(value: Any, body: str) -> Call:
    inner = value.get("function", value) if isinstance(value, dict) else {}
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str) or not name:
        return made("", body)
    arguments: Any = next((inner[key] for key in ("arguments", "parameters") if inner.get(key) is not None), {})
    return made(name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))


def _typed(inside: str, schema: Any) -> dict[str, Any]:
    """Read parameters that are written as text: those that are no strings by the schema are JSON."""
    known = (schema or {}).get("properties") or {}
    values: dict[str, Any] = dict(_PARAMETER.findall(inside))
    for name, text in values.items():
        if (known.get(name) or {}).get("type", "string") != "string":
            with suppress(ValueError):  # whoever checks it against the schema says what is wrong
                values[name] = json.loads(text)
    return values


def made(name: str, arguments: str) -> Call:
    """Return a call; its id suits Mistral's templates, which take no other than nine letters and digits."""
    function = {"name": name, "arguments": arguments}
    return {"id": secrets.token_hex(5)[:9], "type": "function", "function": function}


def is_read(call: Call) -> bool:
    """Return whether a call could be read."""
    return bool(call["function"]["name"])
