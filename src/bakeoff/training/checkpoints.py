"""A trial between two segments: its tensors and what it has given so far, in one file.

Written by ``segment`` when a group stops at a rung, read by it when the group goes on. One
safetensors file a step, written beside and then renamed, so that half a state is never taken for
one; the trial's result so far rides in the file's metadata, with a hash of both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors
from safetensors.torch import save
from torch import Tensor

from bakeoff.core import files, trial_dir
from bakeoff.core.errors import EnvironmentProblem
from bakeoff.core.results import TrialResult

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


def keep(path: Path, state: State) -> None:
    """Write a state durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: Mapping[str, Tensor] = state.lane | {_HOOK + n: t for n, t in state.hook.items()}
    if state.unread is not None:
        tensors = {**tensors, _UNREAD: state.unread}
    held = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    result = json.dumps(state.result.to_json())
    written = trial_dir.checkpoint_digest(save(held, {_RESULT: result}), result)
    files.atomic_write_bytes(path, save(held, {_RESULT: result, "sha256": written}))
    files.fsync_path(path.parent.parent)


def read(path: Path, device: str) -> State:
    """Read a state, its tensors on ``device``.

    Raises:
        EnvironmentProblem: ``state-damaged``.
    """
    wrong = trial_dir.checkpoint_damage(path) if path.exists() else "it is gone"
    if wrong is not None:
        raise EnvironmentProblem(
            "state-damaged",
            f"The state {path.name} of trial {path.parent.parent.name} cannot be gone on from: "
            f"{wrong}.",
            "`bakeoff doctor STUDY --mend` has the trial start again.",
        )
    with safetensors.safe_open(path, "pt", device=device) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        result = TrialResult.from_json(json.loads(file.metadata()[_RESULT]))
    unread = tensors.pop(_UNREAD, None)
    hook = {n.removeprefix(_HOOK): t for n, t in tensors.items() if n.startswith(_HOOK)}
    lane = {n: t for n, t in tensors.items() if not n.startswith(_HOOK)}
    return State(lane, hook, result, unread)
