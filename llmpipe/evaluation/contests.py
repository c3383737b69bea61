"""The win rates of an eval stage: the models answer the questions one after the other, then a judge compares them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.artifact import write_text
from llmpipe.context import Context
from llmpipe.data import said, storyworld
from llmpipe.data.preferences import Prompt
from llmpipe.data.sources import read_prompts, read_ranked
from llmpipe.errors import StageError
from llmpipe.evaluation import judges
from llmpipe.evaluation.generate import Sampling, Told, told
from llmpipe.evaluation.win_rate import Duel, Judge, Verdict, judge_both_ways, standing
from llmpipe.judging import JudgeServer, JudgingSettings, WinRate
from llmpipe.settings import BuiltinSource
from llmpipe.training.models import kind_of

ANSWERS = "answers.jsonl"
STORIES = 200
"""Requests of the storyworld, from pairs held out of sft."""


@dataclass
class Contests:
    """What was asked, and what the models answered so far. The judge is made first: a missing key costs no time."""

    settings: JudgingSettings
    ctx: Context
    sampling: Sampling
    prompts: list[Prompt]
    judge: Judge | None
    answers: dict[str, list[Told]] = field(default_factory=dict)

    def hear(self, name: str, model: PreTrainedModel, tokenizer: Tokenizer, *, chat: bool) -> None:
        """Have a model answer all questions, if it takes part."""
        if not any(name in (one.of, one.against) for one in self.settings.win_rate):
            return
        if kind_of(model.config, ()) == "masked-lm":
            raise StageError(f"win_rate asks for answers, and {name} is a masked model, which gives none")
        self.ctx.progress(doing=f"asking {name} {len(self.prompts)} questions")
        self.answers[name] = told(model, tokenizer, self.prompts, self.sampling, chat=chat)

    def results(self) -> list[dict[str, Any]]:
        """Judge every contest, write what was judged to answers.jsonl, and return one entry for each contest."""
        lines: list[str] = []
        found = []
        for one in self.settings.win_rate:
            sides = (self.answers[one.of], self.answers[one.against])
            duels = [Duel(*texts) for texts in zip(self.prompts, *sides, strict=True)]
            verdicts: Sequence[Verdict | None] = [None] * len(duels)
            if self.judge is not None:
                self.ctx.progress(doing=f"judging {one.of} against {one.against}")
                verdicts = judge_both_ways(self.judge, duels)
                found.append(_entry(one, self.judge.name, verdicts))
            lines += [json.dumps(_line(one, *both), ensure_ascii=False) for both in zip(duels, verdicts, strict=True)]
        write_text(self.ctx.dir / ANSWERS, "".join(f"{line}\n" for line in lines))
        if self.judge is None:
            self.ctx.say(f"nobody judges: fill in `ranks` in {self.ctx.dir / ANSWERS} and name it with `rankings:`")
        return found


def _entry(one: WinRate, judge: str, verdicts: Sequence[Verdict | None]) -> dict[str, Any]:
    """Describe a contest for scores.json."""
    score = standing(verdicts)
    if not score.judged:
        raise StageError(f"the judge {judge} has no verdict on any answer of {one.of} and {one.against}")
    return {
        "of": one.of,
        "against": one.against,
        "judge": judge,
        "win_rate": score.win_rate,
        "interval": list(score.interval),
        "wins": score.wins,
        "losses": score.losses,
        "ties": score.ties,
        "unjudged": score.unjudged,
    }


def _line(one: WinRate, duel: Duel, verdict: Verdict | None) -> dict[str, Any]:
    """Write a question and its answers as data sets of rankings do; 1 is the better rank."""
    ranks = {"first": [1, 2], "second": [2, 1], "tie": [1, 1], None: None}[verdict]
    turns = duel.prompt.messages
    prompt = turns[0]["content"] if len(turns) == 1 else [{"role": t["role"], "content": t["content"]} for t in turns]
    answers = [duel.first.text, duel.second.text]
    return {"prompt": prompt, "answers": answers, "ranks": ranks, "models": [one.of, one.against]}


def prepared(settings: JudgingSettings, ctx: Context, sampling: Sampling, prompts: Sequence[str]) -> Contests:
    """Read the questions and make the judge ready; `prompts` are what to ask where no questions are named."""
    plain = [Prompt([said("user", text)], text) for text in prompts]
    asked = plain if settings.questions is None else list(_questions(settings, ctx))
    judge: Judge | None = None
    if isinstance(settings.judge, JudgeServer):
        judge = judges.server_judge(settings.judge)
    elif settings.judge is not None:
        judge = judges.score_judge(settings.judge, ctx)
    elif settings.rankings is not None:
        judge = judges.people_judge(one for _, one in read_ranked(settings.rankings, ctx))
    return Contests(settings, ctx, sampling, asked, judge)


def _questions(settings: JudgingSettings, ctx: Context) -> Iterator[Prompt]:
    """Yield the questions; of the storyworld, those that no stage trains on."""
    for source in settings.questions or ():
        if isinstance(source, BuiltinSource):
            for row in storyworld.prompts(rows=source.rows or STORIES, seed=ctx.seed, held_out=True):
                yield Prompt([said(turn["role"], turn["content"]) for turn in row["prompt"]])
        else:
            yield from (prompt for _, prompt in read_prompts([source], ctx))
