"""A method's arguments, from what the catalog writes to what PEFT's config class takes.

Used by ``hook`` when a method is attached. A catalog entry suits any base because some values are
written as rules (``"2 * r"``, ``"all-norms"``, ``"divisor <= 64"``) and resolved here, on the
base at hand. Unknown arguments and targets are refused by name.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import peft
from torch import nn
from transformers.pytorch_utils import Conv1D

from bakeoff.core.errors import PreflightError, near_match, unknown_name
from bakeoff.core.trial import MethodEntry
from bakeoff.methods import forbidden_arguments

VALUE_PROJECTIONS = ("v_proj", "value", "v", "v_lin", "value_proj")
"""What the families of transformers call an attention layer's value projection."""
STEPS = "steps"
_PRODUCT = re.compile(r"(\d+(?:\.\d+)?) \* ([a-z_]\w*)")
_LIMIT = re.compile(r"(divisor|frequent) <= (\d+)")


class Incompatible(Exception):
    """This method cannot be attached to this base or task; the message is the reason."""


class RuleContext(NamedTuple):
    """What rules are resolved against: the base, the task's head names, the study's steps, data."""

    base: nn.Module
    heads: Sequence[str]
    steps: int
    examples: Callable[[], Sequence[Any]]


def resolve_arguments(
    entry: MethodEntry, config: Mapping[str, Any], around: RuleContext
) -> dict[str, Any]:
    """Return the keyword arguments for the entry's config class, every rule resolved.

    Raises:
        PreflightError: ``unknown-config-key``, ``target-modules-not-found``.
        Incompatible: a rule finds nothing on this base.
    """
    check_config(entry, config)
    arguments = dict(config)
    targets = _resolve_targets(entry, arguments.get("target_modules"), around)
    if targets is not None:
        arguments["target_modules"] = targets
    for key, value in arguments.items():
        if isinstance(value, str):
            arguments[key] = _resolve_value(value, arguments, around)
    return _build_nested_configs(config_class(entry), arguments)


def config_class(entry: MethodEntry) -> type[peft.PeftConfig]:
    """Return the PEFT config class that a method names.

    Raises:
        UsageError: ``unknown-peft-config`` with the near match.
    """
    known = [n for n in dir(peft) if n.endswith("Config")]
    if entry.peft not in known:
        raise unknown_name("unknown-peft-config", "PEFT config class", str(entry.peft), known)
    found: type[peft.PeftConfig] = getattr(peft, str(entry.peft))
    return found


def check_config(entry: MethodEntry, config: Mapping[str, Any]) -> None:
    """Refuse arguments that the method does not take, and those that lead to code or files.

    Raises:
        PreflightError: ``unknown-config-key`` with the near match.
        UsageError: ``unsafe-config-key``.
    """
    forbidden_arguments.check_arguments(entry.name, config)
    known = {f.name for f in dataclasses.fields(config_class(entry))} if entry.peft else set()
    for key in config:
        if key not in known:
            raise _unknown_key_error(entry, key, known)


def check_targets(method: str, base: nn.Module, targets: Sequence[str]) -> None:
    """Refuse target names that match no module of the base (PEFT: equal, or a dotted suffix).

    Raises:
        PreflightError: ``target-modules-not-found``, listing the base's real names.
    """
    modules = [n for n, _ in base.named_modules() if n]
    missing = [t for t in targets if not any(n == t or n.endswith(f".{t}") for n in modules)]
    if missing:
        linear = [n for n, m in base.named_modules() if isinstance(m, nn.Linear)]
        leaves = sorted({n.rsplit(".", 1)[-1] for n in linear})
        raise PreflightError(
            "target-modules-not-found",
            f"[method.{method}] targets {missing}, which the base does not have.",
            f"its linear layers are: {', '.join(leaves)}; or target_modules = 'all-linear'.",
        )


def linear_layers(base: nn.Module, heads: Sequence[str]) -> dict[str, nn.Module]:
    """Return the linear layers of the base by name, but for its output layer and the task's."""
    find_output = getattr(base, "get_output_embeddings", lambda: None)
    output = find_output()
    return {
        name: module
        for name, module in base.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module is not output
        and not set(name.split(".")) & set(heads)
    }


