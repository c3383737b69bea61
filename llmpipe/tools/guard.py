"""Which addresses of the web a tool may ask: public ones, and no machine of this one's network.

A model, or a page that it read, names the address, so that a request of ours could reach what only we can reach: a
router, a service without a password, a cloud's metadata. Names are resolved once, every address of a name has to be
public, and the connection goes to that very address; a name that means another machine a moment later gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from llmpipe.errors import TalkError

LONGEST = 2_000
"""The most characters of an address."""
PORTS = {"http": 80, "https": 443}
CLOSED = [ipaddress.ip_network(net) for net in ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24")]
"""Public by their number, or by ipaddress of Python 3.11, and yet not: what Azure and Oracle tell their machines, and
the relays of 6to4."""
UNICAST = ipaddress.ip_network("2000::/3")
"""All that is given out of IPv6 so far; IPv4 mapped into it, NAT64 and link-local addresses are outside."""
TUNNELS = [ipaddress.ip_network(net) for net in ("2002::/16", "2001::/32")]
"""6to4 and Teredo: an IPv4 address, any, stands inside."""


@dataclass(frozen=True)
class Target:
    """Where a request goes: what the address names, and the addresses of the machine that was looked up for it."""

    url: str
    scheme: str
    host: str
    port: int
    path: str
    machines: tuple[str, ...]


def target(url: str) -> Target:
    """Look an address up.

    Raises:
        TalkError: it is none of the public web, or the name is not known.
    """
    scheme, host, port, path = _parts(url)
    try:
        found = resolved(host, port)
    except (OSError, UnicodeError) as error:
        raise TalkError(f"the name {host} is not known") from error
    for machine in found:
        if not allowed(machine, port):
            raise TalkError(f"{host} is not on the public web, and no other address is read")
    if not found:
        raise TalkError(f"the name {host} is not known")
    return Target(url, scheme, host, port, path, found)


def resolved(host: str, port: int) -> tuple[str, ...]:
    """Return the addresses of a name, or of any spelling of an address that the system knows (0x7f.1, 2130706433)."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def allowed(machine: str, port: int) -> bool:
    """Tell whether a request may go to a machine; the tests of this project put a stub here."""
    del port
    return is_public(machine)


def is_public(machine: str) -> bool:
    """Tell whether an address is a machine of the public internet."""
    try:
        address = ipaddress.ip_address(machine)
    except ValueError:
        return False
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in net for net in CLOSED)
    return address in UNICAST and not any(address in tunnel for tunnel in TUNNELS)


def _parts(url: str) -> tuple[str, str, int, str]:
    """Take an address apart, or raise TalkError for one that could mean another than it seems to."""
    hint = "an address is http(s)://HOST/PATH"
    if len(url) > LONGEST or not url.isprintable() or any(char in url for char in ' \\"<>'):
        raise TalkError(f"an address has at most {LONGEST:,} characters, and none of them is a space", hint=hint)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise TalkError(f"this is no address: {error}", hint=hint) from error
    if parts.scheme not in PORTS or not host:
        raise TalkError("only pages of http and https are read", hint=hint)
    if "@" in parts.netloc:
        raise TalkError("an address with a user or password in it is not read", hint=hint)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.scheme, host, PORTS[parts.scheme] if port is None else port, path
