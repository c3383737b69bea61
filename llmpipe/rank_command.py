"""The command by which people rank answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from llmpipe.errors import UsageError
from llmpipe.flags import Json, guarded
from llmpipe.talk_commands import NAMES, AllowHost, Expose, Host, KeyVariable

SEVERAL = ("--models", "--criteria", "--annotator")

Run = Annotated[str, typer.Argument(metavar="RUN", help="Run directory, or a FILE.sqlite3 of rankings.")]
Prompts = Annotated[
    str | None, typer.Option("--prompts", metavar="FILE", help="What is asked, or storyworld; else the last round.")
]
Models = Annotated[
    list[str] | None, typer.Option("--models", metavar="NAME...", help=f"Stages of RUN, or any of: {NAMES}")
]
Count = Annotated[int, typer.Option("--n", min=1, help="Answers to each prompt, 2 to 6; models take turns.")]
Criteria = Annotated[
    list[str] | None,
    typer.Option("--criteria", metavar="NAME...", help="Such as helpfulness quality safety; overall if left out."),
]
Guidelines = Annotated[
    Path | None, typer.Option("--guidelines", metavar="FILE", help="Text that people are shown beside a criterion.")
]
Gold = Annotated[
    Path | None, typer.Option("--gold", metavar="FILE", help="Preferences that are known, mixed in as questions.")
]
Annotators = Annotated[
    list[str] | None, typer.Option("--annotator", metavar="NAME...", help="Who ranks; with --page several.")
]
Page = Annotated[bool, typer.Option("--page", help="Rank in a browser; a link for each annotator.")]
Export = Annotated[Path | None, typer.Option("--export", metavar="FILE", help="Write what was ranked, as JSON lines.")]
Form = Annotated[
    Literal["rankings", "pairs", "kto"], typer.Option("--as", help="Rows to export; kto: thumbs, and all bad.")
]
LeastGold = Annotated[
    float | None,
    typer.Option("--least-gold", metavar="SHARE", min=0, max=1, help="Leave out who saw less of the gold."),
]
Show = Annotated[bool, typer.Option("--show", help="Progress, agreement, gold questions, models.")]
Seed = Annotated[int, typer.Option(min=0, help="Of answers and of the order in which they are shown.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 takes the likeliest token every time.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0 takes one that is free.")]


class _Spread(TyperCommand):
    """Lets several values follow one option: `--models chat ppo` is `--models chat --models ppo`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spread: list[str] = []
        option: str | None = None
        for argument in args:
            if argument.startswith("-"):
                option = argument if argument in SEVERAL else None
            elif option is not None and spread[-1] != option:
                spread.append(option)
            spread.append(argument)
        return super().parse_args(ctx, spread)


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Talk", cls=_Spread)(guarded(rank))


def rank(
    run: Run,
    prompts: Prompts = None,
    models: Models = None,
    count: Count = 4,
    criteria: Criteria = None,
    guidelines: Guidelines = None,
    gold: Gold = None,
    annotator: Annotators = None,
    page: Page = False,
    export: Export = None,
    form: Form = "rankings",
    least_gold: LeastGold = None,
    show: Show = False,
    seed: Seed = 42,
    temperature: Temperature = 0.8,
    max_new_tokens: MaxNewTokens = 256,
    key_variable: KeyVariable = None,
    host: Host = "127.0.0.1",
    port: Port = 8001,
    expose: Expose = False,
    allow_host: AllowHost = None,
    json_output: Json = False,
) -> None:
    """Have people rank models' answers, blind; writes the preferences that reward and dpo learn from."""
    from llmpipe.ranking import shown, start
    from llmpipe.ranking.store import Store, store_path
    from llmpipe.talk.engine import Sampling

    if export is None and (form != "rankings" or (least_gold is not None and not show)):
        raise UsageError("--as and --least-gold say what to export", hint="--export pairs.jsonl")
    names = list(dict.fromkeys(annotator or ["me"]))
    if not page and len(names) > 1:
        raise UsageError("one person ranks at a terminal; several do on the page", hint="--page")
    how = Sampling(max_new_tokens=max_new_tokens, temperature=temperature)
    wanted = start.Wanted(run, prompts, models or (), count, criteria or (), guidelines, gold, seed, how, key_variable)
    with Store(store_path(run)) as store:
        if export is not None:
            shown.export(store, export, form, criteria=criteria or (), least_gold=least_gold, as_json=json_output)
        elif show:
            shown.show(store, least_gold=least_gold, as_json=json_output)
        elif page:
            from llmpipe.ranking.page.start import Where, serve

            serve(store, wanted, names, Where(host, port, expose, allow_host or ()), as_json=json_output)
        else:
            start.rank(store, wanted, names[0])
