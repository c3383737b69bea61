"""Gates and bounds as JUnit XML, which CI servers show as tests: one test case for each.

The format is what Jenkins, GitLab and GitHub's reporters read in common: testsuite, testcase, failure, error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from llmpipe import bounds
from llmpipe.artifact import Manifest, read_manifest, write_text
from llmpipe.errors import LlmpipeError, Problem, UsageError
from llmpipe.plan import Step

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, escaped or not."""


def refuse_folder(path: Path | None) -> None:
    """Say at once where a file cannot be written at the end.

    Raises:
        UsageError: its folder is missing, or it is one itself.
    """
    if path is not None and path.is_dir():
        raise UsageError(Problem("is a folder, and a file is needed", where=f"--junit {path}"))
    if path is not None and not path.absolute().parent.is_dir():
        raise UsageError(Problem(f"{path.parent} is no folder", where=f"--junit {path}"))


def write_if_asked(
    path: Path | None, run_dir: Path, steps: Sequence[Step], *, failure: LlmpipeError | None = None
) -> None:
    """Write the file, if there is to be one; `failure` is what ended the run."""
    if path is not None:
        write(path, run_dir, steps, failure=failure)


def write(path: Path, run_dir: Path, steps: Sequence[Step], *, failure: LlmpipeError | None = None) -> None:
    """Write a test suite for each stage that is done, and a case in one of its own for what ended the run."""
    root = ElementTree.Element("testsuites", name=clean(run_dir.absolute().name))
    for step in steps:
        manifest = read_manifest(run_dir / step.name)
        if manifest is not None and manifest.fingerprint == step.record.fingerprint:
            _add(root, step.name, list(_cases(step, manifest)), seconds=manifest.seconds)
    if failure is not None:
        stage = failure.problems[0].path or "run"
        _add(root, stage, [_ended(stage, problem.message) for problem in failure.problems])
    for count in ("tests", "failures", "errors"):
        root.set(count, str(sum(int(suite.get(count, 0)) for suite in root)))
    ElementTree.indent(root)
    write_text(path, ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n")


def _cases(step: Step, manifest: Manifest) -> Iterator[ElementTree.Element]:
    for gate in manifest.gates:
        yield _case(step.name, f"gate {gate.name}", {} if gate.passed else {"failure": gate.why})
    fail_if = step.record.settings.get("fail_if", {})
    if problem := bounds.unknown(fail_if, manifest.metrics):
        yield _case(step.name, "fail_if", {"error": problem})
        return
    for check in bounds.checks(fail_if, manifest.metrics):
        name = f"fail_if {check.metric} {check.bound}"
        yield _case(step.name, name, {"failure": str(check)} if check.is_crossed else {})


def _ended(stage: str, message: str) -> ElementTree.Element:
    """Make the test case of what ended a run: a gate that failed, or anything else."""
    if gate := re.fullmatch(r"gate '(.+?)' failed(?: \(.*?\))?: (.*)", message, re.DOTALL):
        return _case(stage, f"gate {gate[1]}", {"failure": gate[2]})
    return _case(stage, "run", {"error": message})


def _case(stage: str, name: str, wrong: dict[str, str]) -> ElementTree.Element:
    """Make a test case; `wrong` has a message under `failure` or `error`, or nothing."""
    case = ElementTree.Element("testcase", classname=clean(stage), name=clean(name))
    for kind, message in wrong.items():
        ElementTree.SubElement(case, kind, message=clean(message))
    return case


def _add(root: ElementTree.Element, name: str, cases: Sequence[ElementTree.Element], *, seconds: float = 0.0) -> None:
    """Add a suite; one without cases says nothing, and some readers refuse it."""
    if cases:
        suite = ElementTree.SubElement(root, "testsuite", name=clean(name), tests=str(len(cases)))
        for kind in ("failure", "error"):
            suite.set(f"{kind}s", str(sum(case.find(kind) is not None for case in cases)))
        suite.set("time", f"{seconds:.2f}")
        suite.extend(cases)


def clean(text: str) -> str:
    """Replace what XML cannot hold."""
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
