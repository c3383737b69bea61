"""Web pages: the main text of a page, without its menus, adverts and footers, as trafilatura finds it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from io import BufferedReader

from llmpipe.data import BadRow, Row
from llmpipe.data.readers import checked, optional
from llmpipe.errors import Problem

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
NAMED = re.compile(
    rb"""<(?:meta|\?xml)\b[^>]{0,200}?(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]{2,40})""", re.IGNORECASE
)
HEAD_BYTES = 4096
"""Where browsers look for the name of the encoding (the HTML standard has them look at 1,024 bytes; pages err)."""
MEANT = dict.fromkeys(("ascii", "us-ascii", "latin1", "latin-1", "iso-8859-1", "iso8859-1"), "windows-1252")
MEANT |= dict.fromkeys(("utf-16", "utf-16le", "utf-16be"), "utf-8")
"""What pages mean by some names, says the encoding standard (encoding.spec.whatwg.org, 4.2 and 14)."""
COMMONS = re.compile(r"creativecommons\.org/(?:licenses|publicdomain)/([a-z-]+)/([\d.]+)")
CONTROLS = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f]")


def page(file: BufferedReader, name: str) -> Iterator[Row | Problem]:
    """Yield a page as one document: `text`, and `title`, `language` and `licence` where it says them."""
    trafilatura = optional("trafilatura")
    source, wrong = decoded(file.read())
    if wrong:
        yield BadRow(wrong, name)
        return
    tree = trafilatura.load_html(CONTROLS.sub(" ", source))  # lxml refuses them, and a browser shows nothing for them
    found = None if tree is None else trafilatura.bare_extraction(tree, include_comments=False)
    if tree is None or found is None or not (found.text or "").strip():
        yield BadRow("no main text is found in this page", name)
        return
    links = tree.xpath('//*[contains(concat(" ", @rel, " "), " license ")]/@href')
    facts = {
        "title": " ".join((tree.findtext(".//title") or "").split()),
        "language": tree.get("lang", "").strip(),
        "licence": next(filter(None, map(_commons, links)), ""),
    }
    yield checked({"text": found.text} | {key: fact for key, fact in facts.items() if fact}, f"{name}:1")


def decoded(raw: bytes) -> tuple[str, str | None]:
    """Return the text of a page by the encoding that it names, else UTF-8, and what is wrong with its bytes."""
    encoding = next((encoding for mark, encoding in MARKS.items() if raw.startswith(mark)), None)
    said = NAMED.search(raw[:HEAD_BYTES])
    named = said[1].decode("ascii", "replace").lower() if said else "utf-8"
    encoding = encoding or MEANT.get(named, named)
    try:
        return raw.decode(encoding), None
    except LookupError:
        return "", f"the page names an encoding that there is not: {encoding}"
    except UnicodeDecodeError as error:
        what = f"byte 0x{raw[error.start]:02x} at offset {error.start} is not {encoding.upper()}"
        return "", f"{what}, which {'the page names' if said else 'a page is that names no encoding'}"


def _commons(link: str) -> str | None:
    """Return a Creative Commons licence by its SPDX name."""
    found = COMMONS.search(link)
    if found is None:
        return None
    return f"CC0-{found[2]}" if found[1] == "zero" else f"CC-{found[1].upper()}-{found[2]}"
