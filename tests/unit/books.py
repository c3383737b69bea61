"""Small books and pages for the tests of readers."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

CONTAINER = """<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0">
<rootfiles><rootfile full-path="OEBPS/package.opf"/></rootfiles></container>"""
PACKAGE = """<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Two  Tales</dc:title><dc:creator>A. Hare</dc:creator>
<dc:language>en</dc:language><dc:rights>CC0</dc:rights></metadata>
<manifest><item id="n" href="nav.xhtml" properties="nav"/><item id="a" href="text/a%20b.xhtml"/>
<item id="b" href="text/b.xhtml"/></manifest>
<spine><itemref idref="n"/><itemref idref="b"/><itemref idref="a"/></spine></package>"""
CHAPTER = (
    "<html><head><title>no</title><style>p {{}}</style></head>"
    "<body><h1>{0}</h1><p>It <b>is</b>\n {0}.<br/>So.</p></body></html>"
)
PARTS = {
    "META-INF/container.xml": CONTAINER,
    "OEBPS/package.opf": PACKAGE,
    "OEBPS/nav.xhtml": "<html><body><nav>Contents</nav></body></html>",
    "OEBPS/text/a b.xhtml": CHAPTER.format("last"),
    "OEBPS/text/b.xhtml": CHAPTER.format("f&amp;irst"),
}


def epub(changes: Mapping[str, str | bytes | None] | None = None) -> bytes:
    """Return a book of two chapters; a part that is None is left out."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in {**PARTS, **(changes or {})}.items():
            if part is not None:
                archive.writestr(name, part)
    return content.getvalue()


def pdf(*pages: str, title: str = "A Title") -> bytes:
    """Return a pdf with a line of text on each page."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            f"/Contents {5 + 2 * number} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    objects.append(f"<< /Title ({title}) >>")
    body, places = "%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{one}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(objects) + 1
    end = f"trailer\n<< /Size {size} /Root 1 0 R /Info {size - 1} 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
    return f"{body}xref\n0 {size}\n0000000000 65535 f \n{table}{end}".encode("latin-1")


PAGE = (
    '<!DOCTYPE html><html lang="de"><head>{head}<title>Der  Fuchs</title><link rel="license" '
    'href="https://creativecommons.org/licenses/by-sa/4.0/"></head><body><nav><a href="/">Kontakt</a></nav><main>'
    "<article><h1>Der Fuchs</h1>"
    + "".join(f"<p>Der {n}. schnelle braune Fuchs springt über den faulen Hund.</p>" for n in range(5))
    + "</article>"
    "</main><footer>Impressum, Cookies</footer></body></html>"
)