def norm_modules(base: nn.Module) -> list[str]:
    """Return the full names of all layers of a norm class (LayerNorm, RMSNorm and kin)."""
    return [
        name
        for name, module in base.named_modules()
        if "norm" in type(module).__name__.lower() and any(True for _ in module.parameters())
    ]


def _resolve_targets(entry: MethodEntry, targets: Any, around: RuleContext) -> list[str] | None:
    """Return the layers that a rule of ours stands for, None for what PEFT reads itself."""
    base = around.base
    if isinstance(targets, list):
        check_targets(entry.name, base, targets)
        return None
    if targets == "all-norms":
        found = norm_modules(base)
        what = "norm layers"
    elif targets == "attention-values":
        found = [
            n
            for n in linear_layers(base, around.heads)
            if n.rsplit(".", 1)[-1] in VALUE_PROJECTIONS
        ]
        what = "value projection of its own in its attention"
    elif targets == "input-embedding":
        table = base.get_input_embeddings()  # type: ignore[operator]
        found = [n for n, m in base.named_modules() if m is table]
        what = "input embedding"
    else:
        return None
    if not found:
        raise Incompatible(f"the base has no {what}")
    return found


def _resolve_value(rule: str, arguments: Mapping[str, Any], around: RuleContext) -> Any:
    """Return what a rule stands for; any other string is itself."""
    product, limit = _PRODUCT.fullmatch(rule), _LIMIT.fullmatch(rule)
    if product:
        factor, name = float(product[1]), product[2]
        if name != STEPS and not isinstance(arguments.get(name), (int, float)):
            raise Incompatible(f'"{rule}" names {name}, which is not a number')
        of = around.steps if name == STEPS else arguments[name]
        return factor * of if isinstance(of, float) else round(factor * of)
    if limit:
        most = int(limit[2])
        if limit[1] == "divisor":
            return _common_divisor(arguments, around, most)
        return _frequent_tokens(around, most)
    if rule == "layers":
        config: Any = around.base.config
        return config.get_text_config().num_hidden_layers
    return rule


def _common_divisor(arguments: Mapping[str, Any], around: RuleContext, most: int) -> int:
    """Return the largest number up to ``most`` that divides all targeted layers' widths."""
    layers = linear_layers(around.base, around.heads)
    targets = arguments.get("target_modules")
    if isinstance(targets, list):
        layers = {
            n: m for n, m in layers.items() if any(n == t or n.endswith(f".{t}") for t in targets)
        }
    widths = {w for m in layers.values() for w in _widths(m)}
    if not widths:
        raise Incompatible("the base has no linear layers")
    common = math.gcd(*(int(w) for w in widths))
    return next(n for n in range(min(most, common), 0, -1) if common % n == 0)


def _widths(layer: Any) -> tuple[int, int]:
    """Return what a linear layer says of itself: quantised weights lie packed in other shapes."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return tuple(layer.weight.shape)


def _frequent_tokens(around: RuleContext, most: int) -> list[int]:
    """Return the most frequent tokens of the training data; ties go to the smaller id."""
    counts: Counter[int] = Counter()
    for example in around.examples():
        counts.update(example.tokens)
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    return sorted(ranked[:most])


def _build_nested_configs(owner: type[Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Build the config objects that PEFT takes inside its config from plain tables."""
    hints = typing.get_type_hints(owner)
    for key, value in arguments.items():
        inner = _dataclass_in(hints.get(key))
        if isinstance(value, dict) and inner is not None:
            known = {f.name for f in dataclasses.fields(inner)}
            for name in value:
                if name not in known:
                    near = near_match(name, known)
                    raise PreflightError(
                        "unknown-config-key",
                        f"{inner.__name__} takes no argument '{name}'.",
                        f"did you mean '{near}'?" if near else f"remove it from {key}.",
                    )
            arguments[key] = inner(**value)
    return arguments


def _dataclass_in(hint: Any) -> Any:
    """Return the dataclass of an optional field's type, None where there is none."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) or hint else ()
    return next((k for k in (*kinds, hint) if dataclasses.is_dataclass(k)), None)


def _unknown_key_error(entry: MethodEntry, key: str, known: set[str]) -> PreflightError:
    near = near_match(key, known)
    return PreflightError(
        "unknown-config-key",
        f"{entry.title} takes no argument '{key}'.",
        f"did you mean '{near}'?" if near else f"remove it from [method.{entry.name}].",
    )
