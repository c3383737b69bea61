"""Chat templates come with models, and are programs: they reach nothing, and end."""

from __future__ import annotations

import ast
import time
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

import llmpipe
from llmpipe.data.formats import Conversation
from llmpipe.errors import TalkError
from llmpipe.talk.local import LocalEngine
from llmpipe.training import templates
from llmpipe.training.chat import render

SAID = [{"role": "user", "content": "q"}]
BREAKOUTS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
    "{{ lipsum.__globals__['os'].popen('touch canary').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ ''|attr('__class__') }}{{ (''|attr('__class__')).mro() }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{{ messages.append.__self__.__class__.__base__ }}",
    "{% set x = messages.append({'role': 'user'}) %}{{ strftime_now.__globals__['os'].system('touch canary') }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('canary', 'w') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('touch canary') }}",
]
BOMBS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f() %}{% for a in range(99999) %}{{ a }}{% endfor %}{% endmacro %}"
    "{% for a in range(99999) %}{% set x = f() %}{% endfor %}",
]


@pytest.mark.parametrize("template", BREAKOUTS)
def test_a_template_reaches_nothing(template: str, tokenizer: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer.chat_template = template
    try:
        said = templates.apply(tokenizer, SAID, tokenize=False)
    except (TemplateError, TypeError, AttributeError):
        said = ""
    assert not list(tmp_path.iterdir())
    assert "root:" not in said and "<function" not in said and "<module" not in said and "<class 'object'>" not in said


@pytest.mark.parametrize("template", BOMBS)
def test_a_template_that_does_not_end_is_ended(template: str, tokenizer: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(templates, "LIMIT_S", 0.2)
    monkeypatch.setattr(templates, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(templates, "_watch", templates._Watch())
    tokenizer.chat_template = template
    with pytest.raises(templates.TemplateLimitError, match="the template takes more than 0 s"):
        render(Conversation([{**SAID[0], "train": False}]), tokenizer, 1)
    time.sleep(0.3)  # nothing comes after
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert render(Conversation([{**SAID[0], "train": False}]), tokenizer, 1) == "q"


def test_a_template_that_calls_itself(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
    with pytest.raises(TemplateError, match="a macro of the template calls itself for ever"):
        templates.apply(tokenizer, SAID, tokenize=False)


def test_who_talks_is_told(tokenizer: Any, make_model: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(templates, "LIMIT_S", 0.2)
    monkeypatch.setattr(templates, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(templates, "_watch", templates._Watch())
    tokenizer.chat_template = BOMBS[0]
    engine = LocalEngine(make_model(), tokenizer, name="bomb")
    try:
        with pytest.raises(TalkError) as caught:
            engine.count(SAID)
    finally:
        engine.close()
    assert str(caught.value) == "the chat template of bomb refuses this conversation: the template takes more than 0 s"


def test_an_error_that_comes_too_late_is_taken_back() -> None:
    watch = templates._Watch()
    watch.is_on = True  # no thread: this one plays it
    watch.enter()
    watch.begun.clear()
    watch.leave()
    assert sum(range(1000)) == 499500


def test_nothing_else_renders_templates_of_models() -> None:
    """One call that goes around the limit is enough to hang a server."""
    for path in Path(llmpipe.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name != "templates.py" and "apply_chat_template" in text:
            for node in ast.walk(ast.parse(text)):
                assert not (isinstance(node, ast.Attribute) and node.attr == "apply_chat_template"), path
