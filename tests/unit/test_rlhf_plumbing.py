"""RLHF in recipes and commands: what is filled in, reward functions that nobody runs unasked, `rlhf`, the summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from llmpipe import artifact, console, edges, functions, recipe_edit, runner, stages, summary
from llmpipe import recipe as recipes
from llmpipe.cli import app
from llmpipe.context import Result as Made
from llmpipe.errors import RecipeError, StageError, UsageError
from llmpipe.plan import Step, make_plan
from llmpipe.worker import execute

HEAD = "name: x\nstages:\n"
BASE = "  base: {kind: pretrain, data: {builtin: storyworld}, model: {size: 1M}, tokenizer: {hub: a/tok}}\n"
CHAT = "  chat: {kind: sft, data: {builtin: storyworld}, model: base}\n"
JUDGE = "  judge: {kind: reward, model: chat, data: {path: pairs.jsonl}}\n"
PPO = "  ppo: {kind: rlhf-ppo}\n"
BY_FUNCTION = (
    "  ppo: {kind: rlhf-ppo, model: {hub: a/b}, data: {path: prompts.jsonl}, reward: {function: rewards.py:brevity}}\n"
)
CODE = """\
import does_not_exist
Path("it_ran").touch()

def brevity(prompts, answers):
    return [-len(answer) for answer in answers]

def polite(prompts, answers, *, word="please"):
    return [word in answer for answer in answers]

def wordy(texts):
    return [len(text) for text in texts]
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("pairs.jsonl", "prompts.jsonl"):
        Path(name).write_text('{"prompt": "a"}\n', encoding="utf-8")
    Path("rewards.py").write_text(CODE, encoding="utf-8")
    return tmp_path


def load(*written: str) -> recipes.Recipe:
    Path("r.yaml").write_text(HEAD + "".join(written), encoding="utf-8")
    return recipes.load(Path("r.yaml"))


