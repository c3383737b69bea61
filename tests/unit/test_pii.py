"""Personal data: what is found and what is not, that masks are final, and the figures on generated texts."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llmpipe.curation import Verdict
from llmpipe.curation.pii import Settings, build, find, mask
from llmpipe.curation.spans import KINDS, Kind
from tests.unit.people import MAKERS, Random, scores, texts

LEAST = {"email": (0.95, 0.95), "ip": (0.95, 0.95), "card": (0.95, 0.95), "iban": (0.95, 0.95), "phone": (0.80, 0.90)}
KEY = "ghp_" + "a1B2c3D4e5" * 4


def found(text: str) -> list[tuple[str, str]]:
    return [(span.kind, text[span.start : span.end]) for span in find(text)]


@pytest.fixture(scope="module")
def fresh() -> dict[str, tuple[float, float]]:
    """Recall and precision by kind, on numbers and sentences that no rule was tuned on."""
    all_kinds = scores(text for kind in MAKERS for text in texts(kind, 1, tuning=False))
    return {kind: (score.recall, score.precision) for kind, score in all_kinds.items()}


@pytest.mark.parametrize("kind", LEAST)
def test_fresh_texts_are_read_as_promised(kind: str, fresh: dict[str, tuple[float, float]]) -> None:
    recall, precision = fresh[kind]
    assert recall >= LEAST[kind][0]
    assert precision >= LEAST[kind][1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to jo.li+news@mail.example.org.", [("email", "jo.li+news@mail.example.org")]),
        ("jo [at] example [dot] org", [("email", "jo [at] example [dot] org")]),
        ("from 203.0.113.9 and 2001:db8::8a2e:1", [("ip", "203.0.113.9"), ("ip", "2001:db8::8a2e:1")]),
        ("to GB82 WEST 1234 5698 7654 32 by noon", [("iban", "GB82 WEST 1234 5698 7654 32")]),
        ("card 4111 1111 1111 1111", [("card", "4111 1111 1111 1111")]),
        ("gift card 5018 5018 5012, order 5018646679", []),
        ("call +44 20 7946 0958 or (212) 555-0142", [("phone", "+44 20 7946 0958"), ("phone", "(212) 555-0142")]),
        ("Phone:\n78 651 450", [("phone", "78 651 450")]),
        (f"token={KEY}", [("key", KEY)]),
        (
            "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG\n",
            [("key", "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG")],
        ),
    ],
)
def test_what_is_found(text: str, expected: list[tuple[str, str]]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Visa 4111 1111 1111 1112",  # Luhn
        "order 4111111111111111 shipped, order 020 7946 0958 too",  # the words beside them
        "GB82 WEST 1234 5698 7654 33",  # the checksum
        "version 10.0.0.1, 127.0.0.1, 255.255.255.0, 1.2.3.4.5",
        "std::vector and a::b, x[1::2], 12:30:45",
        "logo@2x.png, git@github.com:a/b.git, @name",
        "On 2024-03-01 it cost 1 200 300 in 1990-2004; ISBN 978-3-16-148410-0; lat 48.858370",
        "(0099) 123 45678",  # a call abroad, to nowhere
        "It begins with -----BEGIN PRIVATE KEY----- and is long.",
        "sk-xxxxxxxxxxxxxxxxxxxxxxxx, api_key=your_api_key_goes_here_1",
    ],
)
def test_what_is_not(text: str) -> None:
    assert found(text) == []


def test_a_card_is_no_phone_where_only_phones_are_wanted() -> None:
    assert found("Call 378282246310005") == [("card", "378282246310005")]
    assert find("Call 378282246310005", ["phone"]) == []


def test_mask_report_and_drop() -> None:
    text = "Mail jo@example.org, call +44 20 7946 0958."
    masked = Verdict(("Mail <email>, call <phone>.",), ("email", "phone"))
    assert build(Settings())(text) == masked
    assert build(Settings(action="report"))(text) == Verdict((text,), ("email", "phone"))
    assert build(Settings(action="drop"))(text) == Verdict((), ("email", "phone"))
    assert build(Settings(kinds=["phone"]))(text).texts == ("Mail jo@example.org, call <phone>.",)
    assert build(Settings(action="drop"))("Nothing here.") == Verdict(("Nothing here.",))


def test_a_kind_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValidationError, match="'email', 'phone', 'ip', 'iban', 'card' or 'key'"):
        Settings.model_validate({"kinds": ["name"]})


PIECES = st.one_of(
    st.builds(lambda kind, seed: MAKERS[kind](Random(seed)), st.sampled_from(KINDS), st.integers(0, 999)),
    st.sampled_from(["call", "card", "order", "phone:", "key =", "<", ">", "@", ".", ":", "-", "+", "\n", "[at]"]),
    st.text(alphabet="0123456789 .-+()@:/<>abAB", max_size=12),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=8), st.sampled_from(["", " "]), st.lists(st.sampled_from(KINDS), min_size=1))
def test_masked_text_is_final(pieces: list[str], between: str, kinds: list[Kind]) -> None:
    text = between.join(pieces)
    masked = mask(text, kinds)
    assert not find(masked, kinds)
    assert mask(masked, kinds) == masked
    outside = re.split("<(?:email|phone|ip|iban|card|key)>", masked)
    assert all(part in text for part in outside)  # nothing but what was found is gone


@settings(max_examples=100, deadline=None)
@example(["jo@example.org", "[at]", "li@example.com"])
@given(st.lists(PIECES, max_size=8))
def test_spans_are_in_order_and_apart(pieces: list[str]) -> None:
    spans = find(" ".join(pieces))
    assert all(left.end <= right.start for left, right in pairwise(spans))
    assert all(span.start < span.end for span in spans)
