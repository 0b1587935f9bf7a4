"""Records of the methods' measured capabilities: shipped ones, and those in the user's cache.

Standard library only, so that a table of all methods imports neither torch nor PEFT.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, Self

import bakeoff
from bakeoff.core.files import atomic_write_text
from bakeoff.core.trial import DESCRIPTIVE_FIELDS, MethodEntry
from bakeoff.core.versions import installed_version

BASES = ("llama", "gpt2", "bert", "t5")
"""The probe's tiny bases: decoders (linear layers, Conv1D), an encoder, an encoder-decoder."""
KINDS = ("4bit", "8bit", "int8")
"""Kinds of quantised base: bitsandbytes in 4 and 8 bits, torchao's int8 weights."""
RANK = 8
"""Conversion to LoRA is measured at this rank and at the method's own."""
RANKED = (
    "LoraConfig", "AdaLoraConfig", "DeftConfig", "DeloraConfig", "HiraConfig", "GraloraConfig",
    "ShiraConfig", "PeanutConfig", "LoHaConfig", "GloraConfig", "SupertuningConfig",
)  # fmt: skip
"""PEFT's classes whose rank is only a size: they are probed at ``RANK`` at most."""
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "torchao")
CACHE_FOLDER = "capabilities"
"""Subfolder of the cache for records."""
EXACT_TOLERANCE = 1e-5
"""Relative difference of logits up to which they count as equal: fp32 rounding."""
MERGE_TOLERANCE = 1e-4
"""Tolerance for merged weights: the merged product is rounded once more."""
MAX_MERGE_LOSS = 1e-2
"""Share of the method's own effect that merging may lose."""
FP32_BYTES = 4
WHOLE, MOST_COPIES = 0.01, 2
"""A file has the trained tensors once, or twice (with their start), within this tolerance."""
MAX_CONVERSION_LOSS = 1e-3
"""Share of the method's own effect that a conversion to LoRA may lose."""


@dataclass(frozen=True)
class Measurement:
    """A measured value, or the reason why there is none."""

    value: float | None = None
    reason: str | None = None

    def within(self, limit: float) -> bool:
        """Tell whether there is a value and it is at most ``limit``."""
        return self.value is not None and self.value <= limit


@dataclass(frozen=True)
class BaseResult:
    """Results of a method on one tiny base; measurements are relative differences of logits.

    ``effect`` is the difference between the trained model and the base, ``start`` the same before
    the first step. ``reload``, ``merge`` and ``disable`` compare the reloaded and the merged model
    with the trained one, and the model with its adapter off with the base.
    """

    trains: bool
    reason: str | None = None
    parameters: int | None = None
    checkpoint_bytes: int | None = None
    effect: float | None = None
    start: Measurement = Measurement()
    reload: Measurement = Measurement()
    merge: Measurement = Measurement()
    disable: Measurement = Measurement()


@dataclass(frozen=True)
class AcceleratorSupport:
    """Accelerators that work for a method on one task, and reasons why others do not."""

    switches: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class QuantizationSupport:
    """Whether a kind of quantised base works; None if it could not be tried."""

    works: bool | None
    reason: str | None = None