def wrong(*written: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(*written)
    return [str(problem) for problem in caught.value.problems]


def plan(*written: str) -> dict[str, Step]:
    return {step.name: step for step in make_plan(load(*written), Path("run"))}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    settings: dict[str, Any] = {"highlight": False, "soft_wrap": True, "width": 100}
    monkeypatch.setattr(console, "err", console.Console(stderr=True, **settings))
    monkeypatch.setattr(console, "out", console.Console(**settings))
    return CliRunner().invoke(app, list(arguments))


# ---- Inputs that follow another stage's -------------------------------------------------------


def read_by_ppo(*written: str) -> dict[str, Any]:
    settings = load(*written).stages["ppo"].model_dump(exclude_defaults=True)
    return {field: settings.get(field) for field in ("model", "reward", "data")}


def test_policy_and_prompts_are_those_of_the_one_reward_model() -> None:
    wanted = {"model": {"stage": "chat"}, "reward": [{"stage": "judge"}], "data": [{"path": "pairs.jsonl"}]}
    assert read_by_ppo(BASE, CHAT, JUDGE, PPO) == wanted
    assert plan(BASE, CHAT, JUDGE, PPO)["ppo"].inputs == ["chat", "judge", "pairs.jsonl"]
    also_by_function = PPO.replace("ppo}", "ppo, reward: [judge, {function: rewards.py:brevity}]}")
    assert read_by_ppo(BASE, CHAT, JUDGE, also_by_function)["model"] == {"stage": "chat"}
    assert read_by_ppo(BASE, CHAT, PPO.replace("ppo}", "ppo, reward: judge}"), JUDGE) == wanted


def test_what_a_reward_stage_left_out_is_followed_too() -> None:
    omitted = JUDGE.replace("model: chat, ", "")
    assert read_by_ppo(BASE, omitted, PPO)["model"] == {"stage": "base"}


def test_what_is_written_wins() -> None:
    written = PPO.replace("ppo}", "ppo, model: base, data: {builtin: storyworld}}")
    wanted = {"model": {"stage": "base"}, "reward": [{"stage": "judge"}], "data": [{"builtin": "storyworld"}]}
    assert read_by_ppo(BASE, CHAT, JUDGE, written) == wanted


def test_several_reward_models_do_not_say_which_policy() -> None:
    second = JUDGE.replace("judge", "strict").replace("chat", "base")
    ppo = PPO.replace("ppo}", "ppo, reward: [judge, strict], data: {path: prompts.jsonl}}")
    assert wrong(BASE, CHAT, JUDGE, second, ppo) == [
        "r.yaml:7:3: stages.ppo: name the model: base and chat both fit, such as `model: chat`"
    ]
    assert read_by_ppo(BASE, JUDGE.replace("chat", "base"), second, ppo)["model"] == {"stage": "base"}, "one fits"
    assert wrong(BASE, CHAT, JUDGE, second, PPO) == [
        "r.yaml:7:3: stages.ppo: name the reward: judge and strict both fit, such as `reward: strict`"
    ]


MISSING = {
    "no reward at all": (
        (BASE, CHAT, PPO),
        ["r.yaml:5:3: stages.ppo: needs `reward:` (reward-model), and no earlier stage makes one"],
    ),
    "a reward that is none": (
        (BASE, CHAT, JUDGE, PPO.replace("ppo}", "ppo, reward: chat}")),
        [
            "r.yaml:6:33: stages.ppo.reward: "
            "stage 'chat' makes a causal-lm, a reward-model is needed; 'judge' (line 5) is one"
        ],
    ),
    "a misspelt reward": (
        (BASE, CHAT, JUDGE, PPO.replace("ppo}", "ppo, reward: juge}")),
        ["r.yaml:6:33: stages.ppo.reward: no stage is called 'juge', did you mean judge?"],
    ),
    "a reward stage that cannot be read": (
        (
            BASE,
            CHAT,
            JUDGE.replace("model: chat", "model: {size: 1M}").replace("reward,", "reward, marign: true,"),
            PPO,
        ),
        [
            "r.yaml:5:25: stages.judge.marign: unknown key, did you mean margin?",
            "r.yaml:5:46: stages.judge.model: `size:` does not fit here; it may be stage, path, hub or gguf",
        ],
    ),
    "functions alone": (
        (BY_FUNCTION.replace("model: {hub: a/b}, data: {path: prompts.jsonl}, ", ""),),
        [
            "r.yaml:3:3: stages.ppo: needs `model:` (causal-lm or adapter), and no earlier stage makes one",
            "r.yaml:3:3: stages.ppo: needs `data:` (dataset), and no earlier stage makes one",
        ],
    ),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_said_once(name: str) -> None:
    written, wanted = MISSING[name]
    assert wrong(*written) == wanted


# ---- Reward functions -------------------------------------------------------------------------


def test_a_function_is_found_by_reading_its_file() -> None:
    assert plan(BY_FUNCTION)["ppo"].inputs == ["a/b", "rewards.py:brevity", "prompts.jsonl"]
    assert not Path("it_ran").exists()


FUNCTIONS = {
    "rewards.py:brevty": "rewards.py has no function 'brevty', did you mean brevity?",
    "rewards.py:sentiment": "rewards.py has no function 'sentiment'; it has brevity, polite, wordy",
    "empty.py:sentiment": "empty.py has no function 'sentiment'; it has none",
    "reward.py:brevity": "no such file: reward.py, did you mean rewards.py?",
    "torn.py:f": "torn.py:1 is not Python: '(' was never closed",
    "rewards.py:wordy": "rewards.py:10: wordy must take `prompts` and `answers`, may take `references`, "
    "and need nothing else",
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_that_is_not_there(function: str) -> None:
    Path("empty.py").write_text("", encoding="utf-8")
    Path("torn.py").write_text("def f(\n", encoding="utf-8")
    column = BY_FUNCTION.index("rewards.py") + 1
    found = wrong(BY_FUNCTION.replace("rewards.py:brevity", function))
    assert found == [f"r.yaml:3:{column}: stages.ppo.reward.function: {FUNCTIONS[function]}"]


def test_one_function_of_a_list_is_pointed_at_itself() -> None:
    listed = BY_FUNCTION.replace("{function: rewards.py:brevity}", "[{hub: a/c}, {function: rewards.py:brevty}]")
    column = listed.index("rewards.py") + 3 - 2
    assert wrong(listed) == [
        f"r.yaml:3:{column}: stages.ppo.reward.1.function: rewards.py has no function 'brevty', did you mean brevity?"
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{function: rewards}", "reward.function: write a function as FILE.py:NAME, not 'rewards'"),
        ("{function: rewards.py:brevity, wieght: 2}", "reward.wieght: unknown key, did you mean weight?"),
    ],
)
def test_a_function_written_wrongly(source: str, message: str) -> None:
    (found,) = wrong(BY_FUNCTION.replace("{function: rewards.py:brevity}", source))
    assert found.partition("stages.ppo.")[2] == message


@pytest.mark.parametrize(
    ("signature", "fits"),
    [
        ("(prompts, answers)", True),
        ("(answers, prompts, scale=1.0)", True),
        ("(*, answers, prompts)", True),
        ("(prompts, answers, references)", True),
        ("(**rows)", True),
        ("(answers, **rest)", True),
        ("(*, answers, prompts, scale)", False),
        ("(prompts, answers, scale)", False),
        ("(prompts, answers, /)", False),
        ("(rows, /, prompts, answers)", False),
        ("(*rows)", False),
        ("(answers)", False),
    ],
)
def test_how_a_function_is_called(signature: str, fits: bool) -> None:
    Path("f.py").write_text(f"def f{signature}: ...\n", encoding="utf-8")
    assert (functions.problem_with("f.py:f", Path()) is None) == fits


@pytest.mark.parametrize("text", ["f = partial(g)", "from elsewhere import f", "from elsewhere import g as f"])
def test_a_function_that_is_not_written_with_def(text: str) -> None:
    Path("f.py").write_text(text, encoding="utf-8")
    assert functions.problem_with("f.py:f", Path()) is None


def test_its_file_and_name_count_and_its_place_does_not() -> None:
    before = plan(BY_FUNCTION)["ppo"].record
    Path("elsewhere").mkdir()
    Path("elsewhere/other.py").write_text(CODE, encoding="utf-8")
    moved = plan(BY_FUNCTION.replace("rewards.py", "elsewhere/other.py"))["ppo"].record
    assert moved.fingerprint == before.fingerprint
    others = (":polite", ":brevity, weight: 2.0")
    found = {plan(BY_FUNCTION.replace(":brevity", other))["ppo"].record.fingerprint for other in others}
    assert len(found | {before.fingerprint}) == 3


def test_the_reason_to_run_again_names_its_file() -> None:
    step = plan(BY_FUNCTION)["ppo"]
    finish(step)
    assert plan(BY_FUNCTION)["ppo"].action == "skip"
    Path("rewards.py").write_text(f"{CODE}\n# better\n", encoding="utf-8")
    again = plan(BY_FUNCTION)["ppo"]
    assert (again.action, again.reason) == ("rerun", "rewards.py changed")
    other = plan(BY_FUNCTION.replace(":brevity", ":polite"))["ppo"]
    assert other.reason.startswith(f"reward {Path('rewards.py').absolute()}:brevity → ")


def test_it_must_not_change_while_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    step = plan(BY_FUNCTION)["ppo"]
    runner.prepare(step, Path("run"))

    def change_it(*_: object) -> Any:
        Path("rewards.py").write_text("", encoding="utf-8")
        return Made(outputs=[], metrics={})

    monkeypatch.setattr(stages.load("rlhf-ppo"), "run", change_it)
    with pytest.raises(StageError, match=r"rewards\.py: changed while the stage was reading it"):
        execute(Path("run"), "ppo", emit=lambda _: None, stop=lambda: None)


def test_the_recipe_that_a_run_keeps_can_lie_anywhere() -> None:
    listed = BY_FUNCTION.replace("{function: rewards.py:brevity}", "[{function: rewards.py:brevity, weight: 0.5}]")
    recipe = load(listed)
    Path("run").mkdir()
    recipe_edit.keep(Path("run"), recipe_edit.text_as_used(recipe, []))
    kept = recipes.load(Path("run/recipe.yaml")).stages["ppo"].model_dump()["reward"]
    assert kept == [{"function": f"{Path('rewards.py').absolute()}:brevity", "weight": 0.5}]


# ---- --allow-code -----------------------------------------------------------------------------

REFUSAL = "rewards.py: stage ppo would run 'brevity' of this file\n\nhint: read it; if it may run, add --allow-code\n"


@pytest.mark.parametrize(
    "command", [("run", "r.yaml"), ("rlhf-ppo", "r.yaml"), ("rlhf", "r.yaml"), ("rlhf", "r.yaml", "--force")]
)
def test_code_is_refused_before_anything_runs(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    load(BY_FUNCTION)
    done = call(monkeypatch, *command)
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", REFUSAL)
    assert not Path("runs/x/recipe.yaml").exists()
    assert not Path("runs/x/ppo").exists()


@pytest.mark.parametrize("command", [("plan", "r.yaml"), ("run", "r.yaml", "--dry-run")])
def test_a_look_needs_no_leave(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    load(BY_FUNCTION)
    done = call(monkeypatch, *command)
    assert (done.exit_code, "rewards.py:brevity" in done.stderr) == (0, True)


def test_only_steps_that_run_need_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    step = plan(BY_FUNCTION)["ppo"]
    with pytest.raises(UsageError):
        runner.run([step], Path("run"), runner.Options())
    runner.refuse_code([step], runner.Options(allow_code=True))
    finish(step)
    runner.refuse_code([plan(BY_FUNCTION)["ppo"]], runner.Options())
    done = call(monkeypatch, "run", "r.yaml", "--run", "run")
    assert (done.exit_code, "everything is up to date" in done.stderr) == (0, True)


def test_a_stage_without_functions_takes_no_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    load(BASE)
    done = call(monkeypatch, "pretrain", "r.yaml", "--allow-code")
    assert (done.exit_code, done.stderr.splitlines()[0]) == (2, "a pretrain stage takes no --allow-code")


def test_help_shows_the_flags_that_a_stage_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--data", "--model", "--tokenizer", "--reward", "--allow-code")
    shown = {kind: call(monkeypatch, kind, "--help").stdout for kind in ("tokenizer", "pretrain", "rlhf-ppo")}
    found = {kind: [flag for flag in flags if flag in text] for kind, text in shown.items()}
    assert found == {
        "tokenizer": ["--data"],
        "pretrain": ["--data", "--model", "--tokenizer"],
        "rlhf-ppo": ["--data", "--model", "--reward", "--allow-code"],
    }


# ---- From flags -------------------------------------------------------------------------------


def test_a_stage_of_a_reward_that_is_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--model", "hub:a/b", "--data", "prompts.jsonl", "--reward", "rewards.py:brevity", "--reward", "hub:a/c")
    done = call(monkeypatch, "rlhf-ppo", "--run", "mine", "--name", "ppo", *flags, "--dry-run", "--json")
    assert json.loads(done.stdout)["steps"][0]["inputs"] == [
        "a/b",
        f"{Path('rewards.py').absolute()}:brevity",
        "a/c",
        str(Path("prompts.jsonl").absolute()),
    ]


WRONG_FLAGS = {
    ("sft", "--reward", "judge"): "a sft stage takes no --reward\n\nhint: llmpipe options sft\n",
    ("rlhf-ppo", "--reward", "judge"): (
        "--reward judge: no such file, folder or stage\n\n"
        "hint: a hub repository is written hub:OWNER/NAME, a function FILE.py:NAME\n"
    ),
    ("rlhf-ppo", "--model", "hub:a/b", "--data", "prompts.jsonl", "--reward", "rewards.py:brevty"): (
        "--reward: stages.rlhf-ppo.reward.function: rewards.py has no function 'brevty', did you mean brevity?\n"
    ),
    ("rlhf", "--set", "rollouts=3"): "--set rollouts=3: write reward.KEY=VALUE or ppo.KEY=VALUE\n",
    ("rlhf", "--prompts", "gone.jsonl"): (
        "--prompts gone.jsonl: no such file, folder or stage\n\nhint: a hub repository is written hub:OWNER/NAME\n"
    ),
    ("rlhf", "--model", "hub:a/b"): (
        "llmpipe rlhf: stages.reward: needs `data:` (dataset), and no earlier stage makes one\n"
    ),
    ("rlhf", "--model", "hub:a/b", "--data", "storyworld", "--set", "ppo.rolouts=3"): (
        "--set ppo.rolouts=3: stages.ppo.rolouts: unknown key, did you mean rollouts?\n\n"
        "hint: llmpipe options rlhf-ppo rollouts\n"
    ),
}


@pytest.mark.parametrize("arguments", WRONG_FLAGS, ids=" ".join)
def test_flags_that_do_not_fit(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    done = call(monkeypatch, *arguments, "--run", "mine")
    assert (done.exit_code, done.stderr) == (2, WRONG_FLAGS[arguments])
    assert not Path("mine/recipe.yaml").exists()


def test_rlhf_learns_from_its_own_reward_stage_unless_the_recipe_says_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_by_ppo_of(recipe: str) -> list[str]:
        Path("mine").mkdir(exist_ok=True)
        Path("mine/recipe.yaml").write_text(HEAD + recipe, encoding="utf-8")
        flags = ("--model", "hub:a/b", "--data", "storyworld", "--dry-run", "--json")
        steps = json.loads(call(monkeypatch, "rlhf", "--run", "mine", *flags).stdout)["steps"]
        return next(step["inputs"] for step in steps if step["name"] == "ppo")

    other = JUDGE.replace("model: chat", "model: {hub: a/b}").replace("{path: pairs.jsonl}", "{builtin: storyworld}")
    assert read_by_ppo_of(other) == ["a/b", "reward", "storyworld"]
    written = "  ppo: {kind: rlhf-ppo, reward: [reward, {hub: a/c}], model: {hub: a/b}, data: {builtin: storyworld}}\n"
    assert read_by_ppo_of(other + written) == ["a/b", "reward", "a/c", "storyworld"]


def test_rlhf_needs_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine").mkdir()
    Path("mine/recipe.yaml").write_text(
        HEAD + CHAT.replace("chat:", "ppo:").replace("base", "{hub: a/b}"), encoding="utf-8"
    )
    done = call(monkeypatch, "rlhf", "--run", "mine", "--model", "ppo", "--data", "pairs.jsonl")
    assert (done.exit_code, done.stderr) == (
        2,
        "stage 'ppo' of mine/recipe.yaml is a sft stage\n\n"
        "hint: llmpipe rlhf needs this name; give the other stage another one in the recipe\n",
    )


def test_flags_of_rlhf_do_not_go_with_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    load(BY_FUNCTION)
    assert call(monkeypatch, "rlhf", "r.yaml", "--prompts", "prompts.jsonl").stderr == (
        "--prompts goes with --run; in a recipe, inputs are written down\n\n"
        "hint: llmpipe rlhf r.yaml --set STAGE.data=...\n"
    )


def test_a_recipe_without_such_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    load(BASE)
    assert call(monkeypatch, "rlhf", "r.yaml").stderr == (
        "r.yaml has no reward or rlhf-ppo stage\n\nhint: its stages: base (pretrain)\n"
    )


# ---- After a run ------------------------------------------------------------------------------


def finish(step: Step, **more: Any) -> None:
    """Write what a finished step leaves behind."""
    folder = Path("run") / step.name
    folder.mkdir(parents=True)
    record = step.record.model_dump(exclude={"schema_version"})
    rest = {"metrics": {}, "gates": [], "versions": {}, "device": "", "started": "", "seconds": 1.0, "outputs": {}}
    artifact.write_json(folder / "step.json", step.record)
    artifact.write_json(folder / "manifest.json", artifact.Manifest(**record, **(rest | more)))


def test_the_summary_shows_reward_kl_and_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "err", console.Console(stderr=True, highlight=False, soft_wrap=True, width=80))
    metrics = {"reward_before": 0.5, "reward": 1.524, "kl": 1.62, "length_before": 49.0, "length": 47.0, "rollouts": 16}
    finish(plan(BY_FUNCTION)["ppo"], metrics=metrics, outputs={"model/config.json": "x", "samples.json": "x"})
    sample = {"prompt": "Tell me\na story.", "before": "No.\n", "after": "Once " * 99, "reward_before": None}
    samples = [sample | {"reward_after": number / 2} for number in range(5)]
    artifact.write_json(Path("run/ppo/samples.json"), {"samples": samples})
    summary.show(Path("run"), ["ppo"], all_names=["ppo"])
    shown = capsys.readouterr().err
    reward, length = (summary.LABELS.get(key, key) for key in ("reward", "length"))
    rows = [line.split() for line in shown.splitlines()]
    assert ["ppo", *reward.split(), "0.5", "1.52", "KL", "1.62", "nats"] in rows
    assert [*length.split(), "49", "47"] in rows
    assert shown.count("  Tell me a story.\n") == summary.SAMPLES
    assert ["before", "ppo", "No."] in rows
    assert any(row[:4] == ["after", "ppo", "1.00", "Once"] for row in rows)
    assert "  model   run/ppo/model\n" in shown


def test_without_samples_nothing_is_shown_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    finish(plan(BY_FUNCTION)["ppo"], outputs={"model/config.json": "x"})
    summary.show(Path("run"), ["ppo"], all_names=["ppo"])
    assert "before" not in capsys.readouterr().err


def test_edges_are_found_for_lists_of_one() -> None:
    reward = load(BASE, CHAT, JUDGE, PPO).stages["ppo"]
    assert edges.upstream(reward) == ["chat", "judge"]
    reward.model_dump_json(warnings="error")
