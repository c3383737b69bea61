"""What `kind: eval` understands of judging: which of two models answers better, what is refused, what must hold.

scores:
  kind: eval
  models: [chat, ppo]
  win_rate: {of: ppo, against: chat}
  judge: reward                                   # or {url: http://localhost:8000/v1, model: NAME}
  questions: {path: questions.jsonl}
  fail_if: {ppo.beats_chat_share: "< .6"}
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from llmpipe.bounds import Bound
from llmpipe.settings import Accepts, DataSources, RewardSource, StageSettings, Strict

METRICS = {
    "perplexity": (
        *("perplexity", "bits_per_byte", "nats_per_character", "tokens"),
        *("pseudo_perplexity", "denoising_loss", "hidden_tokens"),
    ),
    "samples": (),
    "storyworld": ("follows_share", "well_formed_share", "happy_share", "pirate_share"),
}
"""What a suite may measure; which of the first it is depends on the kind of the model."""


def _address(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise PydanticCustomError("address", "write an address such as http://localhost:8000/v1", {})
    return value


class JudgeServer(Strict):
    """A model at an address that speaks OpenAI's chat completions."""

    url: Annotated[str, AfterValidator(_address)] = Field(description="address, such as http://localhost:8000/v1")
    model: str = Field(min_length=1, description="name of the model there")
    key_variable: str | None = Field(
        None, pattern=r"^[A-Za-z_]\w*$", description="environment variable that holds the key; none is sent without"
    )


JUDGES = ("a judge at an address", "a judge with a score")
"""Pydantic's tags of the kinds of judges: no keys of a recipe, so that a message can leave them out."""


def _which(value: Any) -> str:
    return JUDGES[not (isinstance(value, JudgeServer) or (isinstance(value, dict) and "url" in value))]


Judge = Annotated[
    Annotated[JudgeServer, Tag(JUDGES[0])] | Annotated[RewardSource, Tag(JUDGES[1])],
    Discriminator(_which),
]


class WinRate(Strict):
    """Two of the models, by the names that they have in the table."""

    of: str = Field(description="the model whose wins are counted")
    against: str = Field(description="the model that it is compared with")

    @property
    def metric(self) -> str:
        """What the share of wins is called among the metrics of the model."""
        return f"beats_{self.against}_share"


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) or value is None else [value]


class JudgingSettings(StageSettings):
    """The keys of an eval stage that have to do with judging."""

    win_rate: Annotated[list[WinRate], BeforeValidator(_as_list)] = Field(
        default_factory=list,
        description="{of: ppo, against: chat}, or several: the share of questions that one answers better",
    )
    judge: Annotated[Judge | None, Accepts(("reward-model",), fill=False)] = Field(
        None, description="what says which answer is better: a reward model, a function, or {url, model}"
    )
    rankings: Annotated[DataSources | None, Accepts(("dataset",), fill=False)] = Field(
        None, description="what people say instead: rankings of the answers in an earlier run's answers.jsonl"
    )
    questions: Annotated[DataSources | None, Accepts(("dataset",), fill=False)] = Field(
        None, description="what to ask for the win rate; `prompts` when left out"
    )
    refusals: Annotated[DataSources | None, Accepts(("dataset",), fill=False)] = Field(
        None, description="prompts that are to be refused, with a category each: gives refused_share"
    )
    pronouns: Annotated[DataSources | None, Accepts(("dataset",), fill=False)] = Field(
        None, description="questions about whom a pronoun means (Winogender): gives accuracy for she, he and they"
    )
    fail_if: dict[str, Bound] = Field(
        default_factory=dict,
        description='bounds: {perplexity: "> 20", ppo.happy_share: "< .9"}; where one holds, the run ends with code 3',
    )

    def unused_inputs(self) -> frozenset[str]:
        """All of it may be left out."""
        return frozenset({"judge", "rankings", "questions", "refusals", "pronouns"})

    def judged_metrics_of(self, name: str) -> list[str]:
        """Name what judging may say of a model."""
        is_judged = self.judge is not None or self.rankings is not None
        found = [one.metric for one in self.win_rate if one.of == name and is_judged]
        found += ["refused_share"] if self.refusals else []
        return found + (["she_accuracy", "he_accuracy", "they_accuracy"] if self.pronouns else [])

    def contest_problem(self, names: list[str], *, asks: bool) -> str | None:
        """Say what is wrong with the win rates, given the names of the models and whether there are prompts."""
        from llmpipe.errors import did_you_mean

        for one in self.win_rate:
            for name in (one.of, one.against):
                if name not in names:
                    near = did_you_mean(name, names) or f"; models here: {', '.join(names)}"
                    return f"win_rate: no model here is called '{name}'{near}"
            if one.of == one.against:
                return f"win_rate: {one.of} is compared with itself"
        if self.win_rate and not asks:
            return "win_rate needs questions: `questions: {path: FILE}`, or `prompts:`"
        if self.judge and self.rankings:
            return "both `judge:` and `rankings:` say which answer is better; keep one"
        if (self.judge or self.rankings) and not self.win_rate:
            return "a judge needs two models to compare: `win_rate: {of: NAME, against: NAME}`"
        return None
