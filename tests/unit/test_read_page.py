"""The tool `read_page`: what it reads, and the machines, bytes and seconds that it refuses."""

from __future__ import annotations

import datetime
import gzip
import logging
import socket
import ssl
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from llmpipe.errors import TalkError
from llmpipe.tools import fetch, guard, pages
from llmpipe.tools.fetch import fetched
from llmpipe.tools.toolbox import opened
from tests.unit.books import PAGE
from tests.unit.stub_web import Web, allow, moved, page, running

PRIVATE = """
127.0.0.1 127.1 127.0.0.2 0.0.0.0 0 2130706433 0x7f000001 0x7f.1 0177.0.0.1 017700000001 localhost localhost. LOCALHOST
10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 100.100.100.200 169.254.169.254 0xa9fea9fe 2852039166
168.63.129.16 192.0.0.192 192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1 192.88.99.1 224.0.0.1 240.0.0.1 255.255.255.255
[::] [::1] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1] [::ffff:8.8.8.8] [::127.0.0.1] [64:ff9b::7f00:1]
[64:ff9b::169.254.169.254] [64:ff9b:1::1] [2002:7f00:1::] [2002:a9fe:a9fe::1] [2001:0:7f00:1::] [fe80::1] [fe80::1%25lo]
[fc00::1] [fd00:ec2::254] [fec0::1] [ff02::1] [2001:db8::1] [100::1] ①②⑦.⓪.⓪.① 127。0。0。1
""".split()
PUBLIC = ["1.1.1.1", "8.8.8.8", "172.32.0.1", "[2606:4700:4700::1111]", "16843009"]
NO_ADDRESS = [
    ("file:///etc/passwd", "only pages of http and https are read"),
    ("ftp://1.1.1.1/", "only pages of http and https are read"),
    ("gopher://127.0.0.1:6379/_INFO", "only pages of http and https are read"),
    ("1.1.1.1", "only pages of http and https are read"),
    ("http:///etc/passwd", "only pages of http and https are read"),
    ("http://user@1.1.1.1/", "an address with a user or password in it is not read"),
    ("http://1.1.1.1@127.0.0.1/", "an address with a user or password in it is not read"),
    ("http://1.1.1.1\\@127.0.0.1/", "an address has at most 2,000 characters, and none of them is a space"),
    ("http://1.1.1.1/a\r\nHost: x", "an address has at most 2,000 characters, and none of them is a space"),
    ("http://1.1.1.1/\t", "an address has at most 2,000 characters, and none of them is a space"),
    ("http://1.1.1.1/" + "a" * 2000, "an address has at most 2,000 characters, and none of them is a space"),
    ("http://1.1.1.1:99999/", "this is no address: Port out of range 0-65535"),
    ("http://[::1/", "this is no address: Invalid IPv6 URL"),
]


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    with running() as web:
        allow(web, monkeypatch)
        yield web


def refusal(url: str) -> str:
    with pytest.raises(TalkError) as error:
        fetched(url)
    return str(error.value)


@pytest.mark.parametrize("host", PRIVATE)
def test_a_machine_of_our_own_network_is_not_asked_however_it_is_written(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("it was asked"))
    assert refusal(f"http://{host}/").endswith(
        ("is not on the public web, and no other address is read", "is not known")
    )


@pytest.mark.parametrize("host", PUBLIC)
def test_a_machine_of_the_web_may_be_asked(host: str) -> None:
    assert guard.target(f"http://{host}/a?b=c").path == "/a?b=c"


@pytest.mark.parametrize(("url", "wrong"), NO_ADDRESS)
def test_what_is_no_address_of_a_page_is_refused(url: str, wrong: str) -> None:
    assert refusal(url) == wrong


@pytest.mark.parametrize(
    "where",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:127.0.0.1]/",
        "//2130706433/",
        "http://localhost/",
        "file:///etc/passwd",
        "http://x@1.1.1.1/",
    ],
)
def test_a_page_leads_to_no_machine_of_our_own_network(web: Web, where: str) -> None:
    web.pages |= {"/a": moved("/b"), "/b": moved(where, 307)}
    assert refusal(f"{web.url}/a").endswith(
        ("no other address is read", "http and https are read", "user or password in it is not read")
    )
    assert [path for path, _ in web.asked] == ["/a", "/b"]


