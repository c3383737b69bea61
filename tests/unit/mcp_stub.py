"""An MCP server over stdio for tests: python mcp_stub.py FOLDER

`FOLDER/tools.json` has a list of {"name", "description", "result"}; each call appends its name and arguments to
`FOLDER/called.jsonl`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def answer(folder: Path, method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    tools = json.loads((folder / "tools.json").read_text(encoding="utf-8"))
    if method == "initialize":
        version = params["protocolVersion"]
        return {
            "protocolVersion": version,
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "stub", "version": "1"},
        }
    if method == "tools/list":
        schema = {"type": "object", "properties": {"text": {"type": "string"}}}
        return {
            "tools": [{"name": one["name"], "description": one["description"], "inputSchema": schema} for one in tools]
        }
    if method == "tools/call":
        with (folder / "called.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps([params["name"], params.get("arguments")]) + "\n")
        (found,) = (one for one in tools if one["name"] == params["name"])
        return {"content": [{"type": "text", "text": found["result"]}], "isError": False}
    return {} if method == "ping" else None


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        if "id" in asked:
            result = answer(Path(sys.argv[1]), asked["method"], asked.get("params") or {})
            told = {"result": result} if result is not None else {"error": {"code": -32601, "message": "unknown"}}
            sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **told}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
