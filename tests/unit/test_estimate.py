"""Estimates: what a stage costs is multiplied as the stage will do it, and goes by all that changes it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmpipe import console, estimate, machine, outlook, report
from llmpipe.artifact import Input, StepRecord, read_step
from llmpipe.cli import app
from llmpipe.estimate import Estimate
from llmpipe.forecast import forecast
from llmpipe.training import shapes
from tests.unit.made import Made, make_run

COSTS: dict[str, Any] = {
    "steps": 100,
    "steps_per_epoch": 25,
    "epochs": 3.0,
    "eval_steps": 10,
    "save_steps": 10,
    "passes": 4,
    "seconds_pass": 2.0,
    "seconds_optimizer": 0.5,
    "seconds_warm_up": 3.0,
    "seconds_evaluation": 10.0,
    "final_evaluation": True,
    "seconds_save": 1.0,
    "seconds_watched": 20.0,
    "tokens_per_pass": 8.0,
    "parameters": 1000,
    "trained_parameters": 1000,
    "checkpoint_bytes": 7,
}
MEASURED = {"seconds": 50.0, "peak_memory_mb": 900.0, "output_bytes": 5, "costs": COSTS}


def record(name: str = "chat", *, kind: str = "sft", reads: str = "", **settings: Any) -> StepRecord:
    inputs = [Input(field="model", source={"stage": reads}, identity=f"{reads}-as-it-is")] if reads else []
    inputs.append(Input(field="data", source={"path": "a"}, identity=settings.pop("identity", "a")))
    return StepRecord(
        name=name, kind=kind, stage_version=1, fingerprint=str(settings), seed=1, settings=settings, inputs=inputs
    )


@pytest.mark.parametrize(
    ("settings", "steps", "evaluations", "saves"),
    [
        ({"trainer": {"max_steps": 40}}, 40, 11, 10),  # ten of them, and one of the model as it comes
        ({"trainer": {"max_steps": 40, "eval_steps": 15}}, 40, 4, 3),  # the end is measured, too
        ({"trainer": {"max_steps": 40, "eval_steps": 20, "save_steps": 0.1}}, 40, 3, 10),
        ({"trainer": {}}, 75, 12, 11),
        ({"trainer": {"num_train_epochs": 0.1}}, 3, 4, 3),
    ],
)
def test_steps_evaluations_and_checkpoints_are_counted(
    settings: dict[str, Any], steps: int, evaluations: int, saves: int
) -> None:
    assert estimate.counts(settings, COSTS) == (steps, evaluations, saves)


def test_costs_are_multiplied() -> None:
    found = estimate.of_costs({"trainer": {"max_steps": 40, "eval_steps": 20}, "keep": "best"}, MEASURED)
    assert found.seconds == 50 - 20 + 3 + 40 * (4 * 2 + 0.5) + 4 * 10 + 2 * 1  # measured before, twice, and at the end
    assert (found.tokens, found.flops) == (40 * 4 * 8, 6 * 1000 * 40 * 4 * 8)
    assert (found.disk_bytes, found.peak_memory_mb) == (5 + 2 * 7, 900)
    frozen = COSTS | {"trained_parameters": 0, "eval_steps": None}
    lora = estimate.of_costs({"trainer": {"max_steps": 40}, "keep": "best"}, MEASURED | {"costs": frozen})
    assert lora.flops == 4 * 1000 * 40 * 4 * 8
    assert lora.seconds == 50 - 20 + 3 + 40 * 8.5 + 10  # nothing is held out
    assert lora.disk_bytes == 5 + 7
    assert estimate.of_costs({}, MEASURED | {"costs": None}).seconds == 50  # what trains nothing was run whole


def test_what_only_multiplies_costs_keeps_their_key() -> None:
    base, chat = record("base", trainer={"max_steps": 5}), record(reads="base", trainer={}, context=8)
    before = estimate.keys([base, chat])
    longer = record("base", trainer={"max_steps": 500, "learning_rate": 1.0, "eval_steps": 3, "logging_steps": 1})
    assert estimate.keys([longer, chat]) == before  # of the stage that reads it, too
    for other in (
        record("base", trainer={"per_device_train_batch_size": 2}),
        record("base", trainer={}, context=64),
        record("base", trainer={}, identity="other data"),
    ):
        after = estimate.keys([other, chat])
        assert after["base"] != before["base"] and after["chat"] != before["chat"]


def test_another_machine_has_costs_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = estimate.keys([record()])
    monkeypatch.setenv("OMP_NUM_THREADS", "17")
    assert estimate.keys([record()]) != before


def test_what_arithmetic_can_tell(tmp_path: Path) -> None:
    header = {"__metadata__": {}, "a": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}}
    header["b"] = {"dtype": "BF16", "shape": [5], "data_offsets": [48, 58]}
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(58))
    (tmp_path / "config.json").write_text('{"n_embd": 4, "n_layer": 1, "vocab_size": 3}', encoding="utf-8")
    tok = record("tok", kind="tokenizer", vocab_size=1024, algorithm="bpe")
    base = record(
        "base",
        model={"size": 500_000},
        tokenizer={"stage": "tok"},
        objective="causal",
        context=64,
        trainer={"max_steps": 10, "per_device_train_batch_size": 4},
    )
    chat = record("chat", model={"stage": "base"}, trainer={})
    other = record("other", model={"path": str(tmp_path)}, trainer={})
    hub = record("hub", model={"hub": "a/b"}, trainer={})
    found = forecast([tok, base, chat, other, hub], tmp_path)
    shape = shapes.dial(500_000, vocab_size=1024)
    parameters = shapes.parameters(shape["num_hidden_layers"], shape["hidden_size"], 1024)
    assert {name: one.parameters for name, one in found.items()} == {
        "base": parameters,
        "chat": parameters,
        "other": 17,
    }
    assert (found["base"].tokens, found["base"].flops) == (10 * 4 * 64, 6 * parameters * 10 * 4 * 64)
    assert found["chat"].tokens is None  # as many as the data have
    assert all(one.seconds is None and not one.calibrated for one in found.values())


def test_the_table_fits_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console.err, "_width", 80)
    monkeypatch.setattr(machine, "memory_mb", lambda: 2048.0)
    small = Estimate(527_000, 1_400_000, 4.4e12, 680.0, None, 72.0, 14 * 2**20, calibrated=True)
    large = Estimate(135_000_000_000, 2_500_000_000, 1.23e21, 3308.0, None, 7384.0, 540 * 2**20, calibrated=True)
    outlook.show({"base": small, "a-longer-name": large, "x": Estimate(problem="no hub")}, "r.yaml")
    assert capsys.readouterr().err.splitlines() == [
        "",
        "                 parameters  tokens   FLOPs  memory    disk     time",
        "  base               527.0k   1.4 M  4.4e12  680 MB   14 MB     1:12",
        "  a-longer-name     135.0 B   2.5 B  1.2e21  3.2 GB  540 MB  2:03:04",
        "",
        "  those that were measured: about 2:04:16, 3.2 GB of memory, 554 MB of disk",
        "  x could not be calibrated: no hub",
        "  a-longer-name needs about 3.2 GB of memory, and this machine has 2.0 GB: lower batch_tokens, "
        "micro_batch_tokens or trainer.per_device_train_batch_size",
    ]


def test_a_plan_shows_what_was_measured(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a b c", encoding="utf-8")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: x\nstages: {tok: {kind: tokenizer, data: {path: a.txt}}}", encoding="utf-8")
    command = ["plan", str(recipe), "--run", str(tmp_path / "run"), "--json"]
    done = CliRunner().invoke(app, command)
    assert json.loads(done.stdout)["estimates"] == {}
    from llmpipe import recipe as recipes
    from llmpipe.plan import make_plan

    (tmp_path / "run").mkdir()
    (step,) = make_plan(recipes.load(recipe), tmp_path / "run")
    measured = {"key": estimate.keys([step.record])["tok"], "seconds": 2.5, "peak_memory_mb": 80.0, "output_bytes": 9}
    estimate.write(tmp_path / "run", {"tok": measured})
    found = json.loads(CliRunner().invoke(app, command).stdout)["estimates"]["tok"]
    assert (found["seconds"], found["peak_memory_mb"], found["calibrated"]) == (2.5, 80.0, True)


def test_the_report_compares(tmp_path: Path) -> None:
    made = [Made("tok", metrics={"peak_memory_mb": 100.0}), Made("chat", reads=[("model", "tok")])]
    run = make_run(tmp_path / "run", made)
    assert "What was estimated" not in report.write(run).page.read_text(encoding="utf-8")
    records = [step for name in ("tok", "chat") if (step := read_step(run / name))]
    plain = {"seconds": 73.2, "peak_memory_mb": 90.0, "output_bytes": 0}
    estimate.write(run, {name: {"key": key, **plain} for name, key in estimate.keys(records).items()})
    page = report.write(run).page.read_text(encoding="utf-8")
    table = page.partition("What was estimated")[2].partition("</table>")[0]
    cells = [cell.partition("</td>")[0].rpartition(">")[2] for cell in table.split("<td")[1:]]
    assert cells == [
        *("tok", "1:01", "1:13", "+20%", "100 MB", "90 MB", "-10%"),
        *("chat", "1:01", "1:13", "+20%", "", "", ""),
        *("in all", "2:02", "2:26", "+20%", "100 MB", "90 MB", "-10%"),
    ]
