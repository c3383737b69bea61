"""PPO reaches the best policy where that is known in closed form.

The policy that maximises E[r] - beta KL(pi || ref) is ref * exp(r / beta), normalised (Ziegler 2019, section 2).
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tests.stages.ppo_worlds import llama, world

ARMS, BETA = 64, 0.2
END, TOKENS, DEPTH = 0, 5, 3  # the end token is the pad token, too
TREE_BETA = 0.1
ASKED = [[2, 3], [4, 2, 1, 3]]  # of unequal length, so that the sampler pads one of them


def bandit(folder: Path, seed: int = 0) -> dict[str, float]:
    """One token, 64 arms: return distances from the optimum."""
    policy = llama(ARMS, seed=seed)
    prompt = torch.tensor([[2, 3]])
    reference = policy(prompt).logits[0, -1].detach().log_softmax(-1)
    rewards = torch.arange(ARMS) / ARMS
    trainer = world(
        folder,
        policy,
        lambda ids: ids[0] / ARMS,
        prompts=[[2, 3]],
        rollouts=60,
        rollout={"samples": 128, "max_new_tokens": 1},
        kl={"coefficient": BETA},
        value_warmup_rollouts=0,
        arguments={"seed": seed},
    )
    trainer.train()
    best = (reference + rewards / BETA).softmax(-1)
    with torch.no_grad():
        found = policy(prompt).logits[0, -1].log_softmax(-1)
        lengths = torch.tensor([2]), torch.tensor([1])
        value = trainer.model(torch.tensor([[2, 3, 5]]), *lengths)[1].item()
    return {
        "tv": 0.5 * (found.exp() - best).abs().sum().item(),
        "value": abs(value - BETA * (reference + rewards / BETA).logsumexp(-1).item()),
        "kl": abs((found.exp() * (found - reference)).sum().item() - (best * (best.log() - reference)).sum().item()),
    }


def test_the_bandit_comes_to_its_optimum(tmp_path: Path) -> None:
    found = bandit(tmp_path)
    assert found["tv"] < 0.02, found
    assert found["value"] < 0.02, found
    assert found["kl"] < 0.05, found


def leaves() -> list[list[int]]:
    """All 85 answers of at most three tokens: an end token, or four others."""
    found = [[END], *([a, END] for a in range(1, TOKENS))]
    return found + [[a, b, c] for a, b, c in product(range(1, TOKENS), range(1, TOKENS), range(TOKENS))]


@torch.no_grad()
def log_probabilities(policy: PreTrainedModel, prompt: list[int]) -> torch.Tensor:
    """Return log pi of every leaf, computed one by one."""
    found = []
    for leaf in leaves():
        logits = policy(torch.tensor([prompt + leaf])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        found.append(logits[torch.arange(len(leaf)), torch.tensor(leaf)].sum())
    return torch.stack(found)


def tree(folder: Path, seed: int = 0) -> dict[str, float]:
    """Return the share of the way to the optimum that was closed, and the distance that is left."""
    policy = llama(TOKENS, seed=seed)
    rewards = torch.rand(len(leaves()), generator=torch.Generator().manual_seed(seed))
    table = {tuple(leaf): reward.item() for leaf, reward in zip(leaves(), rewards, strict=True)}
    references = [log_probabilities(policy, prompt) for prompt in ASKED]
    trainer = world(
        folder,
        policy,
        lambda ids: table[tuple(ids)],
        prompts=ASKED,
        ends=(END,),
        rollouts=100,
        rollout={"samples": 256, "max_new_tokens": DEPTH},
        kl={"coefficient": TREE_BETA},
        value_warmup_rollouts=0,
        arguments={"seed": seed},
    )
    trainer.train()
    gaps, distances = [], []
    for prompt, reference in zip(ASKED, references, strict=True):
        found = log_probabilities(policy, prompt)
        best = (reference + rewards / TREE_BETA).log_softmax(-1)
        worth = [(p.exp() * (rewards - TREE_BETA * (p - reference))).sum().item() for p in (reference, found, best)]
        gaps.append((worth[1] - worth[0]) / (worth[2] - worth[0]))
        distances.append(0.5 * (found.exp() - best.exp()).abs().sum().item())
    return {"gap": min(gaps), "tv": max(distances)}


def test_the_tree_comes_near_its_optimum(tmp_path: Path) -> None:
    """Seeds 0 to 4 close .95, .88, .92, .98 and .90 of the gap; at seed 0 the five mutants close .66 at most."""
    found = tree(tmp_path)
    assert found["gap"] >= 0.85, found
