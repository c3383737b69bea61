"""An adapter in training: put on a model, said how much of it that is, saved in checkpoints without its base."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import TrainableTokensWrapper
from safetensors.torch import load_model, save_file
from torch import nn
from transformers import PreTrainedModel

from llmpipe.context import Context
from llmpipe.errors import StageError
from llmpipe.settings import AnySource
from llmpipe.training import adapters
from llmpipe.training.ppo.shared import put

WEIGHTS = "model.safetensors"


def adapt(begun: adapters.Beginning, lora: dict[str, Any], ctx: Context, *, tokens: Sequence[int]) -> PeftModel:
    """Put an adapter on the model and say on which modules, and how much is trained.

    A fresh one also trains the rows of `tokens`, the special ones of the conversations: a model that never saw its
    chat template cannot learn it through frozen rows (huggingface/transformers#45127 and others). They are not many,
    and `trainable_token_indices: null` does without.

    Raises:
        StageError: peft cannot make such an adapter, it could not be merged, or TRL could not train it.
    """
    if begun.folder is None and tokens and "trainable_token_indices" not in lora:
        targeted = adapters.targeted(begun.model, lora["target_modules"]) if "target_modules" in lora else set()
        rows = {name: list(tokens) for name in _layers_of_tokens(begun.model) if name not in targeted}
        lora = lora | {"trainable_token_indices": rows or None}
    model = put(begun.model, lora, begun.folder)
    head = begun.model.get_output_embeddings()
    if isinstance(head, TrainableTokensWrapper):
        head.bias = None  # TRL 1.16 asks for it, and peft 0.21's wrapper knows the weight alone
    if isinstance(head, BaseTunerLayer):
        # TRL 1.16 multiplies by the layer's weight, past its adapter
        raise StageError(
            "lora.target_modules names the output layer, where TRL would not train an adapter",
            hint="target_modules: all-linear",
        )
    modules = sorted({name.rpartition(".")[2] for name in model.base_model.targeted_module_names})
    trained_rows = model.active_peft_config.trainable_token_indices or []
    every = set(chain(*trained_rows.values()) if isinstance(trained_rows, dict) else trained_rows)
    learned = begun.tokenizer.convert_ids_to_tokens(sorted(every))
    counted = share(model)
    ctx.say(
        f"an adapter on {', '.join(modules)}{' and the rows of ' if learned else ''}{', '.join(learned)}: "
        f"{counted['trained_parameters']:,} parameters are trained, {counted['trained_share']:.2%} of the model's"
    )
    return model


def written(begun: adapters.Beginning, source: AnySource, ctx: Context, folder: Path) -> adapters.Adapter:
    """Return the adapter that was trained on a beginning, with where its base comes from, before a manifest says so.

    `source`: of the stage's model, which is the base, or an adapter that was trained further on its own.
    """
    older = adapters.find(source, ctx) if begun.folder is not None else None
    return adapters.Adapter(folder, older.base, older.ctx) if older else adapters.Adapter(folder, source, ctx)


def refuse_output_layer(model: PreTrainedModel, lora: dict[str, Any]) -> None:
    """Refuse to train an adapter on the layer that a reward model does without.

    Raises:
        StageError: `target_modules` names a causal model's output layer.
    """
    names = {module: name for name, module in model.named_modules()}
    if "target_modules" in lora and names[model.get_output_embeddings()] in adapters.targeted(
        model, lora["target_modules"]
    ):
        raise StageError(
            "lora.target_modules names the output layer, which a reward model does not have",
            hint="target_modules: all-linear",
        )


def _layers_of_tokens(model: PreTrainedModel) -> list[str]:
    """Name the layers that have a row for each token; of two that share one matrix, the first, which peft ties to."""
    names = {module: name for name, module in model.named_modules()}
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied, has_bias = model.config.tie_word_embeddings, getattr(last, "bias", None) is not None
    if has_bias:  # which peft 0.21 leaves out of an output layer whose rows it trains
        return [] if is_tied else [names[first]]
    return [names[first]] if is_tied else [names[first], names[last]]


def share(model: nn.Module) -> dict[str, Any]:
    """Count what an adapter trains, also as a share of the model that it is on; nothing for a model without one."""
    if not isinstance(model, PeftModel):
        return {}
    of_adapter, every = model.get_nb_trainable_parameters()  # which knows that 4 bits lie two in a byte
    share = of_adapter / (every - of_adapter)
    return {"parameters": every, "trained_parameters": of_adapter, "trained_share": share}


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class OnlyTrained:
    """Mixed into a Trainer: a checkpoint of a model with an adapter holds what is trained, and not the base.

    Hooks of transformers 5.23; a model without an adapter is saved as Trainer does.
    """

    args: Any
    model: Any

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the weights that are trained."""
        if not isinstance(self.model, PeftModel):
            super()._save(output_dir, state_dict)  # type: ignore[misc]
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: weight.detach().contiguous().cpu() for name, weight in trained(self.model).items()}
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights that are trained.

        Raises:
            StageError: some are missing.
        """
        if not isinstance(self.model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
            return
        missing, _ = load_model(self.model, Path(resume_from_checkpoint) / WEIGHTS, strict=False)
        if lost := set(missing) & trained(self.model).keys():
            raise StageError(f"the checkpoint has no {min(lost)}", hint="--force begins the stage again")
