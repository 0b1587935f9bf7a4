"""A trial between two segments: its tensors and what it has given so far, in one file.

Written by ``segment`` when a group stops at a rung, read by it when the group goes on. One
safetensors file a step, written beside and then renamed, so that half a state is never taken for
one; the trial's result so far rides in the file's metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors
from safetensors.torch import save
from torch import Tensor

from bakeoff.results import TrialResult

FOLDER = "state"
_RESULT = "result"
_HOOK = "hook/"
_UNREAD = "unread"


class State(NamedTuple):
    """What a trial goes on from: its lane's tensors, its hook's, and its result so far."""

    lane: dict[str, Tensor]
    hook: dict[str, Tensor]
    result: TrialResult
    unread: Tensor | None = None
    """Training losses since the last reading ``[n]``, of a trial that was stopped between two."""


def path_of(trials: Path, trial_id: str, step: int) -> Path:
    """Return where a trial's state after ``step`` steps lies."""
    return trials / trial_id / FOLDER / f"{step}.safetensors"


def keep(path: Path, state: State) -> None:
    """Write a state durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: Mapping[str, Tensor] = state.lane | {_HOOK + n: t for n, t in state.hook.items()}
    if state.unread is not None:
        tensors = {**tensors, _UNREAD: state.unread}
    held = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    raw = save(held, {_RESULT: json.dumps(state.result.to_json())})
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read(path: Path, device: str) -> State:
    """Read a state, its tensors on ``device``."""
    with safetensors.safe_open(path, "pt", device=device) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        result = TrialResult.from_json(json.loads(file.metadata()[_RESULT]))
    unread = tensors.pop(_UNREAD, None)
    hook = {n.removeprefix(_HOOK): t for n, t in tensors.items() if n.startswith(_HOOK)}
    lane = {n: t for n, t in tensors.items() if not n.startswith(_HOOK)}
    return State(lane, hook, result, unread)
