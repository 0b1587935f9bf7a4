"""Checkpoint of one trial at a step: tensors, and the result so far, in one safetensors file.

The file is replaced atomically, so a partial write is never read. The result is in the file's
metadata, with a checksum of tensors and result.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors
from safetensors.torch import save as serialize
from torch import Tensor

from bakeoff.core import files, trial_dir
from bakeoff.core.errors import EnvironmentProblem
from bakeoff.core.results import TrialResult

log = logging.getLogger(__name__)

# names inside the file; studies on disk have them
_RESULT = "result"
_HOOK = "hook/"
_PENDING = "unread"


class Checkpoint(NamedTuple):
    """What a trial resumes from: the tensors of its lane and its hook, and its result so far."""

    lane: dict[str, Tensor]
    hook: dict[str, Tensor]
    result: TrialResult
    pending_losses: Tensor | None = None
    """Training losses since the last validation ``[n]``, if the trial stopped between two."""


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: Mapping[str, Tensor] = checkpoint.lane | {
        _HOOK + n: t for n, t in checkpoint.hook.items()
    }
    if checkpoint.pending_losses is not None:
        tensors = {**tensors, _PENDING: checkpoint.pending_losses}
    on_cpu = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    result = json.dumps(checkpoint.result.to_json())
    # the digest covers the file without the digest, so the tensors are serialised twice
    digest = trial_dir.checkpoint_digest(serialize(on_cpu, {_RESULT: result}), result)
    files.atomic_write_bytes(path, serialize(on_cpu, {_RESULT: result, "sha256": digest}))
    files.fsync_path(path.parent.parent)
    log.info("trial %s: checkpoint saved at step %s", checkpoint.result.trial_id, path.stem)


def load(path: Path, device: str) -> Checkpoint:
    """Load a checkpoint with its tensors on ``device``.

    Raises:
        EnvironmentProblem: ``state-damaged``.
    """
    damage = trial_dir.checkpoint_damage(path) if path.exists() else "the file is missing"
    if damage is not None:
        raise EnvironmentProblem(
            "state-damaged",
            f"Cannot resume trial {path.parent.parent.name}: checkpoint {path.name}: {damage}.",
            "`bakeoff doctor STUDY --repair` removes it, and the trial starts over.",
        )
    with safetensors.safe_open(path, "pt", device=device) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        result = TrialResult.from_json(json.loads(file.metadata()[_RESULT]))
    pending = tensors.pop(_PENDING, None)
    hook = {n.removeprefix(_HOOK): t for n, t in tensors.items() if n.startswith(_HOOK)}
    lane = {n: t for n, t in tensors.items() if not n.startswith(_HOOK)}
    return Checkpoint(lane, hook, result, pending)
