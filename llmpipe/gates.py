"""What a stage's output is checked for, why, and what to do where a check fails; docs/gates.md is made from this.

The checks that need torch are in `training/saved.py`, `training/replay.py`, and beside what only one stage has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmpipe.artifact import Gate
from llmpipe.errors import Problem, StageError

SAMPLERS = ("rlhf-ppo", "rloo", "grpo")
HELD = ("dpo", "kto")
TRAINED = ("pretrain", "sft", "lora", "classify", "reward", *HELD, *SAMPLERS)
ADAPTED = ("sft", "lora", "reward", *HELD, *SAMPLERS)
"""What trains an adapter where `lora:` is given."""
CHATS = ("sft", "lora", *HELD, *SAMPLERS)
"""What trains a model that answers."""


@dataclass(frozen=True)
class Reason:
    """Why a gate exists."""

    why: str
    """A sentence, in the manifest and where the gate fails."""
    remedy: str
    """What to do where it fails."""
    stages: tuple[str, ...]
    only: str = ""
    """Where it does not apply to all that these stages make."""
    threads: tuple[str, ...] = ()
    """Public complaints, as repository#number."""


REASONS: dict[str, Reason] = {
    "something-learned": Reason(
        "an empty mask trains on nothing",
        "look at the columns of the data, and at what the chat template writes around an answer",
        ("pretrain", "sft", "lora", "reward", *HELD),
        threads=("huggingface/trl#4201", "huggingface/trl#6668", "marin-community/marin#7237"),
    ),
    "end-is-learned": Reason(
        "a model that never sees the end token learned does not stop",
        "have the chat template write a token of its own after an answer: eos_token; or raise context:",
        ("pretrain", "sft", "lora"),
        only="pretrain: but for masked models",
        threads=("huggingface/trl#1623", "huggingface/open-r1#492"),
    ),
    "answers-end": Reason(
        "an answer without its end token looks like one that was cut off, and teaches a model not to stop",
        "have the chat template write a token of its own after an answer: eos_token; or raise context:",
        ("reward", *HELD),
        threads=("huggingface/trl#2059", "huggingface/alignment-handbook#127"),
    ),
    "pad-is-not-end": Reason(
        "what skips padding would skip the end as well: answers that never stop, or stop at once",
        'give padding a token of its own: "pad_token" in tokenizer_config.json of the model',
        TRAINED,
        only="pretrain: where rows are padded",
        threads=("huggingface/trl#1623", "huggingface/trl#3083", "unslothai/unsloth#1008"),
    ),
    "pad-bos-end-distinct": Reason(
        "a pad that is also the end hides the end from training",
        "take names out of special_tokens: that the tokenizer has already",
        ("tokenizer",),
        threads=("huggingface/trl#1623",),
    ),
    "template-travels": Reason(
        "a chat that is written in other tokens than in training gets other answers",
        "chat_template: FILE, with a template that says all it needs; and is the tokenizer's folder written by hand?",
        ("tokenizer", *(stage for stage in TRAINED if stage != "classify")),
        threads=("hiyouga/LlamaFactory#6020", "hiyouga/LlamaFactory#5232", "unslothai/unsloth#1832"),
    ),
    "generation-stops": Reason(
        "a saved generation config without the end token never stops, and one that stops at padding answers nothing",
        "look at eos_token_id and pad_token_id in generation_config.json of the model that it began from",
        ("pretrain", *CHATS),
        only="pretrain: but for masked models",
        threads=("huggingface/transformers#48016",),
    ),
    "packed-documents-apart": Reason(
        "a document that sees its neighbour learns from it",
        "packing: false",
        ("pretrain", "sft", "lora"),
        only="packing: true",
        threads=("huggingface/trl#805", "huggingface/trl#1230", "hiyouga/LlamaFactory#4224"),
    ),
    "weights-reload": Reason(
        "later stages read the folder, and have to get the model that was trained",
        "is the disk sound? `llmpipe run --force` this stage; if it fails again, the architecture is not saved whole",
        TRAINED,
        threads=("hiyouga/LlamaFactory#10596", "hiyouga/LlamaFactory#4379"),
    ),
    "tied-embeddings": Reason(
        "of two matrices that are to be one, only the first is saved: apart, the model that is read is another",
        "tie_word_embeddings: false in the model's configuration, or a version of transformers that keeps the two tied",
        ("pretrain", *CHATS),
        only="models that tie them, trained whole",
        threads=("huggingface/transformers#45127", "unslothai/unsloth#3444", "huggingface/peft#2898"),
    ),
    "checkpoint-replays": Reason(
        "a run that is interrupted goes on from its checkpoint, and has to find the weights that were trained",
        "is the disk sound? `llmpipe run --force` this stage; if it fails again, none of its checkpoints can be used",
        TRAINED,
        only="where the last step was saved",
        threads=("axolotl-ai-cloud/axolotl#1631", "huggingface/transformers#35782", "Lightning-AI/litgpt#2021"),
    ),
    "head-reloads": Reason(
        "a head that is not saved, or texts that are written in another way, give random scores",
        "is the disk sound? `llmpipe run --force` this stage; if it fails again, begin from another architecture",
        ("reward", "classify"),
        threads=("hiyouga/LlamaFactory#9369", "hiyouga/LlamaFactory#4379", "huggingface/trl#1379"),
    ),
    "every-head-learns": Reason(
        "a head that no pair trains stays at zero",
        "leave that criterion out of criteria:, or give it pairs",
        ("reward",),
    ),
    "every-class-is-learned": Reason(
        "a class of which no row is trained on is never predicted",
        "give that class more rows, lower held_out.share, or join it to another by labels:",
        ("classify",),
    ),
    "reference-unchanged": Reason(
        "a reference that moves, or is not the model as it came, hides how far the policy went",
        "was the model's folder changed meanwhile? `llmpipe run --force` this stage",
        (*HELD, *SAMPLERS),
        threads=("huggingface/trl#1857", "huggingface/trl#351"),
    ),
    "base-unchanged": Reason(
        "the model without its adapter has to answer as before, and others train and use it too",
        "`llmpipe run --force` this stage; if it fails again, train without lora:",
        ADAPTED,
        only="lora:",
        threads=("hiyouga/LlamaFactory#4408",),
    ),
    "adapter-merges": Reason(
        "a later stage adds the adapter to the model's weights, and has to get what was trained",
        "name other layers in lora.target_modules, or lower lora.lora_alpha",
        ADAPTED,
        only="lora:",
        threads=("hiyouga/LlamaFactory#2276", "unslothai/unsloth#1832", "huggingface/peft#1300"),
    ),
    "adapter-is-finite": Reason(
        "a later stage adds the adapter to the model in full; what that gives is not compared with 4 bits here",
        "lower trainer.learning_rate",
        ADAPTED,
        only="quantize:, instead of adapter-merges",
    ),
}


