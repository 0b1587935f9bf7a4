"""What is known of each method's capabilities: probed before, shipped or in the user's cache.

``capabilities`` finds them out and gives them here as JSON; the CLI, the report and the docs read
them. Standard library only, so that a table of all methods imports neither torch nor PEFT.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, Self

import bakeoff
from bakeoff.core.trial import DESCRIPTIVE_FIELDS, MethodEntry

BASES = ("llama", "gpt2", "bert", "t5")
"""The tiny bases of the probe: decoders (linear layers, Conv1D), an encoder, an encoder-decoder."""
KINDS = ("4bit", "8bit", "int8")
"""Kinds of quantised base: bitsandbytes in 4 and 8 bits, torchao's int8 weights."""
RANK = 8
"""Every conversion to LoRA is measured at this rank beside the method's own."""
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "torchao")
CACHE_FOLDER = "capabilities"
"""Where in the cache records lie."""
EXACT_TOLERANCE = 1e-5
"""Largest relative difference of logits that counts as none: fp32 rounding."""
MERGE_TOLERANCE = 1e-4
"""Largest relative difference of logits after merging: a merged product rounds once more."""
MAX_MERGE_LOSS = 1e-2
"""Largest share of the method's own effect that merging may lose."""
FP32_BYTES = 4
WHOLE, MOST_COPIES = 0.01, 2
"""A file holds the trained tensors once, or twice (with their start), within this share."""
MAX_CONVERSION_LOSS = 1e-3
"""Largest share of the method's own effect that a conversion to LoRA may lose."""


@dataclass(frozen=True)
class Measurement:
    """A figure, or the reason why there is none."""

    value: float | None = None
    reason: str | None = None

    def within(self, limit: float) -> bool:
        """Tell whether there is a figure and it is at most ``limit``."""
        return self.value is not None and self.value <= limit


