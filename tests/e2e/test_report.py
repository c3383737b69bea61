"""A run ends with a report; report, diff, logs and clean on a real run."""

import json
import shutil
import subprocess

import pytest

from .conftest import actions, environment

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_a_run_ends_with_its_report(finished):
    run_dir, done = finished
    assert f"\n  report  runs/{run_dir.name}/report.html\n" in done.stderr
    pictures = {path.name for path in (run_dir / "report").iterdir()}
    assert pictures == {"lineage.svg", "base-loss.svg", "base-learning-rate.svg", "model-card.md"}
    assert (run_dir / "report.html").stat().st_size < 100_000


def test_it_is_not_written_again_where_nothing_ran(llmpipe, run_dir):
    before = (run_dir / "report.html").stat().st_mtime_ns
    llmpipe("run", "tiny.yaml")
    assert (run_dir / "report.html").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "command", ["report runs/tiny", "diff runs/tiny runs/tiny", "logs runs/tiny", "clean runs/tiny --dry-run"]
)
def test_looking_needs_no_torch(llmpipe, run_dir, command):
    llmpipe.write("fake/torch.py", "raise SystemExit('torch was imported')")
    path = f"{llmpipe.folder / 'fake'}:{environment().get('PYTHONPATH', '')}"
    json.loads(llmpipe(*command.split(), "--json", env=environment(PYTHONPATH=path)).stdout)


def test_diff_shows_the_key_that_differs_and_what_it_moved(llmpipe, run_dir):
    """chat learns at another rate: tok and base are what they were, and so is what eval measured of base."""
    shutil.copytree(run_dir, llmpipe.folder / "runs" / "other")
    llmpipe.here("run", "tiny.yaml", "--run", "runs/other", "--set", "chat.trainer.learning_rate=1e-3")
    found = json.loads(llmpipe("diff", "runs/tiny", "runs/other", "--json").stdout)
    assert [(one["stage"], one["key"], one["after"]) for one in found["settings"]] == [
        ("chat", "trainer.learning_rate", 0.001)
    ]
    assert {f"{one['stage']}.{one['metric']}" for one in found["metrics"]} == {
        *("chat.held_out_loss", "chat.held_out_perplexity"),
        *("scores.chat.perplexity", "scores.chat.bits_per_byte", "scores.chat.nats_per_character"),
    }
    assert llmpipe("diff", "runs/tiny", "tiny.yaml").stdout == "the settings are the same\nno metric differs\n"


def test_logs_are_lines_to_read(llmpipe, run_dir):
    told = llmpipe("logs", "runs/tiny", "base").stdout.splitlines()
    assert len(told) == len((run_dir / "base" / "metrics.jsonl").read_text().splitlines())
    assert all(line.startswith("base") and "/6  " in line for line in told)
    assert llmpipe("logs", "runs/tiny", "base", "-f").stdout.splitlines() == told


def test_what_clean_deletes_nobody_misses(llmpipe, run_dir):
    llmpipe("clean", "runs/tiny", "--yes")
    assert not (run_dir / "base" / "checkpoints").exists()
    assert set(actions(llmpipe, "tiny.yaml").values()) == {"skip"}


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium")
def test_a_browser_shows_it_on_a_telephone_without_a_complaint(llmpipe, run_dir):
    """The page forbids itself to load anything (default-src 'none'), so that an attempt would be a console message."""
    page = run_dir / "report.html"
    assert "default-src 'none'" in page.read_text(encoding="utf-8")
    measure = (
        "let root = this.contentDocument.documentElement; "
        "root.querySelectorAll('details').forEach(one => one.open = true); "
        "document.title = root.scrollWidth + ' of ' + root.clientWidth"
    )
    look = "width: 375px; height: 700px; border: 0"
    frame = llmpipe.write("frame.html", f'<iframe src="{page.as_uri()}" style="{look}" onload="{measure}"></iframe>')
    flags = "--headless=new --no-sandbox --disable-gpu --hide-scrollbars --allow-file-access-from-files"
    logging = [
        "--disable-background-networking",
        "--enable-logging=stderr",
        f"--user-data-dir={llmpipe.folder / 'profile'}",
    ]
    command = [BROWSER, *flags.split(), *logging, "--virtual-time-budget=2000", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "<title>375 of 375</title>" in done.stdout
    assert "CONSOLE" not in done.stderr
