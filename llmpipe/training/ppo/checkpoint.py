"""What a PPO checkpoint holds beside the optimizer's: weights of both networks, the rollout at hand and its plan.

Tensors are safetensors, the rest is JSON, one pair of files for each process; a run goes on in the middle of a
rollout as if it had never stopped.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file, load_model, save_file, save_model

from llmpipe.artifact import read_json, write_json
from llmpipe.errors import StageError
from llmpipe.training.ppo.experience import Experience, MicroBatch
from llmpipe.training.ppo.prompts import PromptStream

COUNTED = ("rollouts", "metrics", "sums", "ratio_most", "history", "measures")


class Resumable:
    """Mixed into PPOTrainer: hooks of transformers 5.23 that tests/stages/test_ppo_contract.py holds to account."""

    args: Any
    state: Any
    model: Any
    plan: list[MicroBatch]
    experience: Experience | None
    stream: PromptStream
    price: Any
    collector: Any
    options: Any

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the weights of policy and value; of adapters, these alone."""
        del state_dict  # of a model that safetensors could not write: its tied weights are one tensor
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            if isinstance(self.model.policy, PeftModel):  # the base is not trained, and lies where it came from
                trained = {name: weight.detach().contiguous().cpu() for name, weight in self.model.trained().items()}
                save_file(trained, folder / "model.safetensors")
            else:
                save_model(self.model, str(folder / "model.safetensors"))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save as Trainer does, then the rollout at hand."""
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        assert self.experience is not None
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self.experience.tensors().items()}
        save_file(tensors, folder / f"{self._name()}.safetensors")
        write_json(
            folder / f"{self._name()}.json",
            {name: getattr(self, name) for name in COUNTED}
            | {
                "plan": [asdict(micro) for micro in self.plan],
                "stream": self.stream.state(),
                "beta": self.price.beta,
                "shift": self.collector.rewards.shift,
                "scale": self.collector.rewards.scale,
                "reference": self.collector.reference.fingerprint,
            },
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights, and take up the rollout where it was.

        Raises:
            StageError: another number of processes saved it, or the reference is not the one it was.
        """
        del model
        folder = Path(resume_from_checkpoint)
        is_whole = not isinstance(self.model.policy, PeftModel)
        missing, _ = load_model(self.model, str(folder / "model.safetensors"), strict=is_whole)
        if not is_whole and (lost := set(missing) & self.model.trained().keys()):
            raise StageError(f"the checkpoint has no {min(lost)}", hint="--force begins the stage again")
        found = read_json(folder / f"{self._name()}.json")
        if found is None:
            saved = len(list(folder.glob("ppo-*.json")))
            raise StageError(
                f"the checkpoint was saved by {saved} processes, and {self.args.world_size} are running",
                hint=f"--processes {saved}, or --force to begin the stage again",
            )
        if found["reference"] != self.collector.reference.fingerprint:
            raise StageError("the reference model is not the one that the checkpoint was trained against")
        for name in COUNTED:
            setattr(self, name, found[name])
        self.plan = [MicroBatch(**micro) for micro in found["plan"]]
        self.stream = PromptStream(**found["stream"])
        self.price.beta = found["beta"]
        self.collector.rewards.shift, self.collector.rewards.scale = found["shift"], found["scale"]
        tensors = load_file(folder / f"{self._name()}.safetensors")
        self.experience = Experience.of({name: tensor.to(self.args.device) for name, tensor in tensors.items()})

    def _name(self) -> str:
        return f"ppo-{self.args.process_index}-of-{self.args.world_size}"
