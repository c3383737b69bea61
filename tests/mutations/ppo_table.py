"""The mutations of `ppo.py`. Their items, which the tests name too:

 1 one temperature everywhere      11 whitening                  21 fresh minibatches each epoch
 2 padding changes nothing         12 scale of rewards           22 target KL
 3 masks come from lengths         13 policy loss                23 metrics are means over tokens
 4 every end token ends            14 ratio 1 at first           24 alarms
 5 answers that were cut off       15 value loss                 25 length penalty
 6 where the score is paid         16 where values stand         26 resume
 7 estimator of the KL             17 values begin as rewards    27 saved output
 8 price of the KL                 18 no dropout                 28 determinism
 9 sign of the KL                  19 optimizer                  29 reference
10 advantages                      20 steps and batches          30 empty and unscored answers
"""

# ruff: noqa: E501 -- one line for one mutation
from __future__ import annotations

from ppo import Mutation

PPO = "llmpipe/training/ppo/"
CORE, MODEL, TRAINER = f"{PPO}core.py", f"{PPO}policy_value.py", f"{PPO}trainer.py"
EXPERIENCE, ROLLOUT, SCORING = f"{PPO}experience.py", f"{PPO}rollout.py", f"{PPO}scoring.py"
CHECKPOINT, PARTS, DIAGNOSIS = f"{PPO}checkpoint.py", f"{PPO}parts.py", f"{PPO}diagnosis.py"
ONE_BASE, SHARED = f"{PPO}one_base.py", f"{PPO}shared.py"
HELD_OUT, PROMPTS, STAGE = f"{PPO}held_out.py", f"{PPO}prompts.py", "llmpipe/stages/rlhf_ppo.py"

BY_HAND, READING, SAMPLING = "stages/test_ppo_core.py", "stages/test_ppo_model.py", "stages/test_ppo_rollout.py"
STEPS, RUNS, RESUME = "stages/test_ppo_trainer.py", "stages/test_ppo_runs.py", "stages/test_ppo_resume.py"
ROLES = "stages/test_one_base.py"
WORDS, MISTAKES = "unit/test_ppo_diagnosis.py", "stages/test_ppo_bad_input.py"
BANDIT, TREE = "stages/test_ppo_optima.py -k bandit", "stages/test_ppo_optima.py -k tree"

CHARGE = "rewards = -beta * log_ratios * mask\n"
PAID = "rewards.index_put((rows, last[rows]), scores[rows], accumulate=True)"

WORLDS = [
    ("bandit", "KL sign flipped", CORE, CHARGE, "rewards = beta * log_ratios * mask\n", BANDIT),
    ("bandit", "KL dropped", CORE, CHARGE, "rewards = 0 * log_ratios * mask\n", BANDIT),
    ("bandit", "KL doubled", CORE, CHARGE, "rewards = -2 * beta * log_ratios * mask\n", BANDIT),
    ("bandit", "k3 as reward", CORE, CHARGE, "rewards = -beta * k3(log_ratios) * mask\n", BANDIT),
    ("bandit", "advantage sign", CORE, "(values - mean) * scale * mask", "(mean - values) * scale * mask", BANDIT),
    (
        *("tree", "end token left out of the mask", EXPERIENCE),
        "kept = [answer.ids if ok",
        "kept = [answer.ids[: -1 if answer.finished else None] if ok",
        TREE,
    ),
    ("tree", "value off by one", MODEL, "self.head(hidden[predicting])", "self.head(hidden.roll(-1, 1)[predicting])", TREE),
    (
        *("tree", "reward only if ended", EXPERIENCE),
        "finite = torch.where(usable, worth, 0.0)",
        "finite = torch.where(usable & torch.tensor([a.finished for a in scored.answers]), worth, 0.0)",
        TREE,
    ),
    ("tree", "reward on the first token", CORE, PAID, PAID.replace("last[rows])", "0 * last[rows])"), TREE),
    (
        *("tree", "KL mean instead of sum", CORE, CHARGE),
        "rewards = -beta * log_ratios * mask / mask.sum(-1, keepdim=True).clamp(min=1)\n",
        TREE,
    ),
]  # fmt: skip

