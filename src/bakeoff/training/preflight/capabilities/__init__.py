"""Probe what a method can do, by doing it on tiny random bases; PEFT's own claims are not trusted.

A failure is a result with its reason, not an exception.
"""

from __future__ import annotations

import dataclasses
import gc
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from transformers.utils import logging as transformers_logging

from bakeoff.core.errors import UsageError
from bakeoff.core.trial import MethodEntry
from bakeoff.core.worker_log import quiet_libraries
from bakeoff.methods.arguments import config_class
from bakeoff.methods.capability_records import (
    RANK,
    AcceleratorSupport,
    BaseResult,
    Capabilities,
    Measurement,
    QuantizationSupport,
    at_probed_rank,
    entry_hash,
)
from bakeoff.training.preflight.capabilities import (
    accelerators,
    layers,
    post_training,
    quantized,
    tiny,
)
from bakeoff.training.preflight.capabilities.post_training import error_reason, try_measure
from bakeoff.training.preflight.capabilities.train import TrainedModel, difference, train

MAX_RANK = 16
"""Largest rank tried: the narrowest tiny layers are 64 wide, which a larger rank hardly limits."""


def probe_method(value: dict[str, Any]) -> dict[str, Any]:
    """Return the capabilities of the method ``value["entry"]`` as JSON; a worker's entry point."""
    entry = MethodEntry(**value["entry"])
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    gc.freeze()  # parity collects garbage after each step; frozen, the imported objects are skipped
    with quiet_libraries(), tempfile.TemporaryDirectory() as folder:
        try:
            return measure_capabilities(entry, Path(folder)).to_json()
        finally:
            gc.unfreeze()


def measure_capabilities(entry: MethodEntry, folder: Path) -> Capabilities:
    """Return the capabilities of ``entry``; files are written into the empty ``folder``."""
    entry = at_probed_rank(entry)
    result = Capabilities(entry.name, entry_hash(entry), _peft_type(entry), entry.needs)
    if entry.needs is not None:
        return dataclasses.replace(
            result, on={k: BaseResult(False, entry.needs) for k in tiny.KINDS}
        )
    on: dict[str, BaseResult] = {}
    llama: TrainedModel | None = None
    for kind in tiny.KINDS:
        try:
            model = train(entry, dict(entry.config), kind, tiny.base(kind))
        except Exception as error:  # PEFT raises many kinds; the error is the result
            on[kind] = BaseResult(False, error_reason(error))
            continue
        saved = folder / f"saved-{kind}"
        on[kind] = _probe_base(model, saved)
        if kind == "llama":
            llama = model
            result = dataclasses.replace(
                probe_conversion(result, entry, model),
                plain=try_measure(partial(post_training.plain_lora_loss, model, saved)),
            )
    return dataclasses.replace(
        result,
        on=on,
        lanes_by_task={
            task: _probe_accelerators(entry, task, folder)
            for task, kind in accelerators.TASKS.items()
            if on[kind].trains
        },
        quantised=_probe_quantized(entry, folder, llama, on["llama"].reason),
        layers=layers.supported_layers(entry),
    )


def _peft_type(entry: MethodEntry) -> str | None:
    if entry.peft is None:
        return None
    try:
        wanted = config_class(entry)
    except UsageError:  # attaching fails with the reason
        return None
    types = peft.PEFT_TYPE_TO_CONFIG_MAPPING
    return next((str(kind.value) for kind, config in types.items() if config is wanted), None)


def _probe_base(at: TrainedModel, folder: Path) -> BaseResult:
    heads = tiny.KINDS[at.kind].heads
    own = [p for n, p in at.start.items() if not set(n.split(".")) & set(heads)]
    saved = try_measure(partial(post_training.save, at, folder))
    reload = try_measure(partial(post_training.reload_difference, at, folder))
    return BaseResult(
        trains=True,
        # without the task's output layer, which all methods train, unless nothing else is trained
        parameters=sum(p.numel() for p in own or at.start.values()),
        checkpoint_bytes=None if saved.value is None else int(saved.value),
        effect=try_measure(partial(difference, at.after, at.base_logits)).value,
        start=try_measure(partial(difference, at.before, at.base_logits)),
        reload=reload if saved.reason is None else saved,
        merge=try_measure(partial(post_training.merge_difference, at)),
        disable=try_measure(partial(post_training.disable_difference, at)),
    )


def probe_conversion(found: Capabilities, entry: MethodEntry, at: TrainedModel) -> Capabilities:
    """Return ``found`` with the conversion to LoRA measured, at the method's rank and ``RANK``."""
    rank = entry.config.get("r")
    natural = rank if isinstance(rank, int) and rank > 0 else None
    if natural is not None and natural > MAX_RANK:
        natural = MAX_RANK
        config = {**entry.config, "r": MAX_RANK}
        try:
            at = train(entry, config, at.kind, tiny.base(at.kind))
        except Exception as error:  # there is no model to convert
            none = Measurement(None, error_reason(error))
            return dataclasses.replace(found, conversion={str(RANK): none})
    ranks = sorted({RANK, natural or RANK})
    claims = getattr(at.model, "supports_lora_conversion", None)
    return dataclasses.replace(
        found,
        claims_conversion=bool(claims and claims()),
        natural_rank=natural,
        conversion={
            str(r): try_measure(partial(post_training.conversion_loss, at, r)) for r in ranks
        },
    )


def _probe_quantized(
    entry: MethodEntry, folder: Path, plain: TrainedModel | None, reason: str | None
) -> dict[str, QuantizationSupport]:
    if plain is None:
        return {kind: QuantizationSupport(False, reason) for kind in quantized.PACKAGES}
    return {
        kind: quantized.probe_quantized(entry, kind, folder, plain) for kind in quantized.PACKAGES
    }


def _probe_accelerators(entry: MethodEntry, task: str, folder: Path) -> AcceleratorSupport:
    try:
        return accelerators.supported_accelerators(entry, task, folder)
    except Exception as error:  # the reference itself does not run on this task
        return AcceleratorSupport((), {"lanes": error_reason(error)})
