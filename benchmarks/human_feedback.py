"""The loop of human feedback: answers are ranked on the page, their rankings train a reward model, PPO follows it.

    python benchmarks/human_feedback.py --run runs/quickstart [--prompts 150] [--browser 12]

Scripted people with one criterion, a happy ending, rank what the quickstart's `chat` says: through the page's API, and
the first twelve questions of one of them by keys in a headless Chromium. `ann` is always right, `bob` in nine of ten
rankings, and `cy` does not look: gold questions tell, and the export leaves cy out. What is exported goes into
recipes/human-feedback.yaml as it ships; the stories that are judged in the end are about pairs of animal and thing that
nobody was asked about.

Exits 1 where happy endings do not rise by 25 points, fewer than 85 % of the stories are about what was asked for, or
the careless annotator was not told from the others. Takes about eight minutes on two cores.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmpipe.data import storyworld
from llmpipe.ranking.export import export
from llmpipe.ranking.page.app import create_app
from llmpipe.ranking.shown import summary
from llmpipe.ranking.start import Wanted, sampled
from llmpipe.ranking.store import Store, store_path
from llmpipe.talk.engine import Sampling
from llmpipe.talk.serve.connection import Server
from llmpipe.talk.serve.guard import Limits

ROOT = Path(__file__).parents[1]
RISE, FOLLOWS, LEAST_GOLD = 0.25, 0.85, 0.8
GOLD = 12
ERRORS = {"ann": 0.0, "bob": 0.1, "cy": 1.0}
"""In which share of rankings each of them orders at random."""


def is_happy(text: str) -> bool:
    return storyworld.judge(storyworld.Request("", ""), text.strip()).happy


def ranks_of(answers: list[str], name: str, chance: random.Random) -> list[int]:
    """Rank by happy endings; endings of one kind are equally good."""
    if chance.random() < ERRORS[name]:
        return [chance.randrange(1, 3) for _ in answers]
    return [1 if is_happy(text) else 2 for text in answers]


class Person:
    """Somebody at the page, as its API sees a browser."""

    def __init__(self, port: int, name: str, link: str, seed: int) -> None:
        self.port, self.name, self.cookie, self.chance = port, name, "", random.Random(f"{seed} {name}")
        reply, _ = self.ask("GET", link)
        self.cookie = reply.headers["Set-Cookie"].partition(";")[0]

    def ask(self, method: str, path: str, content: Any = None) -> tuple[http.client.HTTPResponse, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Origin": f"http://127.0.0.1:{self.port}", "Cookie": self.cookie, "Content-Type": "application/json"}
        connection.request(method, path, None if content is None else json.dumps(content), headers)
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        return reply, text

    def rank_all(self) -> None:
        told = json.loads(self.ask("GET", "/api/question")[1])
        while told["state"] != "done":
            if question := told["question"]:
                ranks = ranks_of(question["answers"], self.name, self.chance)
                said = {"question": question["id"], "verdict": "ranked", "ranks": ranks}
                told = json.loads(self.ask("POST", "/api/ranking", said)[1])
            else:
                time.sleep(0.5)
                told = json.loads(self.ask("GET", "/api/question")[1])


def rank_by_keys(link: str, count: int, chance: random.Random) -> None:
    """Rank the first prompts in a browser, as a person at a keyboard does."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=300_000)  # answers are still being sampled
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(link)
        for number in range(1, count + 1):
            expect(page.locator("#count")).to_have_text(re.compile(f"^{number} of"))
            ranks = ranks_of(page.locator(".card .words").all_inner_texts(), "ann", chance)
            for place in sorted(set(ranks)):
                page.keyboard.type("=".join(str(at) for at, rank in enumerate(ranks, 1) if rank == place))
            page.keyboard.press("Enter")
        expect(page.locator("#count")).to_have_text(re.compile(f"^{count + 1} of"))
        browser.close()


@contextmanager
def serving(app: Any) -> Iterator[int]:
    server, listening = Server(app), socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def rank(folder: Path, prompts: int, browser: int, seed: int) -> dict[str, Any]:
    """Have everybody rank, and export; returns what `rank --show` and `rank --export` say."""
    asked = list(storyworld.prompts(rows=prompts, seed=seed))
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    gold = storyworld.preferences(rows=GOLD, seed=seed + 1)
    (folder / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gold), encoding="utf-8")
    wanted = Wanted(
        "runs/quickstart",
        prompts="prompts.jsonl",
        models=["chat"],
        gold=Path("gold.jsonl"),
        seed=seed,
        how=Sampling(max_new_tokens=52, temperature=1.0),
    )
    begun = time.monotonic()
    with Store(store_path("runs/quickstart")) as store, sampled(store, wanted) as (form, sampler):
        app = create_app(store, form, sampler=sampler, limits=Limits(requests_per_s=10_000, burst=10_000))
        with serving(app) as port:
            links = {name: f"/signin?code={app.state.signin.code_for(name)}" for name in ERRORS}
            if browser:
                link = f"http://127.0.0.1:{port}/signin?code={app.state.signin.code_for('ann')}"
                rank_by_keys(link, browser, random.Random(seed))
            people = [Person(port, name, link, seed) for name, link in links.items()]
            threads = [threading.Thread(target=one.rank_all) for one in people]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        done = export(store, Path("rankings.jsonl"), "rankings", least_gold=LEAST_GOLD)
        return summary(store) | {"exported": vars(done), "seconds": time.monotonic() - begun}


def train(folder: Path) -> tuple[float, dict[str, dict[str, float]]]:
    """Run the recipe as it ships; returns its seconds, and what the storyworld says of the models."""
    shutil.copy(ROOT / "recipes" / "human-feedback.yaml", folder)
    begun = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [str(Path(sys.executable).with_name("llmpipe")), "run", "human-feedback.yaml"]
    subprocess.run(command, env=environment, check=True)
    scores = json.loads(Path("runs/human-feedback/scores/scores.json").read_text(encoding="utf-8"))
    return time.monotonic() - begun, scores["models"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished run of the quickstart")
    parser.add_argument("--prompts", type=int, default=150)
    parser.add_argument("--browser", type=int, default=12, help="prompts that are ranked in a browser")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave all in it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        run = folder / "runs" / "quickstart"
        run.mkdir(parents=True)
        shutil.copy(given.run / "recipe.yaml", run)
        shutil.copytree(given.run / "chat", run / "chat", ignore=shutil.ignore_patterns("checkpoints"))
        os.chdir(folder)
        ranked = rank(folder, given.prompts, given.browser, given.seed)
        print(json.dumps(ranked, indent=1))
        seconds, scores = train(folder)
    before, after = list(scores.values())
    print(f"ranked in {ranked['seconds']:.0f} s, trained in {seconds:.0f} s")
    print("|  | happy endings | about both | grammar |\n|---|---|---|---|")
    for name, one in (("before", before), ("after", after)):
        print(f"| {name} | {one['happy_share']:.1%} | {one['follows_share']:.1%} | {one['well_formed_share']:.1%} |")
    rises = after["happy_share"] - before["happy_share"] >= RISE and after["follows_share"] >= FOLLOWS
    return 0 if rises and list(ranked["exported"]["left_out"]) == ["cy"] else 1


if __name__ == "__main__":
    sys.exit(main())
