"""Finder of phone numbers: by country code, by the form that a country writes them in, or by the words beside them.

Digits alone do not tell a phone number from an order's. A number with a country code is checked by `phonenumbers`
(Google's libphonenumber). One without is taken where the nearest telling word says phone ("call", "fax", "mobile"),
or where it is grouped as numbers are and is valid in a country that groups like this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from llmpipe.curation.spans import LONG_NUMBER, Bounds, nearest

CANDIDATE = re.compile(
    r"(?<![\w.:/@=*$€£¥#+-])(?<!\d,)(?:\(?\+ ?)?(?:\(\d|\d)(?:[ \u00a0.()/-]{0,3}\d){6,14}(?![\w%°]|[.,:/]\d|-\d)"
    r"(?: ?(?:x|ext\.? ?)\d{1,5}\b)?"
)
SAYS_PHONE = re.compile(
    r"\b(?:(?:tele)?phones?|tel|call(?:ed|ing|s)?|mobile|cell|cellular|fax|dial(?:ed|led|ling)?|whatsapp|sms|hotline|ring"
    r"|ringing|reach(?:ed)?|answering|voicemail|landline|contact|texts?|messages? to"
    r"|(?:my|his|her|our|your|their|whose|new|registered|home|work) number)\b|\b(?:desk|office|work|home|direct):",
    re.IGNORECASE,
)
SAYS_OTHER = re.compile(
    r"\b(?:orders?|invoice|isbn|issn|ean|sku|serial|tracking|ticket|case|account|card|licen[cs]e|passport|ssn|social"
    r"|security|zip|post(?:al)? ?code|part|batch|version|ref(?:erence)?|id|patent|bug|issue|model|price|costs?|date"
    r"|since|between|from|years?|page|pages|pp|vol|total|population|doi|arxiv|iban|coordinates|latitude)\b",
    re.IGNORECASE,
)
SAYS_PHONE_AFTER = re.compile(r"^[ \t,(\u2013-]{0,3}(?:office|fax|mobile|cell|home|work|direct|phone)\b", re.IGNORECASE)
NO_PHONE = re.compile(
    r"\d{1,2}([./ -])\d{1,2}\1(?:19|20)?\d\d|(?:19|20)\d\d([./ -])\d{1,2}\2\d{1,2}(?: \d.*)?"  # dates
    r"|(?:1[5-9]|20)\d\d ?[/-] ?(?:1[5-9]|20)\d\d|(?:19|20)\d{6}"  # years, a date in one piece
    r"|\d{3}-\d{2}-\d{4}|\d{5}-\d{4}"  # US social security, ZIP+4
    r"|97[89][ -]?\d[\d -]{8,12}\d"  # ISBN
    r"|(?:\d{1,3}\.){3}\d{1,3}|\d+\.\d+"  # versions, decimals
)
NORTH_AMERICA = re.compile(r"(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d([ .-]))[2-9]\d\d(?:\1|[.-])\d{4}")
TRUNK = re.compile(r"0\d{1,5}[ ./-](?:\d{2,8}[ ./-]?)+|\(0\d{1,5}\) ?(?:\d{2,8}[ ./-]?)+")
GROUPING_REGIONS = ("GB", "DE", "FR", "AU", "AT", "CH", "NL", "BE", "SE", "JP", "IN")
"""Countries whose numbers begin with a 0 and are written in groups."""


def phones(text: str) -> Iterator[Bounds]:
    """Find phone numbers of seven to fifteen digits, extensions included."""
    for match in CANDIDATE.finditer(text) if LONG_NUMBER.search(text) else ():
        start, end = match.span()
        number = match[0]
        if number.startswith("(") and ")" not in number:
            start, number = start + 1, number[1:]
        if number.count("(") == number.count(")") and _is_phone(number, text, start, end):
            yield start, end


def _is_phone(number: str, text: str, start: int, end: int) -> bool:
    if "+" in number or number.startswith("00"):
        return _has_country(number)
    if NO_PHONE.fullmatch(number):
        return False
    phone, other = nearest(SAYS_PHONE, text, start, lines=2), nearest(SAYS_OTHER, text, start)
    if phone > other or SAYS_PHONE_AFTER.search(text[end : end + 16]):
        return True
    return other < 0 and _is_grouped(number)


def _has_country(number: str) -> bool:
    """Tell whether a country has such numbers; behind a plus, whether it could."""
    with_plus = re.sub(r"^\(?(?:\+|00)", "+", number)
    return _in_plan(with_plus, None, possible="+" in number)


def _is_grouped(number: str) -> bool:
    """Tell whether it is written as North American numbers are, or begins with a 0 and is valid in a country's plan."""
    if NORTH_AMERICA.fullmatch(re.sub(r" ?(?:x|ext).*", "", number)):
        return True
    return bool(TRUNK.fullmatch(number)) and any(_in_plan(number, region) for region in GROUPING_REGIONS)


def _in_plan(number: str, region: str | None, *, possible: bool = False) -> bool:
    import phonenumbers

    try:
        parsed = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:  # such as after a region's prefix for calls abroad, 010 in Japan
        return False
    check = phonenumbers.is_possible_number if possible else phonenumbers.is_valid_number
    return bool(check(parsed))
