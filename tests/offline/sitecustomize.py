"""Put this folder on PYTHONPATH, and every process refuses and records connections beyond this machine.

Python imports a module of this name at start-up. What is refused is written to the file that ATTEMPTS names.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

HERE = {"127.0.0.1", "localhost", "::1", "0.0.0.0", "", None, socket.gethostname()}
INTERNET = (socket.AF_INET, socket.AF_INET6)


def refuse(attempt: str) -> None:
    with Path(os.environ["ATTEMPTS"]).open("a", encoding="utf-8") as file:
        file.write(f"{attempt}\n")
    raise OSError("the network is blocked in this test")


def guarded(name: str) -> Any:
    real = getattr(socket.socket, name)

    def call(self: socket.socket, *arguments: Any) -> Any:
        address = arguments[-1]
        if self.family in INTERNET and address[0] not in HERE:
            refuse(f"{name} {address}")
        return real(self, *arguments)

    return call


def lookup(host: Any, *arguments: Any, **options: Any) -> Any:
    name = host.decode() if isinstance(host, bytes) else host
    if name not in HERE and name.casefold().rstrip(".") not in HERE and not is_number(name):
        refuse(f"getaddrinfo {host}")
    return resolve(host, *arguments, **options)


def is_number(name: str) -> bool:
    """Tell an address, however it is written, from a name that somebody would have to be asked for."""
    try:
        return bool(resolve(name, None, flags=socket.AI_NUMERICHOST))
    except OSError:
        return ":" in name  # a broken address of IPv6, for no name has a colon


for _name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, _name, guarded(_name))
resolve, socket.getaddrinfo = socket.getaddrinfo, lookup