@dataclass(frozen=True)
class Capabilities:
    """All results of the probe of one method.

    ``conversion`` maps a rank to the share of the method's effect that PEFT's conversion to LoRA
    loses, ``claims_conversion`` is PEFT's own claim; ``natural_rank`` is the method's own rank.
    ``plain`` is the difference between the trained model and its file read as plain LoRA, as
    inference servers do. ``layers`` names the layer types that PEFT supports for the method.
    """

    method: str
    entry: str
    peft_type: str | None = None
    needs: str | None = None
    on: dict[str, BaseResult] = field(default_factory=dict)
    lanes_by_task: dict[str, AcceleratorSupport] = field(default_factory=dict)
    claims_conversion: bool = False
    natural_rank: int | None = None
    conversion: dict[str, Measurement] = field(default_factory=dict)
    plain: Measurement = Measurement()
    quantised: dict[str, QuantizationSupport] = field(default_factory=dict)
    layers: tuple[str, ...] = ()

    @property
    def trains(self) -> list[str]:
        """The tiny bases on which the method trains."""
        return [base for base in BASES if base in self.on and self.on[base].trains]

    @property
    def main(self) -> BaseResult | None:
        """The result on the first base on which the method trains."""
        return self.on[self.trains[0]] if self.trains else None

    @property
    def mergeable(self) -> bool:
        """Whether merging keeps the trained effect."""
        at = self.main
        if at is None or at.effect is None or at.merge.value is None:
            return False
        return at.merge.value <= min(MERGE_TOLERANCE, MAX_MERGE_LOSS * at.effect)

    @property
    def to_lora(self) -> bool:
        """Whether PEFT's conversion to LoRA keeps the trained effect."""
        return any(error.within(MAX_CONVERSION_LOSS) for error in self.conversion.values())

    @property
    def lanes(self) -> bool:
        """Whether trials can be batched with vmap on every probed task."""
        return bool(self.lanes_by_task) and all(
            "lanes" in support.switches for support in self.lanes_by_task.values()
        )

    @property
    def quantized(self) -> list[str]:
        """The kinds of quantised base on which the method trains."""
        return [kind for kind, support in self.quantised.items() if support.works]

    @property
    def vllm(self) -> str | None:
        """How vLLM can serve it: as saved (``adapter``), ``converted``, ``merged``, or None."""
        if self.plain.within(MAX_CONVERSION_LOSS):
            return "adapter"
        if self.to_lora:
            return "converted"
        return "merged" if self.mergeable else None

    def checkpoint_bytes(self, parameters: int) -> int | None:
        """Return the expected size on disk, in bytes, for ``parameters`` trainable parameters.

        None for a method whose file has other tensors too, such as frozen projections or indices,
        which do not grow with them.
        """
        at = self.main
        if at is None or at.checkpoint_bytes is None or at.parameters is None:
            return None
        copies = at.checkpoint_bytes / (FP32_BYTES * at.parameters)
        whole = round(copies)
        near = whole >= 1 and abs(copies - whole) < WHOLE * whole and whole <= MOST_COPIES
        return FP32_BYTES * parameters * whole if near else None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return _drop_empty(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Rebuild from ``to_json``."""
        return cls(
            **{
                **value,
                "on": {
                    base: _parse_base_result(found) for base, found in value.get("on", {}).items()
                },
                "lanes_by_task": {
                    task: AcceleratorSupport(tuple(r.get("switches", ())), r.get("reasons", {}))
                    for task, r in value.get("lanes_by_task", {}).items()
                },
                "conversion": {
                    rank: Measurement(**error)
                    for rank, error in value.get("conversion", {}).items()
                },
                "layers": tuple(value.get("layers", ())),
                "plain": Measurement(**value.get("plain", {})),
                "quantised": {
                    kind: QuantizationSupport(found.get("works"), found.get("reason"))
                    for kind, found in value.get("quantised", {}).items()
                },
            }
        )


def _parse_base_result(value: Mapping[str, Any]) -> BaseResult:
    figures = ("start", "reload", "merge", "disable")
    return BaseResult(**{**value, **{f: Measurement(**value.get(f, {})) for f in figures}})


def _drop_empty(value: dict[str, Any]) -> dict[str, Any]:
    """Remove None values and empty fields, but no task or rank."""
    result = {k: _drop_empty(v) if isinstance(v, dict) else v for k, v in value.items()}
    empty = {k for k, v in result.items() if v is None or (k in _FIELDS and v in ({}, ()))}
    return {k: v for k, v in result.items() if k not in empty}


_FIELDS = {
    f.name for of in (Capabilities, BaseResult, AcceleratorSupport) for f in dataclasses.fields(of)
}


class CapabilityRecord(NamedTuple):
    """An entry's capabilities and the versions they were measured with; None: not probed."""

    capabilities: Capabilities | None
    versions: dict[str, str | None]


def versions() -> dict[str, str | None]:
    """Return the installed versions that capabilities depend on; None for a missing package."""
    return {"bakeoff": bakeoff.__version__} | {p: _version(p) for p in PACKAGES}


@functools.cache
def _version(package: str) -> str | None:
    version = installed_version(package)
    # a local part such as "+cu128" names the build for a device
    return None if version is None else version.partition("+")[0]


def at_probed_rank(entry: MethodEntry) -> MethodEntry:
    """Return the entry with the rank at which it is probed: the tiny bases are 64 to 128 wide."""
    ranks = {k: v for k in ("r", "target_r") if isinstance(v := entry.config.get(k), int)}
    if entry.peft not in RANKED or max(ranks.values(), default=0) <= RANK:
        return entry
    smaller = {k: min(v, RANK) for k, v in ranks.items()}
    return dataclasses.replace(entry, config={**entry.config, **smaller})


def entry_hash(entry: MethodEntry) -> str:
    """Return a hash of what an entry's capabilities depend on.

    They depend neither on its name and description, nor on a large rank, nor on the learning rate,
    which a study moves to the size of its base.
    """
    ignored = ("name", "learning_rate", *DESCRIPTIVE_FIELDS)
    probed = dataclasses.asdict(at_probed_rank(entry))
    spec = {k: v for k, v in probed.items() if k not in ignored}
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def load_shipped() -> dict[str, Any]:
    """Return the shipped records: ``versions``, and ``methods`` by name."""
    text = files("bakeoff.methods").joinpath("probed.json").read_text(encoding="utf-8")
    record: dict[str, Any] = json.loads(text)
    return record


def find_record(entry: MethodEntry, cache: Path, record: Mapping[str, Any]) -> CapabilityRecord:
    """Return the capabilities of ``entry``: from the cache for the installed versions, or shipped.

    ``cache`` is the user's cache folder, ``record`` the result of ``load_shipped``.
    """
    cached = _read_record(_cache_path(entry, cache))
    if cached is not None:
        return CapabilityRecord(cached, versions())
    wanted = entry_hash(entry)
    value = next((v for v in record["methods"].values() if v["entry"] == wanted), None)
    if value is None:
        return CapabilityRecord(None, versions())
    return CapabilityRecord(Capabilities.from_json(value), record["versions"])


def save_record(entry: MethodEntry, capabilities: Capabilities, cache: Path) -> None:
    """Write capabilities into the cache, for the installed versions."""
    path = _cache_path(entry, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps(capabilities.to_json(), indent=1) + "\n")


def is_cached(entry: MethodEntry, cache: Path) -> bool:
    """Tell whether the cache has a record of ``entry`` for the installed versions."""
    return _read_record(_cache_path(entry, cache)) is not None


def _cache_path(entry: MethodEntry, cache: Path) -> Path:
    canonical = json.dumps(versions(), sort_keys=True)
    installed = hashlib.sha256(canonical.encode()).hexdigest()[:12]
    return cache / CACHE_FOLDER / installed / f"{entry.name}-{entry_hash(entry)}.json"


def _read_record(path: Path) -> Capabilities | None:
    """Read a record; None if there is none or it has another format."""
    try:
        return Capabilities.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def describe_version_difference(recorded: Mapping[str, str | None]) -> str | None:
    """Return how the installed versions differ from a record's, None if they do not.

    Packages that are not installed are ignored.
    """
    installed = {p: v for p, v in versions().items() if p in PACKAGES and v is not None}
    differences = [f"{p} {recorded.get(p) or 'none'}, here {v}" for p, v in installed.items()
             if recorded.get(p) != v]  # fmt: skip
    return "; ".join(differences) or None
