"""Turn rows into preferences, for reward models.

A preference is two answers to one prompt, the better one first. They come as pairs in many shapes, as dialogues
in one text each, or as several answers with scores, ranks or ratings; `PREFERENCES` lists the formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from llmpipe.data import (
    Cells,
    Message,
    Problems,
    Row,
    dialogues,
    kind,
    misplaced,
    rankings,
    said,
    tables,
    turn_message,
    user_words,
)
from llmpipe.data.formats import TOLD, question_turns, tool_list, turns, with_system
from llmpipe.data.tables import Format, Table
from llmpipe.errors import DataError

PAIR = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt; `chosen` is the better one, under `criterion` if there are several.

    `chosen` and `rejected` come after `prompt` and end in an assistant turn. `text` is set when the row held plain
    strings: prompt, chosen and rejected, each answer to be put straight after the prompt; a model without a chat
    template reads it instead of the messages. `margin` says by how much the chosen one is better, in the units of
    the data. `tools` is what the answers may call, as JSON.
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    criterion: str | None = None
    margin: float | None = None
    text: tuple[str, str, str] | None = None
    tools: str | None = None

    @property
    def asked(self) -> str:
        """What decides on which side of a split it falls; without a prompt, that is the chosen answer."""
        return user_words(self.prompt) or self.chosen[-1]["content"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked: the last message is a user's or a tool's, or there is none for an empty plain prompt.

    `text` is set when the row held a plain string, for models without a chat template. `reference` is the answer that
    the row itself gives, for reward functions.
    """

    messages: list[Message]
    text: str | None = None
    tools: str | None = None
    reference: str | None = None

    @property
    def asked(self) -> str:
        """What decides on which side of a split it falls."""
        return user_words(self.messages)


def preferences(
    rows: Iterable[Row],
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    problems: Problems | None = None,
) -> Iterator[tuple[Row, Preference]]:
    """Yield each good row with its preference, or one after the other where it has several; then raise all problems.

    Raises:
        DataError: with the problems of all rows; at once for a first row that fits no format, and for answers
            that are labelled one by one.
    """
    table, pairs, row = Table(PREFERENCES, _single_answers), 0, None
    for row, found in tables.converted(rows, table, columns=columns, format=format, problems=problems):
        pairs += len(found)
        yield from ((row, preference) for preference in found)
    if row is not None and not pairs:
        raise DataError("no row gives a pair: all answers to a prompt are equally good")


def _single_answers(value: Mapping[str, object]) -> str | None:
    if "label" not in value or any(set(form.needs) <= set(value) for form in PREFERENCES.values()):
        return None
    what = "these are single answers, each with a label (KTO data)"
    return f"{what}; pairs are needed: a chosen and a rejected answer to the same prompt"


def before_answers(cells: Cells, name: str, messages: list[Message], text: str | None = None) -> Prompt:
    """Check what comes before the answers, and add the system and the tools column."""
    tools = tool_list(cells)
    if not cells.wrong:
        cells.wrong.extend(f"{name} {wrong}" for wrong in misplaced(messages))
    if not cells.wrong and messages and messages[-1]["role"] not in ("user", "tool"):
        cells.wrong.append(f"{name} ends with {messages[-1]['role']}; the last turn must be the user's")
    return Prompt(with_system(cells, messages), text, tools)


def asked_in(cells: Cells, *, asks: tuple[str, ...]) -> Prompt:
    """Read a prompt that is a text, with its input and history, a dialogue in one text, or a list of turns."""
    value, name = cells.value[asks[0]], cells.name(asks[0])
    if asks[0] in LISTED or isinstance(value, list):
        if value == []:
            cells.wrong.append(f"{name} has no turns")
        return before_answers(cells, name, turns(cells, asks[0]))
    if isinstance(value, str) and dialogues.is_dialogue(value):
        spoken = dialogues.turns(value, name, cells.wrong)
        if not spoken[-1]["content"]:  # only the label of the answer to come
            return before_answers(cells, name, spoken[:-1], value)
        return before_answers(cells, name, spoken, value + dialogues.ANSWER)
    spoken = question_turns(cells, asks)
    prompt = before_answers(cells, name, spoken)
    return _plain(prompt) if len(spoken) == 1 else prompt  # rounds of history have no plain form


def _plain(prompt: Prompt) -> Prompt:
    return replace(prompt, text="\n\n".join(message["content"] for message in prompt.messages))


def _answer(cells: Cells, column: str) -> list[Message]:
    """Read an answer that is a text, a turn, or a list of turns."""
    value, name = cells.value[column], cells.name(column)
    if isinstance(value, str):
        return [said("assistant", cells.text(column))]
    if isinstance(value, dict):
        return [turn_message(value, name, cells.wrong)]
    if isinstance(value, list):
        return turns(cells, column)
    cells.wrong.append(f"{name} is {kind(value)}, not a text, a turn or a list of turns")
    return []


def _pair(cells: Cells, *, asks: tuple[str, ...] = (), answers: tuple[str, str] = PAIR) -> list[Preference]:
    """Convert a row with a better and a worse answer; without `asks`, the prompt is what both begin with."""
    one, other = (cells.value[column] for column in answers)
    texts = (one, other) if isinstance(one, str) and isinstance(other, str) else None
    if texts and not asks and any(map(dialogues.is_dialogue, texts)):
        return _dialogue_pair(cells, texts)
    chosen, rejected = (_answer(cells, column) for column in answers)
    if any(side and side[0]["role"] in ("system", "user") for side in (chosen, rejected)):
        return _whole_pair(cells, chosen, rejected, asks)
    prompt = asked_in(cells, asks=asks) if asks else _plain(before_answers(cells, "", []))
    text = (prompt.text, *texts) if texts and prompt.text is not None else None
    return _checked(cells, Preference(prompt.messages, chosen, rejected, text=text, tools=prompt.tools), answers)


