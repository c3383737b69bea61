"""A tool: what a model is told of it, what it may touch, and what runs when it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Needs = Literal["nothing", "files", "network", "program"]
"""What a user has to allow: nothing, files that they named, requests to the web, or a program of somebody else's."""


@dataclass(frozen=True)
class Tool:
    """A tool by the name that a model calls it by; the name of one of an MCP server is `server__name`.

    `parameters` is the JSON schema of an object, and `call` is given what was checked against it. What it returns, or
    says in a TalkError, is for the model to read and may come from anywhere: `Toolbox.call` makes it harmless.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    needs: Needs
    call: Callable[[Mapping[str, Any]], str]

    def schema(self) -> dict[str, Any]:
        """Return the tool as an entry of `tools` in OpenAI's chat API."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Result:
    """What a call came to: capped, without control characters, fenced and marked as untrusted."""

    text: str
    failed: bool
