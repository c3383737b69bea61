"""Presidio itself as the engine of pii, with a spaCy pipeline made here, and without a network.

Runs where presidio can be imported, or where LLMPIPE_PRESIDIO_PYTHON names a Python that can import it and llmpipe.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PYTHON = os.environ.get("LLMPIPE_PRESIDIO_PYTHON") or (sys.executable if find_spec("presidio_analyzer") else None)
TEXT = "Ada Vane of Rome: ada@example.org, card 4111 1111 1111 1111."
SCRIPT = """
import json, socket, sys

def refuse(*_):
    raise AssertionError("the network was asked")

socket.socket.connect = socket.getaddrinfo = refuse
import spacy
from llmpipe.curation.pii import Settings, build

nlp, folder, text = spacy.blank("en"), *sys.argv[1:]
rules = [{"label": "PERSON", "pattern": "Ada Vane"}, {"label": "GPE", "pattern": "Rome"}]
nlp.add_pipe("entity_ruler").add_patterns(rules)
nlp.to_disk(folder)
engines = [
    {"entities": ["PERSON", "LOCATION"], "model": folder},
    {"entities": ["CREDIT_CARD", "EMAIL_ADDRESS"]},
    {"entities": ["CREDIT_CARDS"]},
]
for engine in engines:
    try:
        told = build(Settings.model_validate({"engine": {"name": "presidio", **engine}}))(text).texts[0]
    except Exception as error:
        told = str(error)
    print(json.dumps(told))
"""


@pytest.mark.skipif(PYTHON is None, reason="presidio is not installed, and LLMPIPE_PRESIDIO_PYTHON names no Python")
def test_names_by_a_model_and_forms_by_patterns(tmp_path: Path) -> None:
    command = [str(PYTHON), "-c", SCRIPT, str(tmp_path / "model"), TEXT]
    home = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run(command, capture_output=True, text=True, env=home, check=False)
    assert found.returncode == 0, found.stderr
    names, forms, unknown = map(json.loads, found.stdout.splitlines())
    assert names == TEXT.replace("Ada Vane", "<PERSON>").replace("Rome", "<LOCATION>")
    assert forms == "Ada Vane of Rome: <EMAIL_ADDRESS>, card <CREDIT_CARD>."
    assert unknown == "presidio finds no CREDIT_CARDS in the language en, did you mean CREDIT_CARD?"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]  # no list of suffixes kept at home
