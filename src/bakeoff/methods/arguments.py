"""Resolve a method's arguments in the catalog into arguments of PEFT's config class.

Some values in the catalog are rules (``"2 * r"``, ``"all-norms"``, ``"divisor <= 64"``) that are
resolved for the base model, so that one entry works for any base. Unknown arguments and target
modules are refused.
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
from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from bakeoff.core.errors import PreflightError, near_match, unknown_name
from bakeoff.core.trial import MethodEntry
from bakeoff.methods import forbidden_arguments

PEFT_HEADS = ("classifier", "score")
"""Names of output layers that PEFT trains with every method by itself."""
VALUE_PROJECTIONS = ("v_proj", "value", "v", "v_lin", "value_proj")
"""Names of an attention layer's value projection in transformers' model families."""
KEY_PROJECTIONS = ("k_proj", "key", "k_lin", "k", "key_proj")
FEEDFORWARD_OUTPUTS = ("down_proj", "fc2", "lin2", "wo", "ffn_output", "output.dense")
"""Names of an attention layer's key projection, and of a feed-forward layer's second matrix."""
STEPS = "steps"
_PRODUCT = re.compile(r"(\d+(?:\.\d+)?) \* ([a-z_]\w*)")
_LIMIT = re.compile(r"(divisor|frequent) <= (\d+)")


class Incompatible(Exception):
    """The method cannot be attached to this base or task; the message is the reason."""


class RuleContext(NamedTuple):
    """The inputs of rules: the base, the task's head names, the number of steps, training data."""

    base: nn.Module
    heads: Sequence[str]
    steps: int
    examples: Callable[[], Sequence[Any]]


def resolve_arguments(
    entry: MethodEntry, config: Mapping[str, Any], context: RuleContext
) -> dict[str, Any]:
    """Return the keyword arguments for the entry's config class, with all rules resolved.

    Raises:
        PreflightError: ``unknown-config-key``, ``target-modules-not-found``.
        Incompatible: a rule matches nothing on this base.
    """
    check_config(entry, config)
    arguments = dict(config)
    extra = [name for name in context.heads if name not in PEFT_HEADS]
    if extra:
        arguments |= _head_arguments(entry, arguments, extra, context)
    if entry.peft == "IA3Config" and "target_modules" not in arguments:
        arguments |= _ia3_targets(context)
    arguments |= _capped_rank(entry, arguments, context)
    targets = _resolve_targets(entry, arguments.get("target_modules"), context)
    if targets is not None:
        arguments["target_modules"] = targets
    for key, value in arguments.items():
        if isinstance(value, str):
            arguments[key] = _resolve_value(value, arguments, context)
    return _build_nested_configs(config_class(entry), arguments)


def _head_arguments(
    entry: MethodEntry, arguments: Mapping[str, Any], extra: Sequence[str], context: RuleContext
) -> dict[str, Any]:
    """Return the arguments with which PEFT trains the layers ``extra`` of the head as they are.

    PEFT looks for `classifier` and `score` by the end of a name: it finds `pre_classifier` too, and
    must not have put an adapter there.
    """
    known = {f.name for f in dataclasses.fields(config_class(entry))} if entry.peft else set()
    changed: dict[str, Any] = {}
    if "modules_to_save" in known:
        changed["modules_to_save"] = [*(arguments.get("modules_to_save") or ()), *extra]
    if arguments.get("target_modules") == "all-linear":
        changed["target_modules"] = list(linear_layers(context.base, context.heads))
    return changed


