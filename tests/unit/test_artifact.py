"""The run directory on disk: writes that are whole or not there, locks that name their holder, hashes that are true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmpipe import artifact
from llmpipe.artifact import HashCache, Manifest, StepRecord
from llmpipe.errors import LockedError, StageError

RECORD = StepRecord(name="tok", kind="tokenizer", stage_version=1, fingerprint="f" * 64, seed=1, settings={}, inputs=[])


def test_a_write_replaces_the_whole_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    artifact.write_json(path, {"long": "x" * 1000})
    artifact.write_json(path, {"ä": 1})
    assert path.read_text(encoding="utf-8") == '{\n  "ä": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    artifact.write_json(path, {"old": 1})

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StageError) as caught:
        artifact.write_json(path, {"new": 2})
    assert str(caught.value) == f"{path}: cannot be written: Input/output error"
    assert json.loads(path.read_text(encoding="utf-8")) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_step_json_comes_back_and_keeps_unknown_keys_out(tmp_path: Path) -> None:
    artifact.write_json(tmp_path / "step.json", RECORD)
    written = json.loads((tmp_path / "step.json").read_text(encoding="utf-8"))
    assert written["schema"] == 1
    (tmp_path / "step.json").write_text(json.dumps(written | {"from_the_future": 1}), encoding="utf-8")
    assert artifact.read_step(tmp_path) == RECORD


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "tok"}', "\x00"])
def test_what_is_no_manifest_means_not_done(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
    assert artifact.read_manifest(tmp_path) is None
    assert artifact.read_manifest(tmp_path / "nowhere") is None


def test_a_lock_of_another_process_is_refused_and_named(tmp_path: Path) -> None:
    code = f"import sys, pathlib; from llmpipe.artifact import lock; h = lock(pathlib.Path({str(tmp_path)!r}))"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print('held', flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin and holder.stdout
    assert holder.stdout.readline() == b"held\n"
    assert artifact.is_locked(tmp_path)
    with pytest.raises(LockedError) as caught:
        artifact.lock(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path} is in use by another llmpipe (process {holder.pid} on ")
    assert (caught.value.code, caught.value.hint) == (6, "wait for it, or give this run a folder: --run DIR")
    holder.kill()  # a killed process leaves its lock file, but no lock
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    assert not artifact.is_locked(tmp_path)
    artifact.lock(tmp_path).release()


def test_hashes_are_kept_until_a_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"one")
    cache = HashCache(tmp_path / ".hashes.json")
    first = cache.sha256(file)
    cache.save()
    stat = file.stat()
    file.write_bytes(b"two")  # same size, and its times are put back: only --verify can see this
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert HashCache(tmp_path / ".hashes.json").sha256(file) == first
    second = HashCache(tmp_path / ".hashes.json", verify=True).sha256(file)
    assert second == artifact.sha256_of(file) != first
    file.write_bytes(b"three")
    assert HashCache(tmp_path / ".hashes.json").sha256(file) == artifact.sha256_of(file)


def test_a_missing_output_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_bytes(b"a")
    outputs = artifact.output_hashes(tmp_path, ["model"])
    assert outputs == {"model/a": artifact.sha256_of(tmp_path / "model" / "a")}
    rest = {"metrics": {}, "gates": [], "versions": {}, "device": "", "started": "", "seconds": 1.0}
    manifest = Manifest(**RECORD.model_dump(exclude={"schema_version"}), outputs=outputs, **rest)
    assert artifact.missing_output(tmp_path, manifest) is None
    (tmp_path / "model" / "a").unlink()
    assert artifact.missing_output(tmp_path, manifest) == "model/a"
