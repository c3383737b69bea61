"""The bias report: counts that add up, words that stand out, and how it is shown."""

from __future__ import annotations

import json
import random
from collections import Counter
from xml.etree import ElementTree

import pytest
from pydantic import BaseModel, ValidationError

from llmpipe.curation import bias
from llmpipe.curation.bias_picture import picture, table
from llmpipe.curation.groups import MoreGroups, draw, groups


def total(texts: list[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        bias.add(counts, bias.count(text))
    return counts


def corpus(sentences: int = 400) -> list[str]:
    """Return sentences in which women nurse twice in three times, men once, and both walk."""
    rng = random.Random(7)
    made = []
    for _ in range(sentences):
        who, share = rng.choice([("She", 2 / 3), ("He", 1 / 3)])
        made.append(f"{who} {'nursed' if rng.random() < share else 'welded'} and walked.")
    return made


def test_what_is_counted() -> None:
    counts = bias.count("She met her brother. The brother, a German sailor, laughed! Rain fell.")
    assert counts == {
        "documents": 1,
        "gender/women": 2,
        "gender/women/": 1,
        "gender/men": 2,
        "gender/men/": 1,
        "nationality/german": 1,
        "nationality/german/": 1,
        "gender/women/met": 1,
        "gender/men/met": 1,
        "gender/men/sailor": 1,
        "gender/men/laughed": 1,
        "nationality/german/sailor": 1,
        "nationality/german/laughed": 1,
    }


def test_counts_add_up_in_any_order() -> None:
    texts = corpus(60)
    parts = [total(texts[:20]), total(texts[20:])]
    assert total(texts) == total(texts[::-1]) == parts[0] + parts[1]


def test_a_sum_stays_bounded_and_keeps_what_is_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bias, "PAIRS_MAX", 100)
    counts: Counter[str] = Counter()
    for number in range(1000):
        name = "".join(chr(97 + int(digit)) for digit in f"{number:04d}")
        bias.add(counts, bias.count(f"She sang of rare{name}."))
        assert len(counts) <= 100
    assert (
        counts["gender/women"] == counts["gender/women/"] == counts["gender/women/sang"] == counts["documents"] == 1000
    )


def test_words_that_go_together_with_a_group_stand_out() -> None:
    counts = total(corpus())
    found = bias.report(counts, counts)["groups"]["gender"]
    assert found["women"]["before"]["words"] == ["nursed"]
    assert found["men"]["before"]["words"] == ["welded"]


def test_z_is_the_log_odds_ratio_of_the_paper() -> None:
    own, everyone = Counter(nursed=20, walked=80), Counter(nursed=30, walked=170)
    z = dict(bias.telling_words(own, everyone))
    # by hand: prior 500 × 30/200 = 75; own 20 + 75 of 600, others 10 + 75 of 600
    assert z["nursed"] == pytest.approx(0.8763, abs=1e-4)
    assert z["nursed"] > 0 > z["walked"]
    assert bias.telling_words(own, own) == []  # nobody to compare with
    assert bias.telling_words(Counter(sang=5), Counter(sang=9)) == []  # one word is all there is


def test_chance_is_not_reported() -> None:
    rng = random.Random(3)
    words = [f"word{chr(97 + a)}{chr(97 + b)}" for a in range(10) for b in range(10)]
    counts = total([f"{rng.choice(['She', 'He'])} {' '.join(rng.choices(words, k=5))}." for _ in range(800)])
    found = bias.report(counts, counts)["groups"]["gender"]
    assert sum(len(found[name]["before"]["words"]) for name in found) <= 10  # of 100 words, 5 % by chance


def test_shares_and_documents() -> None:
    report = bias.report(total(["She and her son.", "Rain."]), total(["He."]))
    assert report["documents"] == {"before": 2, "after": 1}
    women, men = report["groups"]["gender"]["women"], report["groups"]["gender"]["men"]
    assert women["before"] == {"mentions": 2, "share": 0.6667, "documents": 1, "words": []}
    assert women["after"] == {"mentions": 0, "share": 0.0, "documents": 0, "words": []}
    assert (men["before"]["mentions"], men["after"]["share"]) == (1, 1.0)
    assert report["groups"]["religion"] == {}
    json.dumps(report)


def test_a_recipe_adds_groups_and_words() -> None:
    more = groups({"profession": {"nurses": "nurse nurses"}, "gender": {"women": "Ladyship"}})
    counts = bias.count("Her ladyship the nurse", more)
    assert (counts["profession/nurses"], counts["gender/women"]) == (1, 2)
    assert bias.report(counts, counts, more)["groups"]["profession"]["nurses"]["after"]["share"] == 1.0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"age": {"old": "grey-haired"}}, "'grey-haired' must be one word, of letters alone"),
        ({"a/b": {"old": "grey"}}, "'a/b' must be letters, digits and spaces"),
    ],
)
def test_words_that_could_not_be_counted_are_refused(more: dict[str, dict[str, str]], message: str) -> None:
    class Options(BaseModel):
        groups: MoreGroups

    with pytest.raises(ValidationError, match=message):
        Options(groups=more)


NATIONS = "American British Irish Canadian French German Italian Spanish Dutch Greek Russian".split()


def test_the_table_fits_a_terminal_and_sums_up_the_tail() -> None:
    after = [f"The {name} choir." for number, name in enumerate(NATIONS) for _ in range(number)]
    report = bias.report(total(corpus()), total([*corpus(300), *after]))
    lines = table(report).splitlines()
    assert lines[0] == "Groups of people in 400 documents before, 355 after."
    assert all(len(line) <= 80 for line in lines)
    assert "| gender           |   before |  share |    after |  share |" in lines
    assert any(line.startswith("| 2 others         |        0 |   0.0% |        3 |") for line in lines)
    assert "- women: nursed" in lines
    assert not any("religion" in line for line in lines)


def test_the_picture_is_xml_with_a_pair_of_bars_for_each_group() -> None:
    odd = groups({"gender": {"a & b": "xenogender"}})
    counts = bias.count("She, he, a xenogender and a German", odd)
    drawn = ElementTree.fromstring(picture(bias.report(counts, counts, odd)))
    space = "{http://www.w3.org/2000/svg}"
    bars = [bar.get("class") for bar in drawn.iter(f"{space}rect") if bar.get("y") != "14"]
    assert Counter(bars) == {"ground": 1, "before": 4, "after": 4}
    assert "a & b" in [text.text for text in drawn.iter(f"{space}text")]
    widths = [float(bar.get("width")) for bar in drawn.iter(f"{space}rect")]
    assert max(widths) <= float(drawn.get("width"))


def test_a_draw_is_even_and_another_one_for_each_salt() -> None:
    texts = [f"text {number}" for number in range(2000)]
    one, two = draw("one"), draw("two")
    assert sum(one(text) < 0.3 for text in texts) / 2000 == pytest.approx(0.3, abs=0.04)
    both = sum(one(text) < 0.5 and two(text) < 0.5 for text in texts)
    assert both / 2000 == pytest.approx(0.25, abs=0.04)
