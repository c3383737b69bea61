"""From the name of a policy to what moderates by it."""

from __future__ import annotations

import os
from pathlib import Path

from llmpipe.curation.toxicity import refuse_unknown
from llmpipe.errors import UsageError
from llmpipe.inspection import found
from llmpipe.moderation import Layer, LayerName
from llmpipe.moderation import policy as policies
from llmpipe.moderation.classifier import ClassifierLayer
from llmpipe.moderation.guard import Guard
from llmpipe.moderation.log import Log, default_path
from llmpipe.moderation.moderator import Moderator
from llmpipe.moderation.policy import GuardKeys, Policy
from llmpipe.moderation.words import Personal, Words
from llmpipe.server import Server

OFF, DEFAULT = "off", "default"


def moderator(name: str) -> Moderator | None:
    """Return what moderates by a policy: a file, or `default`; None for `off`.

    Raises:
        LlmpipeError: the policy is wrong, its classifier or key is not there, or its log cannot be written.
    """
    if name == OFF:
        return None
    policy, base = _policy(name)
    log = Log(base / policy.log.path if policy.log.path else default_path(), keeps_text=policy.log.text)
    return Moderator(policy, layers_of(policy, base), log)


def opened(name: str) -> tuple[Policy, dict[LayerName, Layer]]:
    """Return a policy, a file or `default`, and its layers.

    Raises:
        LlmpipeError: as above.
    """
    policy, base = _policy(name)
    return policy, layers_of(policy, base)


def _policy(name: str) -> tuple[Policy, Path]:
    """Return a policy, and the folder that paths in it are relative to."""
    path = policies.DEFAULT if name == DEFAULT else Path(name)
    if not path.exists():
        raise UsageError(f"there is no policy {name}", hint=f"default, off, or a file: {policies.EXAMPLE}")
    return policies.load(path), path.parent


def layers_of(policy: Policy, base: Path) -> dict[LayerName, Layer]:
    """Return the layers that the rules name, in the order in which they look; models are loaded.

    Raises:
        LlmpipeError: there is no such classifier, it has other classes, or the guard's key is not set.
    """
    layers: dict[LayerName, Layer] = {}
    if categories := policy.categories("words"):
        layers["words"] = Words({category: policy.lists[category] for category in categories})
    if categories := policy.categories("personal"):
        layers["personal"] = Personal(categories)
    guard = _guard(policy.guard) if policy.guard else None  # what is wrong with it is said before a model is loaded
    if policy.classifier:
        labels = policy.categories("classifier")
        with found(str(base / policy.classifier.model)) as (source, ctx):
            folder = ctx.folder_of(source)
            refuse_unknown(labels, folder)
            layers["classifier"] = ClassifierLayer.load(folder, labels)
    if guard:
        layers["guard"] = guard
    return layers


def _guard(keys: GuardKeys) -> Guard:
    key = None
    if keys.key_variable is not None and not (key := os.environ.get(keys.key_variable)):
        variable = keys.key_variable
        raise UsageError(f"the environment variable {variable} is not set", hint=f"export {variable}=KEY")
    hint = "is the guard up, and `guard: {url: …}` of the policy right?"
    server = Server(keys.url, hint, key=key, timeout_s=keys.timeout_s, tries=1)
    return Guard(server, keys.model, categories=keys.categories, asks_itself=keys.asks_itself)