def gate(name: str, passed: bool, measured: str | None = None) -> Gate:
    """Return what a check found, with the reason for it."""
    return Gate(name=name, passed=passed, why=REASONS[name].why, measured=measured)


def something_learned(count: int, what: str = "tokens") -> Gate:
    """Check how much of the data the loss falls on."""
    return gate("something-learned", count > 0, f"{count:,} {what}")


def end_is_learned(share: float, *, mostly_cut: bool = False) -> Gate:
    """Check the share of examples whose last learned token is the end, unless most were cut off before it."""
    return gate("end-is-learned", mostly_cut or share > 0.5, f"{share:.0%} of the examples")


def pad_is_not_end(pad_id: int | None, ends: int | Sequence[int | None] | None) -> Gate:
    """Check that padding is none of the tokens that end an answer; `None` among these is no token."""
    known = ends if isinstance(ends, list | tuple | set) else [ends]
    return gate("pad-is-not-end", pad_id is None or pad_id not in known)


def answers_end(answers: Iterable[Sequence[int]], *, end: int, context: int) -> Gate:
    """Check that each answer ends with the end token, or was cut off where the context ends."""
    return gate("answers-end", all(answer[-1] == end or len(answer) == context for answer in answers))


def failure(failed: Sequence[Gate]) -> StageError:
    """Say which gates failed, why each is there, and what to do."""
    problems = [
        Problem(f"gate '{one.name}' failed{f' ({one.measured})' if one.measured else ''}: {one.why}") for one in failed
    ]
    remedies = dict.fromkeys(REASONS[one.name].remedy for one in failed)
    return StageError(problems, hint="; ".join(remedies))