def _capped_rank(
    entry: MethodEntry, arguments: Mapping[str, Any], context: RuleContext
) -> dict[str, Any]:
    """Return a smaller rank if the method's own is larger than the base allows; else nothing.

    A product of matrices gains nothing from a rank above the base's width. A start from singular
    vectors has only as many as the narrowest layer is wide, of which LoRA-GA uses two for each
    rank, and KaSA leaves one in the base. SHiRA trains ``r (in + out)`` entries of a weight, which
    has ``in * out``.
    """
    rank = arguments.get("r")
    if not isinstance(rank, int):
        return {}
    config: Any = context.base.config
    limits = [rank]
    shapes = _target_shapes(arguments.get("target_modules"), context)
    if entry.family == "low-rank":
        limits.append(getattr(config.get_text_config(), "hidden_size", None) or rank)
    if isinstance(start := arguments.get("init_lora_weights"), str):
        limits += [min(shape) // (2 if start == "lora_ga" else 1) for shape in shapes]
    if "kasa_config" in arguments:
        limits += [min(shape) - 1 for shape in shapes]
    if entry.peft == "ShiraConfig":
        limits += [rows * columns // (rows + columns) for rows, columns in shapes]
    return {"r": max(1, min(limits))} if rank > min(limits) else {}


def _ia3_targets(context: RuleContext) -> dict[str, Any]:
    """Return the layers of (IA)^3 on a base whose type PEFT does not list; empty on the others.

    As in the paper: keys, values, and the input of the feed-forward layer's second matrix.

    Raises:
        Incompatible: the base has no such layers.
    """
    config: Any = context.base.config
    if config.model_type in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
        return {}
    layers = linear_layers(context.base, context.heads)

    def named(names: Sequence[str]) -> list[str]:
        return [n for n in layers if any(f".{n}".endswith(f".{name}") for name in names)]

    keys, values = named(KEY_PROJECTIONS), named(VALUE_PROJECTIONS)
    outputs = named(FEEDFORWARD_OUTPUTS)
    if not (keys and values and outputs):
        raise Incompatible(
            "the base has no separate key, value and feed-forward projections of a known name; "
            "`target_modules` and `feedforward_modules` name others"
        )
    return {"target_modules": [*keys, *values, *outputs], "feedforward_modules": outputs}


def config_class(entry: MethodEntry) -> type[peft.PeftConfig]:
    """Return the PEFT config class that a method names.

    Raises:
        UsageError: ``unknown-peft-config`` with the closest match.
    """
    known = [n for n in dir(peft) if n.endswith("Config")]
    if entry.peft not in known:
        raise unknown_name("unknown-peft-config", "PEFT config class", str(entry.peft), known)
    owner: type[peft.PeftConfig] = getattr(peft, str(entry.peft))
    return owner


def check_config(entry: MethodEntry, config: Mapping[str, Any]) -> None:
    """Refuse arguments that the method does not take, and those that load code or files.

    Raises:
        PreflightError: ``unknown-config-key`` with the closest match.
        UsageError: ``unsafe-config-key``.
    """
    forbidden_arguments.check_arguments(entry.name, config)
    known = {f.name for f in dataclasses.fields(config_class(entry))} if entry.peft else set()
    for key in config:
        if key not in known:
            raise _unknown_key_error(entry, key, known)


def check_targets(method: str, base: nn.Module, targets: Sequence[str]) -> None:
    """Refuse target names that match no module of the base (in PEFT: equal, or a dotted suffix).

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
    """Return the base's linear layers by name, without its output layer and the task's head."""
    find_output = getattr(base, "get_output_embeddings", lambda: None)
    output = find_output()
    return {
        name: module
        for name, module in base.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module is not output
        and not set(name.split(".")) & set(heads)
    }


def norm_modules(base: nn.Module, heads: Sequence[str]) -> list[str]:
    """Return the full names of all normalisation layers (LayerNorm, RMSNorm) outside the head."""
    return [
        name
        for name, module in base.named_modules()
        if "norm" in type(module).__name__.lower()
        and any(True for _ in module.parameters())
        and not set(name.split(".")) & set(heads)
    ]


def _resolve_targets(entry: MethodEntry, targets: Any, context: RuleContext) -> list[str] | None:
    """Return the modules that a rule of bakeoff stands for; None if PEFT resolves the value."""
    base = context.base
    if isinstance(targets, list):
        check_targets(entry.name, base, targets)
        return None
    if targets == "all-norms":
        modules = norm_modules(base, context.heads)
        what = "norm layers"
    elif targets == "attention-values":
        modules = [
            n
            for n in linear_layers(base, context.heads)
            if n.rsplit(".", 1)[-1] in VALUE_PROJECTIONS
        ]
        what = "value projection of its own in its attention"
    elif targets == "input-embedding":
        table = base.get_input_embeddings()  # type: ignore[operator]  # a Module to mypy
        modules = [n for n, m in base.named_modules() if m is table]
        what = "input embedding"
    else:
        return None
    if not modules:
        raise Incompatible(f"the base has no {what}")
    return modules


def _resolve_value(rule: str, arguments: Mapping[str, Any], context: RuleContext) -> Any:
    """Return the value of a rule; any other string is returned unchanged."""
    product, limit = _PRODUCT.fullmatch(rule), _LIMIT.fullmatch(rule)
    if product:
        factor, name = float(product[1]), product[2]
        if name != STEPS and not isinstance(arguments.get(name), (int, float)):
            raise Incompatible(f'"{rule}" names {name}, which is not a number')
        operand = context.steps if name == STEPS else arguments[name]
        return factor * operand if isinstance(operand, float) else round(factor * operand)
    if limit:
        maximum = int(limit[2])
        if limit[1] == "divisor":
            return _common_divisor(arguments, context, maximum)
        return _frequent_tokens(context, maximum)
    if rule == "layers":
        config: Any = context.base.config
        return config.get_text_config().num_hidden_layers
    return rule


def _common_divisor(arguments: Mapping[str, Any], context: RuleContext, maximum: int) -> int:
    """Return the largest number up to ``maximum`` that divides the widths of all target layers."""
    shapes = _target_shapes(arguments.get("target_modules"), context)
    widths = [width for shape in shapes for width in shape]
    if not widths:
        raise Incompatible("the base has no linear layers")
    common = math.gcd(*widths)
    return next(n for n in range(min(maximum, common), 0, -1) if common % n == 0)


def _target_shapes(targets: Any, context: RuleContext) -> list[tuple[int, int]]:
    """Return the input and output widths of the target layers: of all linear ones if unnamed."""
    layers = linear_layers(context.base, context.heads)
    if isinstance(targets, list):
        layers = {
            n: m for n, m in layers.items() if any(n == t or n.endswith(f".{t}") for t in targets)
        }
    return [_widths(m) for m in layers.values()]


def _widths(layer: Any) -> tuple[int, int]:
    """Return a linear layer's input and output width; packed weights have other shapes."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    rows, columns = layer.weight.shape
    return int(rows), int(columns)


def _frequent_tokens(context: RuleContext, maximum: int) -> list[int]:
    """Return the most frequent tokens of the training data; the smaller id wins a tie."""
    counts: Counter[int] = Counter()
    for example in context.examples():
        counts.update(example.tokens)
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    return sorted(ranked[:maximum])


def _build_nested_configs(owner: type[Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Build the config objects that PEFT nests in its config from plain dicts."""
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
    """Return the dataclass in a field's type hint, None if there is none."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) or hint else ()
    return next((k for k in (*kinds, hint) if dataclasses.is_dataclass(k)), None)


def _unknown_key_error(entry: MethodEntry, key: str, known: set[str]) -> PreflightError:
    near = near_match(key, known)
    return PreflightError(
        "unknown-config-key",
        f"{entry.title} takes no argument '{key}'.",
        f"did you mean '{near}'?" if near else f"remove it from [method.{entry.name}].",
    )