def test_another_server_of_this_machine_is_not_reached_by_a_redirect(web: Web) -> None:
    with running({"/": page("secret")}) as other:
        web.pages["/"] = moved(f"{other.url}/")
        assert refusal(f"{web.url}/") == "127.0.0.1 is not on the public web, and no other address is read"
        assert not other.asked


def test_a_page_moves_five_times_and_no_more(web: Web) -> None:
    web.pages |= {f"/{number}": moved(f"/{number + 1}") for number in range(7)} | {"/7": page("there")}
    assert fetched(f"{web.url}/2").url == f"{web.url}/7"
    assert refusal(f"{web.url}/1") == "the page moves more than 5 times"


def resolver(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Have each look-up of rebind.test answered by the next of the answers; return the names that are looked up."""
    real, names = socket.getaddrinfo, []

    def look_up(host: str, port: int, *rest: object, **more: object) -> list[tuple[object, ...]]:
        if host != "rebind.test":
            return real(host, port, *rest, **more)
        names.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (machine, port)) for machine in answers[len(names) - 1]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return names


def test_a_name_that_means_another_machine_a_moment_later_gains_nothing(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = resolver(monkeypatch, ["93.184.215.14"], ["169.254.169.254"])
    asked, real = [], socket.create_connection

    def connect(address: tuple[str, int], **more: float) -> socket.socket:
        asked.append(address)
        return real(("127.0.0.1", web.port), **more)

    monkeypatch.setattr(socket, "create_connection", connect)
    web.pages["/"] = page("public", "text/plain")
    assert fetched("http://rebind.test/").body == b"public"
    assert asked == [("93.184.215.14", 80)] and names == ["rebind.test"]
    assert web.asked[0][1]["Host"] == "rebind.test"
    assert refusal("http://rebind.test/").startswith("rebind.test is not on the public web")
    assert len(asked) == 1


def test_one_address_of_a_name_that_is_not_public_is_enough_to_refuse_it(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver(monkeypatch, ["93.184.215.14", "10.0.0.1"])
    assert refusal("http://rebind.test/").startswith("rebind.test is not on the public web")


def test_nothing_of_ours_is_sent_along(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")
    web.pages |= {"/a": moved("/b"), "/b": page("there", Set_Cookie="a=b")}
    fetched(f"{web.url}/a")
    assert {name for _, headers in web.asked for name in headers} == {"Host", "User-Agent", "Accept", "Accept-Encoding"}


def test_a_small_page_does_not_unpack_to_a_large_one(web: Web) -> None:
    web.pages["/"] = page(gzip.compress(bytes(8 * 2**20)), Content_Encoding="gzip")
    assert refusal(f"{web.url}/") == "the page is larger than 2,097,152 bytes, the most that is read"
    web.pages["/"] = page(gzip.compress(bytes(fetch.MOST_BYTES)), Content_Encoding="gzip")
    assert len(fetched(f"{web.url}/").body) == fetch.MOST_BYTES


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (page(bytes(3 * 2**20)), "the page is larger than 2,097,152 bytes, the most that is read"),
        (page(b"x", Content_Encoding="br"), "the page is packed as br, which was not asked for"),
        (page(b"no gzip", Content_Encoding="gzip"), "127.0.0.1 cannot be read: Error -3 while decompressing data"),
        (page(b"GIF89a", "image/gif"), "this is image/gif, and only pages and texts are read"),
        (page(b"x", Content_Length="9"), "127.0.0.1 cannot be read: IncompleteRead(1 bytes read, 8 more expected)"),
        (lambda request: request.wfile.write(b"\0\1\2\r\n\r\n"), "127.0.0.1 cannot be read: "),
        (lambda request: request.send_error(403, "\x1b]0;no\x07"), "127.0.0.1 answers 403 ]0;no"),
    ],
)
def test_what_is_no_page_is_said(web: Web, answer: object, wrong: str) -> None:
    web.pages["/"] = answer  # type: ignore[assignment]
    assert refusal(f"{web.url}/").startswith(wrong)


def drip(where: str) -> object:
    """Send a byte every 20 ms, in the head or in the body."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        start = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n" + (b"\r\n" if where == "body" else b"X: ")
        request.wfile.write(start)
        for _ in range(150):
            request.wfile.write(b"a")
            time.sleep(0.02)

    return answer


@pytest.mark.parametrize("where", ["head", "body"])
def test_a_server_that_dribbles_is_left(web: Web, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TOTAL_S", 0.3)
    web.pages["/"] = drip(where)  # type: ignore[assignment]
    began = time.monotonic()
    assert refusal(f"{web.url}/") == "the page is not there within 0.3 s"
    assert time.monotonic() - began < 2


def test_a_server_that_is_silent_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TOTAL_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr(guard, "allowed", lambda *_: True)
        assert refusal(f"http://127.0.0.1:{port}/") == "the page is not there within 0.3 s"
        assert refusal(f"https://127.0.0.1:{port}/") == "the page is not there within 0.3 s"


def certificate(name: str, folder: Path) -> Path:
    """Write a key and a certificate that it signed itself."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    own = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    built = x509.CertificateBuilder(own, own, key.public_key(), x509.random_serial_number())
    built = built.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    built = built.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    made = built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path = folder / "certificate.pem"
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, *form) + made)
    return path


def test_the_name_is_proved_although_the_machine_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = certificate("good.test", tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    monkeypatch.setattr(guard, "resolved", lambda *_: ("127.0.0.1",))
    with running({"/": page("proved")}, lambda bare: context.wrap_socket(bare, server_side=True)) as web:
        allow(web, monkeypatch)
        assert fetched(f"https://good.test:{web.port}/").body == b"proved"
        assert "certificate is not valid for 'evil.test'" in refusal(f"https://evil.test:{web.port}/")
        assert [path for path, _ in web.asked] == ["/"]


def read(url: str, **more: int) -> str:
    return pages.tool().call({"url": url, **more})


def test_the_main_text_of_a_page_is_read(web: Web) -> None:
    web.pages |= {"/a": moved("/b"), "/b": page(PAGE.format(head=""))}
    text = read(f"{web.url}/a#part")
    assert text.startswith(f"Der Fuchs\n{web.url}/b (moved from {web.url}/a)\n\n")
    assert "Der 4. schnelle braune Fuchs springt über den faulen Hund." in text and "Impressum" not in text


def test_the_encoding_that_a_server_names_is_believed(web: Web) -> None:
    body = PAGE.format(head='<meta charset="utf-8">').encode("latin-1")
    web.pages["/"] = page(body, "text/html; charset=iso-8859-1")
    assert "springt über" in read(f"{web.url}/")


def test_a_page_of_links_is_read_as_it_is(web: Web) -> None:
    web.pages["/"] = page("<nav><a href='/a'>One</a></nav><footer>Two</footer>")
    assert read(f"{web.url}/") == f"{web.url}/\n\nOne\nTwo"
    web.pages["/empty"] = page("<p> </p>")
    with pytest.raises(TalkError, match=r"^there is no text in this page$"):
        read(f"{web.url}/empty")


def test_what_a_library_dislikes_of_a_page_is_not_written_into_the_conversation(
    web: Web, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
    web.pages["/"] = page("<p> </p>")
    with opened(["read_page"], files=list) as box:
        assert box.call(box.tools["read_page"], {"url": f"{web.url}/"}).failed
    assert not capfd.readouterr().err


def test_a_long_page_is_read_in_parts_and_asked_for_once(web: Web) -> None:
    web.pages["/"] = page("".join(chr(97 + n) * 5000 for n in range(3))[:-1], "text/plain")
    tool = pages.tool()
    parts = [tool.call({"url": f"{web.url}/", "part": number}) for number in (1, 2, 3)]
    assert [part.count("abc"[n]) for n, part in enumerate(parts)] == [5001, 5000, 4999]  # there is an a in "part"
    assert parts[0].startswith(f"{web.url}/\npart 1 of 3\n\naaa")
    assert len(web.asked) == 1
    with pytest.raises(TalkError, match=r"^the page has 3 parts, and no part 4$"):
        tool.call({"url": f"{web.url}/", "part": 4})
