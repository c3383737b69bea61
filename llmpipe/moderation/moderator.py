"""Puts texts through the layers, decides by the policy, and writes every decision to the log.

    verdict = moderator.judge("My card is 4111 1111 1111 1111.", "input")
    verdict.text        # what may pass
    verdict.blocked     # the decision that holds it back, if any

A layer sees what the layers before it let pass: a guard on another machine is not sent what `personal` redacts.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import get_args

from llmpipe.errors import TalkError
from llmpipe.moderation import Action, Find, Layer, LayerName, Place
from llmpipe.moderation.log import Log
from llmpipe.moderation.policy import Policy

REMOVED = "[removed]"
UNREACHABLE = "unreachable"
PLACES: tuple[Place, ...] = get_args(Place)
APPEAL = re.compile(r"\s*/appeal\s+(m-[0-9a-f]+)\s+(\S.*)", re.DOTALL)
"""What a person says against a decision, in a message or in the terminal."""
HOW_TO_APPEAL = "/appeal m-0123abcd WHY, with the reference that the refusal names"


class Refusal(TalkError):
    """The policy holds a text back; the message is for the person who said it."""


@dataclass(frozen=True)
class Mark:
    """A find, and the rule that says what becomes of it."""

    find: Find
    layer: LayerName
    rule: str
    action: Action

    @property
    def start(self) -> int:
        """Where the find begins."""
        return self.find.start

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.find.end


@dataclass(frozen=True)
class Decision:
    """What was decided by a rule; decisions about one text share the reference."""

    reference: str
    place: Place
    layer: LayerName
    rule: str
    category: str
    score: float
    action: Action


@dataclass(frozen=True)
class Verdict:
    """What may pass of a text, and what was decided on the way."""

    text: str
    decisions: tuple[Decision, ...] = ()

    @property
    def blocked(self) -> Decision | None:
        """The decision that nothing of it may pass."""
        return next((one for one in self.decisions if one.action == "block"), None)

    @property
    def is_certain(self) -> bool:
        """Whether every layer could look."""
        return all(one.category != UNREACHABLE for one in self.decisions)


class Moderator:
    """A policy with its layers, in the order in which they look, and its log. For several threads at once."""

    def __init__(self, policy: Policy, layers: Mapping[LayerName, Layer], log: Log) -> None:
        self.policy, self.layers, self.log = policy, layers, log
        self._rules = {
            (layer, place): [(name, rule, action) for name, rule in rules if (action := rule.action(place))]
            for layer in layers
            for rules in [policy.of_layer(layer).items()]
            for place in PLACES
        }

    def judge(self, text: str, place: Place) -> Verdict:
        """Put a whole text through the layers, as far as the first one that blocks.

        Raises:
            TalkError: the log cannot be written.
        """
        reference, decisions = new_reference(), list[Decision]()
        for layer in self.layers:
            verdict = self.decide(text, self.marks(layer, text, place), place, reference)
            decisions += verdict.decisions
            text = verdict.text
            if verdict.blocked:
                break
        return Verdict(text, tuple(decisions))

    def marks(self, layer: LayerName, text: str, place: Place) -> list[Mark]:
        """Return what a layer finds in a text and the policy has a rule for."""
        if not (rules := self._rules[layer, place]):
            return []
        try:
            found = self.layers[layer].find(text)
        except TalkError:
            is_closed = self.policy.guard is None or self.policy.guard.unreachable == "block"
            away = Find(UNREACHABLE, 1.0, 0, len(text))
            return [Mark(away, layer, f"{layer}-{UNREACHABLE}", "block" if is_closed else "log")]
        return [
            Mark(find, layer, name, action)
            for find in found
            for name, rule, action in rules
            if find.category in rule.category and find.score >= rule.score
        ]

    def decide(self, text: str, marks: Sequence[Mark], place: Place, reference: str) -> Verdict:
        """Write what becomes of a passage to the log, and return what may pass of it."""
        decisions = tuple(
            Decision(reference, place, one.layer, one.rule, one.find.category, round(one.find.score, 4), one.action)
            for one in marks
        )
        for decision in decisions:
            self.log.decision(asdict(decision), text)
        if any(one.action == "block" for one in marks):
            return Verdict("", decisions)
        return Verdict(redacted(text, [one for one in marks if one.action == "redact"]), decisions)

    def refusal(self, decision: Decision) -> str:
        """Return what is said in place of what is blocked."""
        return self.policy.refusal.replace("{rule}", decision.rule).replace("{reference}", decision.reference)

    def appeal(self, text: str) -> str | None:
        """Take up an appeal, where a text is one, and return what to say to it.

        Raises:
            TalkError: it names no reference of the log, or gives no reason.
        """
        if not re.match(r"\s*/appeal\b", text):
            return None
        found = APPEAL.fullmatch(text)
        if found is None:
            raise TalkError("an appeal names a reference and says why", hint=HOW_TO_APPEAL)
        if not self.log.appeal(found[1], found[2].strip()):
            raise TalkError(f"there is no decision {found[1]}", hint=HOW_TO_APPEAL)
        return f"Your appeal against {found[1]} is noted. A person will read it."


def warnings(decisions: Iterable[Decision]) -> list[str]:
    """Return what to show beside a text of which the policy warns, once for each rule."""
    warned = {one.rule: one for one in decisions if one.action == "warn"}
    return [
        f'moderation: the rule "{one.rule}" holds here ({one.category}); {one.reference}' for one in warned.values()
    ]


def new_reference() -> str:
    """Return a name for a decision, by which a person can appeal."""
    return f"m-{secrets.token_hex(4)}"


def redacted(text: str, marks: Iterable[Mark]) -> str:
    """Put `[removed]` for what is marked; marks may overlap.

    Not `<phone>` and the like: with such a word beside it, the next number would be read in another way.
    """
    last, parts = 0, list[str]()
    for mark in sorted(marks, key=lambda one: (one.start, -one.end)):
        if mark.end <= last:
            continue
        if mark.start >= last:
            parts += [text[last : mark.start], REMOVED]
        last = mark.end
    return "".join([*parts, text[last:]])
