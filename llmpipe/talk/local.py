"""A model on this machine, by transformers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.context import Context
from llmpipe.errors import TalkError
from llmpipe.evaluation.decoding import Decoder, End, Request
from llmpipe.evaluation.kept import KEPT
from llmpipe.settings import AnySource
from llmpipe.talk.calls import form_of, told, with_calls
from llmpipe.talk.engine import Message, Piece, Sampling, Usage
from llmpipe.talk.text import Written
from llmpipe.talk.words import joined
from llmpipe.training import models, templates


class LocalEngine:
    """A causal model and its tokenizer; answers of several threads are decoded together."""

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, *, name: str, keep: int = KEPT) -> None:
        self.name, self.tokenizer = name, tokenizer
        self.context = models.context_length(model)
        self.chats = tokenizer.chat_template is not None
        self.form = form_of(tokenizer.chat_template)
        self.special = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.lock = threading.Lock()
        """A tokenizer in Rust refuses to be borrowed by two threads where one of them changes how it cuts."""
        self.decoder = Decoder(model.eval(), _ends(model, tokenizer), keep=keep)

    @classmethod
    def load(cls, source: AnySource, ctx: Context, *, name: str) -> LocalEngine:
        """Load a model; an adapter is merged.

        Raises:
            StageError: it cannot be loaded, or is no causal language model.
        """
        model, tokenizer = models.load(source, ctx)
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, name=name)

    def count(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> int:
        """Return how many tokens a conversation has as a prompt."""
        return len(self._ids(messages, tools))

    def chat(self, messages: Sequence[Message], how: Sampling, tools: Sequence[Message] = ()) -> Iterator[Piece]:
        """Answer a conversation; without a chat template its last message is continued. Space around is left out.

        Raises:
            TalkError: it does not fit into the context, the template refuses it, or the model fails.
        """
        ids = self._ids(messages, tools)
        if not tools or not self.chats:
            return self._answer(ids, how, self._decode, is_bare=self.chats)
        own = getattr(self.tokenizer, "response_template", None)  # transformers 5.24: few tokenizers have one yet
        marks = {number for number, token in self.special.items() if own or token in self.form.marks}
        pieces = self._answer(ids, how, partial(self._decode_with, marks), is_bare=True)
        prefix = str(self.tokenizer.decode(ids)) if own else ""
        parser = self.tokenizer.get_response_parser(own or self.form.schema(), prefix=prefix, tools=list(tools))
        return with_calls(pieces, parser, self.form, tools)

    def complete(self, text: str, how: Sampling) -> Iterator[Piece]:
        """Continue a text.

        Raises:
            TalkError: it does not fit into the context, or the model fails.
        """
        return self._answer(self._cut(text, special=True), how, self._decode, is_bare=False)

    def close(self) -> None:
        """End the thread and let the model go."""
        self.decoder.close()

    def _ids(self, messages: Sequence[Message], tools: Sequence[Message]) -> list[int]:
        if not self.chats:
            return self._cut(joined(messages[-1].get("content")) if messages else "", special=True)
        harmless = [self._harmless(message) for message in messages]
        if self.form.is_told:
            harmless, tools = told(harmless, tools), ()
        try:
            text = templates.apply(
                self.tokenizer,
                [_plain(message) for message in harmless],
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=True,
            )
        except (TemplateError, TypeError, KeyError) as error:  # a role or an order that the template does not know
            raise TalkError(
                f"the chat template of {self.name} refuses this conversation: {error}",
                hint="user and assistant in turns, after at most one system message, suit every template",
            ) from error
        return self._cut(str(text), special=False)

    def _cut(self, text: str, *, special: bool) -> list[int]:
        with self.lock:
            return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def _harmless(self, message: Message) -> Message:
        """Write the special tokens in what a tool gave as words, or a web page could take the user's turn."""
        if message["role"] != "tool":
            return message
        content = joined(message.get("content"))
        for token in self.special.values():
            content = content.replace(token, f"{token[:1]} {token[1:]}")
        return message | {"content": content}

    def _answer(
        self, ids: list[int], how: Sampling, decode: Callable[[list[int]], str], *, is_bare: bool
    ) -> Iterator[Piece]:
        if not ids:
            raise TalkError("there is nothing to continue", hint="this model has no token to begin with: give a text")
        if len(ids) >= self.context:
            raise TalkError(
                f"the prompt has {len(ids):,} tokens, and {self.name} sees {self.context:,}, the answer included",
                hint="a shorter text, or fewer turns",
            )
        room = min(how.max_new_tokens, self.context - len(ids))
        request = Request(ids, room, how.temperature, top_p=how.top_p, seed=how.seed)
        return self._pieces(request, Written(decode, ids, how.stop), is_bare=is_bare)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _decode_with(self, marks: set[int], ids: list[int]) -> str:
        """Decode with those special tokens that mark a call."""
        told = [number for number in ids if number in marks or number not in self.special]
        return str(self.tokenizer.decode(told, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _pieces(self, request: Request, written: Written, *, is_bare: bool) -> Iterator[Piece]:
        """Give the text of an answer as its tokens come; `is_bare` leaves out the space around it."""
        tokens = 0
        end: End | None = None
        space: str | None = None
        self.decoder.ask(request)
        try:
            while end is None:
                match request.out.get():
                    case Exception() as error:
                        raise TalkError(f"{self.name} failed: {error}") from error
                    case int(token):
                        tokens += 1
                        text = written.add(token)
                    case end:
                        text = written.rest()
                if is_bare:
                    text, space = _inner(text, space)
                if text:
                    yield Piece(text)
                if written.is_stopped and end is None:
                    end = "stop"
        finally:
            request.is_cancelled = True
        yield Piece("", end, Usage(len(request.ids), tokens, request.cached))


def _inner(text: str, before: str | None) -> tuple[str, str | None]:
    """Hold back space at the end of a text; None stands for an answer that has not begun.

    Returns what to show, and the space that goes before what comes next.
    """
    if before is None:
        text = text.lstrip()
        if not text:
            return "", None
        before = ""
    text = before + text
    shown = text.rstrip()
    return shown, text[len(shown) :]


def _ends(model: PreTrainedModel, tokenizer: Tokenizer) -> set[int]:
    """Return the tokens that end an answer: the model's and the tokenizer's."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    listed = ends if isinstance(ends, list) else [ends]
    return {end for end in (*listed, tokenizer.eos_token_id) if end is not None}


def _plain(message: Message) -> dict[str, Any]:
    """Write a message as templates expect it: content is text, and a call's arguments are no longer JSON in a text."""
    plain = message | {"content": joined(message.get("content"))}
    if calls := message.get("tool_calls"):
        plain["tool_calls"] = [_call(call) for call in calls]
    return plain


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except (TypeError, ValueError):
        arguments = function.get("arguments")
    return call | {"function": function | {"arguments": arguments}}
