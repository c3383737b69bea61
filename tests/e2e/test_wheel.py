"""The wheel holds the recipes, and its code starts from them without the repository beside it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .conftest import environment

pytest.importorskip("hatchling", reason="builds without a network only where hatchling is installed")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """Build the wheel and unpack it; returns the folder that would be site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    flags = ["--no-deps", "--no-build-isolation", "-q", "-w", str(folder)]
    command = [sys.executable, "-m", "pip", "wheel", *flags, str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    (wheel,) = folder.glob("llmpipe-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def from_wheel(unpacked, folder, *arguments):
    env = environment(PYTHONPATH=os.pathsep.join([str(unpacked)]))
    code = "import llmpipe, sys; sys.stderr.write(llmpipe.__file__ + '\\n'); from llmpipe.cli import app; app()"
    return subprocess.run([sys.executable, "-c", code, *arguments], env=env, cwd=folder, capture_output=True, text=True)


def test_the_recipes_are_inside(unpacked):
    inside = {path.name for path in (unpacked / "llmpipe/recipes").iterdir()}
    assert inside == {path.name for path in (ROOT / "recipes").iterdir() if path.name != "__pycache__"}
    assert "quickstart.yaml" in inside


def test_the_page_of_the_report_is_inside(unpacked):
    assert {"page.css", "page.html.jinja"} <= {path.name for path in (unpacked / "llmpipe/report").iterdir()}


def test_only_the_package_is_inside(unpacked):
    assert {path.name.split("-")[0] for path in unpacked.iterdir()} == {"llmpipe"}


def test_init_and_plan_work_from_it(unpacked, tmp_path):
    done = from_wheel(unpacked, tmp_path, "init", "mine.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(str(unpacked)), "this is the repository's code, not the wheel's"
    assert "name: mine\n" in (tmp_path / "mine.yaml").read_text(encoding="utf-8")
    assert from_wheel(unpacked, tmp_path, "plan", "mine.yaml").returncode == 0