def _dialogue_pair(cells: Cells, texts: tuple[str, str]) -> list[Preference]:
    """Convert two dialogues that are one text each, as in hh-rlhf."""
    names = [cells.name(column) for column in PAIR]
    for name, other, text in zip(names, reversed(names), texts, strict=True):
        if not dialogues.is_dialogue(text):
            cells.wrong.append(f"{name} does not begin with Human:, but {other} does")
            return []
    chosen, rejected = (dialogues.turns(text, name, cells.wrong) for name, text in zip(names, texts, strict=True))
    return _whole_pair(cells, chosen, rejected, (), text=dialogues.cut(*texts))


def _whole_pair(
    cells: Cells,
    chosen: list[Message],
    rejected: list[Message],
    asks: tuple[str, ...],
    text: tuple[str, str, str] | None = None,
) -> list[Preference]:
    """Convert answers that repeat the conversation before them; a prompt column only says again how it goes."""
    name, other = map(cells.name, PAIR)
    if not cells.wrong:
        cells.wrong.extend(f"{name} {wrong}" for wrong in misplaced(chosen))
        cells.wrong.extend(f"{other} {wrong}" for wrong in misplaced(rejected))
    start = dialogues.shared(chosen, rejected)
    if not cells.wrong and not start:
        cells.wrong.append(f"{name} and {other} do not begin with the same question")
    elif not cells.wrong and asks:
        value = cells.value[asks[0]]
        before = turns(cells, asks[0]) if isinstance(value, list) else [said("user", cells.text(asks[0]))]
        if not cells.wrong and user_words(before).strip() not in user_words(chosen[:start]):
            cells.wrong.append(f"{name} does not begin with {cells.name(asks[0])}")
    prompt = before_answers(cells, name, chosen[:start])
    pair = Preference(prompt.messages, chosen[start:], rejected[start:], text=text, tools=prompt.tools)
    return _checked(cells, pair, PAIR)


def _checked(cells: Cells, pair: Preference, answers: tuple[str, str]) -> list[Preference]:
    """Return the preference of a row, with its criterion and margin, if its answers fit."""
    criterion, margin = _criterion(cells), cells.value.get("margin")
    if margin is not None and not rankings.is_number(margin):
        cells.wrong.append(rankings.no_number(cells.name("margin"), margin))
        margin = None
    if not cells.wrong:
        for column, side in zip(answers, (pair.chosen, pair.rejected), strict=True):
            name = cells.name(column)
            cells.wrong.extend(f"{name} {wrong}" for wrong in misplaced(side, before="user"))
            if not side or side[-1]["role"] != "assistant":
                cells.wrong.append(f"{name} does not end with an answer")
    return [] if cells.wrong else [replace(pair, criterion=criterion, margin=None if margin is None else float(margin))]


def _criterion(cells: Cells) -> str | None:
    return cells.text("criterion", needed=False).strip() or None


def _ranking(cells: Cells, *, asks: tuple[str, ...]) -> list[Preference]:
    """Convert a row with several answers to all its pairs."""
    prompt, texts, criterion = asked_in(cells, asks=asks), rankings.answer_texts(cells), _criterion(cells)
    if cells.wrong:
        return []
    return [
        Preference(
            prompt.messages,
            [said("assistant", texts[found.better])],
            [said("assistant", texts[found.worse])],
            found.criterion or criterion,
            found.margin,
            None if prompt.text is None else (prompt.text, texts[found.better], texts[found.worse]),
            prompt.tools,
        )
        for found in rankings.comparisons(cells, texts)
    ]


LISTED = ("conversations", "messages")
TASK = ("instruction", "input")
JUDGED = (*TOLD, "criterion", "margin")
RANKED = (*TOLD, "criterion", *rankings.JUDGED_BY)
RESPONSES = ("response_j", "response_k")

PREFERENCES: dict[str, Format[list[Preference]]] = {
    # Before the lists of turns: some data sets with a prompt have a messages column besides, with the chosen answer.
    "prompt-pairs": Format(("prompt", *PAIR), JUDGED, "a prompt and two answers", partial(_pair, asks=("prompt",))),
    "instruction-pairs": Format(
        ("instruction", *PAIR), ("input", *JUDGED), "a task and two answers", partial(_pair, asks=TASK)
    ),
    "question-pairs": Format(
        ("question", *PAIR), JUDGED, "a question, two answers", partial(_pair, asks=("question",))
    ),
    "sharegpt-pairs": Format(
        ("conversations", *PAIR), JUDGED, "turns with from and value, two answers", partial(_pair, asks=LISTED[:1])
    ),
    "messages-pairs": Format(
        ("messages", *PAIR), JUDGED, "turns with role and content, two answers", partial(_pair, asks=LISTED[1:])
    ),
    "pairs": Format(PAIR, JUDGED, "two whole conversations, as turns or as dialogues in one text", _pair),
    "question-responses": Format(
        ("question", *RESPONSES), JUDGED, "the first is better", partial(_pair, asks=("question",), answers=RESPONSES)
    ),
    "prompt-answers": Format(
        ("prompt", "answers"), RANKED, "answers with scores, or best first", partial(_ranking, asks=("prompt",))
    ),
    "question-answers": Format(
        ("question", "answers"), RANKED, "answers with scores, or best first", partial(_ranking, asks=("question",))
    ),
}
"""The formats of preferences by name, as they are tried and help lists them."""