ITEMS = [
    ("1", "sampled at temperature 1", ROLLOUT, "temperature=self.temperature,", "temperature=1.0,", SAMPLING),
    ("1", "read at temperature 1", MODEL, "hidden / self.temperature, head.weight", "hidden, head.weight", READING),
    ("1", "read at temperature 1 after a cap", MODEL, "found.logits[predicting].float() / self.temperature", "found.logits[predicting].float()", READING),
    ("1", "habits of the saved config", ROLLOUT, "= inner.generation_config, GenerationConfig()", "= inner.generation_config, inner.generation_config", SAMPLING),
    ("1", "top-k of transformers' default", ROLLOUT, "top_k=0,", "top_k=2,", SAMPLING),
    ("2", "no mask for prompts padded on the left", ROLLOUT, "[0] * (longest - len(prompt)) + [1]", "[1] * (longest - len(prompt)) + [1]", READING),
    ("3", "ends cut by the pad token", ROLLOUT, "if token in end_ids)", "if token in end_ids or token == 0)", SAMPLING),
    ("3", "mask from the pad token", MODEL, "return (place >= first) & (place < first + self.lengths[:, None])", "return (place >= first) & (place < first + self.lengths[:, None]) & (self.ids != 0)", SAMPLING),
    ("4", "one end token only", ROLLOUT, "eos_token_id=list(self.end_ids)", "eos_token_id=self.end_ids[0]", SAMPLING),
    ("4", "answers cut at one end token", ROLLOUT, "if token in end_ids)", "if token == end_ids[0])", SAMPLING),
    ("4", "one end token of the config", PARTS, "return tuple(found) if isinstance(found, list)", "return tuple(found[:1]) if isinstance(found, list)", MISTAKES),
    ("5", "cut off counts as finished", ROLLOUT, "Answer(row, False) if end is None", "Answer(row, True) if end is None", SAMPLING),
    ("5", "no penalty for a missing end", EXPERIENCE, "0.0 if answer.finished else self.missing_end", "0.0", SAMPLING),
    ("6", "score a token too early", CORE, "last = mask.sum(-1) - 1", "last = (mask.sum(-1) - 2).clamp(min=0)", BY_HAND),
    ("7", "k3 in the reward", CORE, CHARGE, "rewards = -beta * k3(log_ratios) * mask\n", SAMPLING),
    ("7", "k3 the wrong way round", CORE, "torch.expm1(-log_ratios) + log_ratios", "torch.expm1(log_ratios) - log_ratios", BY_HAND),
    ("8", "price per step, not per answer", CORE, "self.beta *= 1 + error * answers / self.horizon", "self.beta *= 1 + error / self.horizon", BY_HAND),
    ("8", "price not clipped", CORE, "min(max(kl / self.target - 1, -0.2), 0.2)", "kl / self.target - 1", BY_HAND),
    ("8", "price from KL per token", TRAINER, 'self.price.update(metrics["kl"]', 'self.price.update(metrics["kl_per_token"]', RUNS),
    ("9", "negative KL goes unseen", DIAGNOSIS, "max(found) < -0.01", "max(found) < -1000", WORDS),
    ("10", "value of the next token not discounted", CORE, "discount * next_value - values", "next_value - values", BY_HAND),
    ("10", "lambda left out", CORE, "delta + discount * gae_lambda * ahead", "delta + discount * ahead", BY_HAND),
    ("10", "values of padding are read", CORE, "next_value = torch.where(here, values[:, token], 0.0)", "next_value = values[:, token]", BY_HAND),
    ("11", "whitening over the padding", CORE, "moments(values[mask])\n", "moments(values.flatten())\n", BY_HAND),
    ("11", "whitening by process", CORE, "    if dist.is_initialized():", "    if False:", BY_HAND),
    ("11", "no Bessel correction", CORE, "squares / max(1, count - 1)", "squares / max(1, count)", BY_HAND),
    ("11", "no whitening", EXPERIENCE, "advantages, deviation = core.whitened(advantages, mask)", "_, deviation = core.whitened(advantages, mask)", SAMPLING),
    ("12", "shift forgotten", SCORING, "scorer.weight * (summed - shift) / scale", "scorer.weight * summed / scale", SAMPLING),
    ("12", "scale forgotten", SCORING, "scorer.weight * (summed - shift) / scale", "scorer.weight * (summed - shift)", SAMPLING),
    ("12", "scale measured in every rollout", TRAINER, "if self.collector.rewards.scale is None:\n                self._settle", "if True:\n                self._settle", RUNS),
    ("13", "the smaller loss", CORE, "losses = torch.maximum(-advantages * ratios", "losses = torch.minimum(-advantages * ratios", BY_HAND),
    ("13", "clipped on one side", CORE, "ratios.clamp(1 - clip, 1 + clip)", "ratios.clamp(max=1 + clip)", BY_HAND),
    ("13", "infinite ratios", CORE, ".clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO).exp()", ".exp()", BY_HAND),
    ("14", "old probabilities in another order", EXPERIENCE, "getattr(self, name)[chosen][mask]", "getattr(self, name)[chosen.flip(0)][mask]", STEPS),
    ("14", "the first ratio is not looked at", TRAINER, 'if self.rollouts == self.metrics["steps"] == 1:', "if False:", STEPS),
    ("14", "capped logits read without the cap", MODEL, "self.projects_alone = _projects_alone(policy)", "self.projects_alone = True", READING),
    ("15", "the smaller value loss", CORE, "losses = torch.maximum(losses, (near", "losses = torch.minimum(losses, (near", BY_HAND),
    ("15", "explained variance of nothing", CORE, "if variance > 1e-10 * max(1.0, mean**2) else None", "if variance else -1e30", BY_HAND),
    ("16", "values a token too late", MODEL, "self.head(hidden[predicting])", "self.head(hidden.roll(-1, 1)[predicting])", READING),
    ("17", "value head begins at 0", MODEL, "head.weight.copy_(weights[None] @ score.weight)", "pass", READING),
    ("17", "value head without the shift", MODEL, "head.bias.sub_(mean).div_(deviation)", "head.bias.div_(deviation)", READING),
    ("17", "values begin beside the reward's adapter", PARTS, "judge.lend_to_value()", "pass", f"{ROLES} -k value_begins"),
    ("17", "values of adapters begin at 0", PARTS, "head = head_of_scores(judge.score, torch.tensor(source.weights))", "pass", f"{ROLES} -k value_begins"),
    ("17", "values begin on another base", PARTS, "settings.lora is None or isinstance(only.model.model, RewardAdapter)", "True", f"{ROLES} -k its_own"),
    ("18", "dropout of a reward's adapter", "llmpipe/training/reward_model.py", "config.modules_to_save, config.lora_dropout = \"CAUSAL_LM\", None, 0.0", "config.modules_to_save = \"CAUSAL_LM\", None", f"{ROLES} -k scores_as"),
    ("18", "dropout of the policy", STAGE, "models.set_dropout(policy, 0.0, None)", "pass", f"{RESUME} -k plain_model"),
    ("18", "dropout of the values", PARTS, "set_dropout(copied, 0.0, None)", "pass", READING),
    ("18", "dropout of attention", "llmpipe/training/models.py", 'for name in ("dropout", "attention_dropout", "activation_dropout"):', "for name in ():", READING),
    ("19", "epsilon of Adam", STAGE, '"adam_epsilon": 1e-5', '"adam_epsilon": 1e-8', STEPS),
    ("19", "decay on the value head", TRAINER, "name in decaying and plain not in VALUE_HEADS", "name in decaying", STEPS),
    ("19", "one learning rate", TRAINER, '"lr": rates[part]', '"lr": self.args.learning_rate', STEPS),
    ("19", "clipped together", TRAINER, "if self.model.part_of(name) == part]", "]", STEPS),
    ("20", "fewer steps than said", EXPERIENCE, "for _ in range(epochs):", "for _ in range(max(1, epochs - 1)):", STEPS),
    ("20", "each pass its own mean", TRAINER, "/ max(1, self.minibatch_tokens)", "/ max(1, len(logps))", STEPS),
    ("20", "scaled once more by Trainer", TRAINER, "loss_is_scaled_for_ga = True", "loss_is_scaled_for_ga = False", STEPS),
    ("20", "minibatches cut by length", EXPERIENCE, "rows = sorted(order[first : first + size], key=lambda row: lengths[row])", "rows = sorted(range(first, first + size), key=lambda row: lengths[row])", STEPS),
    ("21", "one order for all epochs", EXPERIENCE, "shuffled.shuffle(order)", "random.Random(seed).shuffle(order)", STEPS),
    ("21", "prompts in one order for ever", PROMPTS, "self.seed * 1_000_003 + self.epoch", "self.seed", STEPS),
    ("22", "target KL ignored", TRAINER, "if limit and self.plan and", "if False and", STEPS),
    ("22", "schedule by steps", TRAINER, "                self.lr_scheduler.step()", "                pass", STEPS),
    ("22", "steps left out are made up for", TRAINER, "self.state.global_step += left", "self.state.global_step += 0", STEPS),
    ("22", "KL summed, not a mean", TRAINER, '1.5 * limit * sums["tokens"]', "1.5 * limit", STEPS),
    ("23", "metrics of passes, not of tokens", TRAINER, "self.minibatch_sums[name] += float(terms.sum())", "self.minibatch_sums[name] += float(terms.mean())", STEPS),
    ("23", "held-out loss at the adapted price", HELD_OUT, "self.price.initial * metrics", "self.price.beta * metrics", RUNS),
    ("23", "held-out answers drawn anew", HELD_OUT, "seed=self.args.seed + self.args.process_index", "seed=self.state.global_step", RUNS),
    ("23", "held-out prompts count as time", HELD_OUT, "self.collector.seconds = seconds", "pass", RUNS),
    ("23", "entropy at temperature 1", MODEL, "logits = logits.float() / self.temperature\n", "logits = logits.float()\n", READING),
    ("23", "entropy at other tokens", MODEL, "chosen[places[:, 0], places[:, 1]] = True", "chosen[places[:, 0], places[:, 1] + 1 - 1 * 2] = True", READING),
    ("24", "length that pays goes unseen", DIAGNOSIS, "min(found) >= 0.8", "min(found) >= 2", WORDS),
    ("24", "warnings are repeated", DIAGNOSIS, "return text if text and not (len(history) > 1 and rule(history[:-1])) else None", "return text", WORDS),
    ("24", "correlation of something else", EXPERIENCE, "correlation(worth[usable], lengths)", "correlation(lengths, lengths)", SAMPLING),
    ("25", "length penalty forgotten", EXPERIENCE, "lost += core.overlong", "core.overlong", SAMPLING),
    ("25", "length penalty without an end", CORE, "((lengths - begin) / (end - begin)).clamp(0, 1)", "((lengths - begin) / (end - begin)).clamp(min=0)", BY_HAND),
    ("26", "plan not saved", CHECKPOINT, '"plan": [asdict(micro) for micro in self.plan]', '"plan": []', RESUME),
    ("26", "place among the prompts lost", CHECKPOINT, 'self.stream = PromptStream(**found["stream"])', "pass", RESUME),
    ("26", "adapted price lost", CHECKPOINT, 'self.price.beta = found["beta"]', "pass", RESUME),
    ("26", "scale of rewards lost", CHECKPOINT, 'self.collector.rewards.shift, self.collector.rewards.scale = found["shift"], found["scale"]', "pass", RESUME),
    ("26", "other processes are let in", CHECKPOINT, "if found is None:", "if False:", RESUME),
    ("26", "the end is not resumed", "llmpipe/training/flow.py", "trainer._load_from_checkpoint(str(checkpoint))", 'load_model(trainer.model, checkpoint / "model.safetensors", strict=False)', RESUME),
    ("27", "value network in the output", STAGE, "adapters.save_policy(policy, begun,", "adapters.save_policy(trainer.model.value.backbone, begun,", f"{RESUME} -k plain_model"),
    ("28", "answers from the global generator", ROLLOUT, "torch.manual_seed(seed)", "pass", SAMPLING),
    ("28", "every process draws the same", TRAINER, "* 1_009 + process)", "* 1_009)", RUNS),
    ("28", "every rollout draws the same", TRAINER, "(seed * 1_000_003 + rollout)", "(seed * 1_000_003)", RUNS),
    ("28", "sampling moves the generator", ROLLOUT, "with torch.random.fork_rng(devices):", "with contextmanager(lambda: (yield))():", SAMPLING),
    ("29", "the reference is the policy", MODEL, "= deepcopy(policy).eval()", "= policy.eval()", READING),
    ("29", "any reference is taken", CHECKPOINT, 'if found["reference"] != self.collector.reference.fingerprint:', "if False:", RESUME),
    ("29", "a reward's adapter may move", SHARED, "if name not in trained)", "if name not in trained and '.reward0.' not in name)", f"{ROLES} -k noticed"),
    ("29", "rewards are read as the policy", SHARED, "with using(policy, self.adapter):", "with using(policy, POLICY):", f"{ROLES} -k scores_as"),
    ("29", "the active adapter stays another", SHARED, "        model.set_adapter(POLICY)\n        for", "        for", f"{ROLES} -k scores_as"),
    ("29", "any base will do", ONE_BASE, "_place(adapter) != _place(self.under)", "False", f"{ROLES} -k its_own"),
    ("29", "any vocabulary will do", ONE_BASE, "and vocabulary_of(tokenizer) == vocabulary_of(self.tokenizer)", "", f"{ROLES} -k its_own"),
    ("29", "any adapter will do", ONE_BASE, "if parts.is_plain and", "if", f"{ROLES} -k its_own"),
    ("30", "unscored answers are learned from", EXPERIENCE, "kept = [answer.ids if ok else []", "kept = [answer.ids if ok or True else []", SAMPLING),
    ("30", "an infinite reward is the bound", SCORING, "total = total.where(total.isfinite(), math.nan)", "total = total.where(~total.isnan(), math.nan)", SAMPLING),
    ("30", "unscored answers in the scale", SCORING, "core.moments(total[total.isfinite()])", "core.moments(total)", SAMPLING),
    ("30", "equal rewards are blown up", SCORING, "flat = variance <= 1e-12", "flat = False", SAMPLING),
    ("30", "whitening of equal numbers", CORE, "if count > 1 and deviation > 1e-6 * max(1.0, abs(mean)) else 0.0", "if count > 1 else 0.0", BY_HAND),
    ("30", "nothing scored goes on", TRAINER, 'if metrics["skipped"] == options.samples:', "if False:", MISTAKES),
]  # fmt: skip

TABLE = [Mutation(*row) for row in [*WORLDS, *ITEMS]]
