"""Nothing is sent anywhere: every connection beyond this machine is blocked and recorded, and none is tried."""

from __future__ import annotations

import subprocess
import sys

from .conftest import environment

BLOCKER = """
import os, socket

real = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto")}

def guarded(name):
    def call(self, *args):
        address = args[-1]
        inside = self.family not in (socket.AF_INET, socket.AF_INET6) or str(address[0]) in ("127.0.0.1", "::1")
        if not inside:
            with open(os.environ["ATTEMPTS"], "a", encoding="utf-8") as file:
                file.write(f"{name} {address}\\n")
            raise OSError("the network is blocked in this test")
        return real[name](self, *args)
    return call

for name in real:
    setattr(socket.socket, name, guarded(name))

def lookup(host, *args, **kwargs):
    if host not in ("127.0.0.1", "localhost", "::1", None):
        with open(os.environ["ATTEMPTS"], "a", encoding="utf-8") as file:
            file.write(f"getaddrinfo {host}\\n")
        raise OSError("the network is blocked in this test")
    return resolve(host, *args, **kwargs)

resolve, socket.getaddrinfo = socket.getaddrinfo, lookup
"""


def blocked(llmpipe) -> dict[str, str]:
    llmpipe.write("hook/sitecustomize.py", BLOCKER)
    return environment(PYTHONPATH=str(llmpipe.folder / "hook"), ATTEMPTS=str(llmpipe.folder / "attempts"))


def test_no_socket_is_opened_to_the_internet(llmpipe) -> None:
    env = blocked(llmpipe)
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "CI"):
        env.pop(name, None)  # TRL sends nothing where one of these is set
    llmpipe("run", "tiny.yaml", env=env)
    attempts = llmpipe.folder / "attempts"
    assert not attempts.exists(), attempts.read_text(encoding="utf-8")


def test_the_block_sees_what_is_tried(llmpipe) -> None:
    code = "import urllib.request; urllib.request.urlopen('http://example.com', timeout=5)"
    done = subprocess.run([sys.executable, "-c", code], env=blocked(llmpipe), capture_output=True, text=True)
    assert done.returncode != 0
    assert "example.com" in (llmpipe.folder / "attempts").read_text(encoding="utf-8")
