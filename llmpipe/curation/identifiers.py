"""Finders of what identifies by its form: e-mail and IP addresses, bank accounts, cards, keys.

A finder yields the bounds of what it finds in a text, without overlap. Patterns only propose; what has a
checksum (IBAN: ISO 13616, card: Luhn, ISO/IEC 7812) or a parser (IP) is checked by it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from llmpipe.curation.spans import LONG_NUMBER, Bounds, apart, nearest

EMAIL = re.compile(r"(?<![\w.%+'-])[\w%+'-]+(?:\.[\w%+'-]+)*@(?:[^\W_](?:[\w-]*[^\W_])?\.)+[^\W\d_]{2,24}(?![\w@-])")
SPELT_EMAIL = re.compile(
    r"(?<![\w.%+'-])[\w.%+'-]+ ?[\[(] ?at ?[\])] ?[\w-]+(?: ?[\[(] ?dot ?[\])] ?[\w-]+|\.[\w-]+)+", re.IGNORECASE
)
SPELT_AT = re.compile(r"[\[(] ?at ?[\])]", re.IGNORECASE)
NOT_A_DOMAIN = re.compile(r"\.(?:png|jpe?g|gif|svg|webp|avif|css|js|py|html?)$", re.IGNORECASE)  # logo@2x.png


def emails(text: str) -> list[Bounds]:
    """Find e-mail addresses, `name [at] host [dot] org` too; not the address of a git repository."""
    found: list[Bounds] = []
    for match in EMAIL.finditer(text) if "@" in text else ():
        start = match.start() + len(match[0]) - len(match[0].lstrip("'"))
        ssh = text.startswith("git@", start) and text.startswith(":", match.end())
        if not ssh and not NOT_A_DOMAIN.search(match[0]):
            found.append((start, match.end()))
    spelt = SPELT_EMAIL.finditer(text) if SPELT_AT.search(text) else ()
    return found + apart((match.span() for match in spelt), found)


IPV4 = re.compile(r"(?<![\w.:])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\w)")
IPV4_SIGN = re.compile(r"\d\.\d{1,3}\.\d")  # a sign is sought first, because it is found faster
IPV6 = re.compile(r"(?<![\w.:])[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]*:[0-9A-Fa-f.:]*[0-9A-Fa-f:](?![\w:]|\.\w)")
IPV6_SIGN = re.compile(r":[0-9A-Fa-f]{0,4}:")
A_VERSION = re.compile(
    r"(?:\b(?:v|ver|versions?|release|build|firmware|driver|section|chapter|clause|step|upgraded? to|update|patch)\.?"
    r"|[a-z]/|[=<>~^]=)[ :#]{0,2}$",
    re.IGNORECASE,
)


def ips(text: str) -> Iterator[Bounds]:
    """Find addresses of hosts, v4 and v6: no versions, netmasks, loopback, times, nor the slices and scopes of code."""
    for match in IPV4.finditer(text) if IPV4_SIGN.search(text) else ():
        before = text[max(0, match.start() - 16) : match.start()]
        if _is_host_v4(match[0]) and not A_VERSION.search(before):
            yield match.span()
    if IPV6_SIGN.search(text):
        yield from (match.span() for match in IPV6.finditer(text) if _is_host_v6(match[0]))


def _is_host_v4(text: str) -> bool:
    try:
        address = IPv4Address(text)
    except AddressValueError:
        return False
    return not address.is_loopback and 0 < address.packed[0] < 240


def _is_host_v6(text: str) -> bool:
    """Tell an address from `a::b` of a language: addresses in use begin with four digits and have a long group."""
    try:
        address = IPv6Address(text)
    except AddressValueError:
        return False
    groups = text.split(":")
    if "::" in text:
        return len(groups[0]) == 4 and any(character.isdigit() for character in text) and not address.is_loopback
    return max(map(len, groups)) > 2


IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?=[ -]?[A-Za-z0-9]{4})")
IBAN_LENGTHS = range(34, 14, -1)


def ibans(text: str) -> Iterator[Bounds]:
    """Find international bank account numbers by country, length and checksum, in one piece or in groups."""
    from stdnum import iban

    end_of_last = 0
    for match in IBAN.finditer(text):
        if match.start() < end_of_last:
            continue
        ends = _ends(text, match.start())
        for length in IBAN_LENGTHS:
            end = ends.get(length)
            if end and iban.is_valid(text[match.start() : end], check_country=False):
                end_of_last = end
                yield match.start(), end
                break


def _ends(text: str, start: int) -> dict[int, int]:
    """Return where a number of n letters and digits would end, for each n at which a word or a group ends."""
    ends, length = {}, 0
    for match in re.finditer(r"[A-Za-z0-9]+[ -]?", text[start : start + 48]):
        group = match[0].rstrip(" -")
        length += len(group)
        ends[length] = start + match.start() + len(group)
        if text[ends[length] : ends[length] + 1] not in (" ", "-"):
            break
    return ends


CARD = re.compile(
    r"(?<![\w.,/+-])(?:\d{12,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ -])\d{6}\2\d{4,5})(?![\w/]|[.,-]\d)"
)
# Prefixes and lengths that issuers use; ISO/IEC 7812-1 and the networks' own tables.
ISSUED = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|3(?:0[0-5]|[689]\d)\d{11}"  # Diners Club
    r"|(?:352[89]|35[3-8]\d)\d{12}|(?:2131|1800)\d{11}"  # JCB
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12}|62\d{14,17}"  # Discover, UnionPay
    r"|(?:50(?:18|20|38)|5[678]\d\d|6304|6390|67(?:59|6[1-3])|0604)\d{8,15}"  # Maestro
)
OF_A_CARD = re.compile(
    r"\b(?:cards?|cc|visa|master|maestro|amex|diners|jcb|discover|credit|debit|pay\w*|paid)\b", re.IGNORECASE
)
NO_CARD = re.compile(
    r"\b(?:orders?|invoice|tracking|ref(?:erence)?|ticket|serial|isbn|imei|ean|upc|part|sku|batch|parcel|shipment"
    r"|timestamp|uuid|id)\b",
    re.IGNORECASE,
)
RARE_DIGITS = (12, 13)
"""Lengths of few cards and of many other numbers (EAN, ISBN, milliseconds): taken only where the text says card."""


def cards(text: str) -> Iterator[Bounds]:
    """Find payment cards by the Luhn sum, and by issuer and length or the nearest word: card, not order or serial."""
    from stdnum import luhn

    for match in CARD.finditer(text) if LONG_NUMBER.search(text) else ():
        digits = re.sub(r"[ -]", "", match[0])
        if not luhn.is_valid(digits):
            continue
        of_a_card, no_card = nearest(OF_A_CARD, text, match.start()), nearest(NO_CARD, text, match.start())
        issued = ISSUED.fullmatch(digits) and len(digits) not in RARE_DIGITS
        if of_a_card > no_card or (issued and of_a_card == no_card):  # the same where neither is said
            yield match.span()


KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
    r"(?:[^-]{20,20000}-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|(?:\s+[A-Za-z0-9+/=]{16,})+)"
    r"|(?<![A-Za-z0-9_])(?:"
    r"(?:AKIA|ASIA)[A-Z0-9]{16}"  # Amazon
    r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,}|glpat-[\w-]{20,}"  # GitHub, GitLab
    r"|sk-(?:proj-|ant-|live-|or-)?(?=[A-Za-z_-]*\d)[\w-]{20,}"  # OpenAI, Anthropic
    r"|hf_[A-Za-z0-9]{30,}|AIza[\w-]{35}"  # Hugging Face, Google
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}|[rps]k_(?:live|test)_[A-Za-z0-9]{16,}"  # Slack, Stripe
    r"|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}|SG\.[\w-]{16,}\.[\w-]{16,}"  # registries, SendGrid
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"  # JSON web tokens, RFC 7519
    r")(?![A-Za-z0-9_-])"
)
ASSIGNED = re.compile(
    r"(?:[Kk]ey|KEY|[Tt]oken|TOKEN|[Ss]ecret|SECRET)\w{0,8}['\"]? ?(?:[:=]|is|=>) ?['\"]?"
    r"([\w+/.-]{20,}={0,2})"
)
ASSIGNED_SIGNS = "key Key KEY token Token TOKEN secret Secret SECRET".split()
KEY_SIGNS = (
    "PRIVATE AKIA ASIA ghp_ gho_ ghu_ ghs_ ghr_ github_pat_ glpat- sk- hf_ AIza xox k_live_ k_test_ npm_ pypi- SG. eyJ"
).split()
LEAST_CHARACTERS = 10
"""Different ones in a key with a prefix: `sk-xxxxxxxxxxxxxxxxxxxx` is none."""
LEAST_ENTROPY_BITS = 3.5
"""Of a key without, per character: below that of 20 random letters and digits, above that of `deadbeefdeadbeef`."""


def credentials(text: str) -> list[Bounds]:
    """Find private keys, keys of services by their prefix, and random values given to a key, token or secret."""
    found: list[Bounds] = []
    if any(sign in text for sign in KEY_SIGNS):  # several times as fast as the pattern
        found = [match.span() for match in KEY.finditer(text) if len(set(match[0])) >= LEAST_CHARACTERS]
    assigned = ASSIGNED.finditer(text) if any(sign in text for sign in ASSIGNED_SIGNS) else ()
    return found + apart((match.span(1) for match in assigned if _is_random(match[1])), found)


def _is_random(text: str) -> bool:
    """Tell letters and digits drawn at random from words joined, `your_api_key_here`, and `xxxxxxxx`."""
    shares = [count / len(text) for count in Counter(text).values()]
    bits = -sum(share * math.log2(share) for share in shares)
    return bits >= LEAST_ENTROPY_BITS and len(re.findall(r"\d", text)) > 1 and text.lower() != text.upper()