@dataclass(frozen=True)
class BaseResult:
    """What a method did on one tiny base; figures are relative differences of logits.

    ``effect`` is how far training moved the model from the untouched base, ``start`` the same
    before the first step; ``reload``, ``merge`` and ``disable`` hold the saved, the merged and the
    switched-off model against what each should equal.
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
    """Which accelerators hold for a method on one task, and why others do not."""

    switches: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class QuantizationSupport:
    """Whether something works; None where it could not be tried."""

    works: bool | None
    reason: str | None = None


@dataclass(frozen=True)
class Capabilities:
    """All that the probe of one method found.

    ``conversion`` maps a rank to the share of the method's effect that PEFT's conversion loses,
    ``claims_conversion`` is what PEFT says of it; ``natural_rank`` is the method's own. ``plain``
    is the difference between the trained model and its file read as plain LoRA, as inference
    servers do. ``layers`` names the types of layer that PEFT takes.
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
        """The tiny bases that it trains on."""
        return [base for base in BASES if base in self.on and self.on[base].trains]

    @property
    def main(self) -> BaseResult | None:
        """What it did on the first base that it trains on."""
        return self.on[self.trains[0]] if self.trains else None

    @property
    def mergeable(self) -> bool:
        """Whether merging keeps what was trained."""
        at = self.main
        if at is None or at.effect is None or at.merge.value is None:
            return False
        return at.merge.value <= min(MERGE_TOLERANCE, MAX_MERGE_LOSS * at.effect)

    @property
    def to_lora(self) -> bool:
        """Whether PEFT's conversion to LoRA keeps what was trained."""
        return any(error.within(MAX_CONVERSION_LOSS) for error in self.conversion.values())

    @property
    def lanes(self) -> bool:
        """Whether trials share a step on every task that it was tried on."""
        return bool(self.lanes_by_task) and all(
            "lanes" in riding.switches for riding in self.lanes_by_task.values()
        )

    @property
    def quantized(self) -> list[str]:
        """The kinds of quantised base that it trains on."""
        return [kind for kind, found in self.quantised.items() if found.works]

    @property
    def vllm(self) -> str | None:
        """How vLLM serves it: as it is saved, converted to LoRA, merged into the base, or not."""
        if self.plain.within(MAX_CONVERSION_LOSS):
            return "adapter"
        if self.to_lora:
            return "converted"
        return "merged" if self.mergeable else None

    def checkpoint_bytes(self, parameters: int) -> int | None:
        """Return the bytes to expect on disk where ``parameters`` numbers are trained.

        None for a method that saves more than its own tensors once or twice: frozen projections
        or indices that do not grow with them.
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
    """Leave out what is None, and fields (not a task or a rank) that are empty."""
    lean = {k: _drop_empty(v) if isinstance(v, dict) else v for k, v in value.items()}
    empty = {k for k, v in lean.items() if v is None or (k in _FIELDS and v in ({}, ()))}
    return {k: v for k, v in lean.items() if k not in empty}


_FIELDS = {
    f.name for of in (Capabilities, BaseResult, AcceleratorSupport) for f in dataclasses.fields(of)
}


class CapabilityRecord(NamedTuple):
    """What is known of an entry, and the versions that it was found with; None: not probed."""

    capabilities: Capabilities | None
    versions: dict[str, str | None]


def versions() -> dict[str, str | None]:
    """Return the installed versions that capabilities depend on; None for a missing package."""
    return {"bakeoff": bakeoff.__version__} | {p: _version(p) for p in PACKAGES}


@functools.cache
def _version(package: str) -> str | None:
    try:
        # what stands behind the plus names a build for a device, not another version
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def entry_hash(entry: MethodEntry) -> str:
    """Return a hash of what an entry does: its prose may change."""
    spec = {k: v for k, v in dataclasses.asdict(entry).items() if k not in DESCRIPTIVE_FIELDS}
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def load_shipped() -> dict[str, Any]:
    """Return the shipped record: ``versions``, and ``methods`` by name."""
    text = files("bakeoff.methods").joinpath("probed.json").read_text(encoding="utf-8")
    record: dict[str, Any] = json.loads(text)
    return record


def find_record(entry: MethodEntry, cache: Path, record: Mapping[str, Any]) -> CapabilityRecord:
    """Return what is known of ``entry``: the cache's with the installed versions, or the record's.

    ``cache`` is the user's cache folder, ``record`` what ``shipped`` returns.
    """
    own = _read_record(_cache_path(entry, cache))
    if own is not None:
        return CapabilityRecord(own, versions())
    value = record["methods"].get(entry.name)
    if value is None or value["entry"] != entry_hash(entry):
        return CapabilityRecord(None, versions())
    return CapabilityRecord(Capabilities.from_json(value), record["versions"])


def save_record(entry: MethodEntry, found: Capabilities, cache: Path) -> None:
    """Write what the probe found into the cache, for the installed versions."""
    path = _cache_path(entry, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    # renamed when whole: a reader beside it never sees half a record
    staging = path.with_suffix(".part")
    staging.write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
    staging.replace(path)


def is_cached(entry: MethodEntry, cache: Path) -> bool:
    """Tell whether the cache knows ``entry`` with the installed versions."""
    return _read_record(_cache_path(entry, cache)) is not None


def _cache_path(entry: MethodEntry, cache: Path) -> Path:
    canonical = json.dumps(versions(), sort_keys=True)
    installed = hashlib.sha256(canonical.encode()).hexdigest()[:12]
    return cache / CACHE_FOLDER / installed / f"{entry.name}-{entry_hash(entry)}.json"


def _read_record(path: Path) -> Capabilities | None:
    """Return a record, None where there is none or it is of another form."""
    try:
        return Capabilities.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def describe_version_difference(recorded: Mapping[str, str | None]) -> str | None:
    """Return how the installed versions differ from a record's, None where they do not.

    A package that is not installed says nothing against what was found with it.
    """
    own = {p: v for p, v in versions().items() if p in PACKAGES and v is not None}
    other = [f"{p} {recorded.get(p) or 'none'}, here {v}" for p, v in own.items()
             if recorded.get(p) != v]  # fmt: skip
    return "; ".join(other) or None
