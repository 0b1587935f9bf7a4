"""Checkpoint of one trial at a step: tensors, and the result so far, in one safetensors file.

The file is replaced atomically, so a partial write is never read. The result is in the file's
metadata, with a checksum of tensors and result.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from bakeoff.core import files, trial_dir
from bakeoff.core.errors import EnvironmentProblem
from bakeoff.core.results import TrialResult

THREADS = 8
"""Maximum number of checkpoints that are written or read at once."""
BYTES_AT_ONCE = 1 << 30
"""Maximum bytes of these checkpoints together; one that is larger is written or read alone."""

Item = TypeVar("Item")
Done = TypeVar("Done")

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


def save_all(checkpoints: Iterable[tuple[Path, Checkpoint]]) -> None:
    """Write checkpoints of one study durably to their paths, several at once.

    ``checkpoints`` is consumed as they are written, so that few copies exist at once.
    """
    folders = set()
    for path in _map_in_threads(lambda item: save(*item), checkpoints, _bytes_in_memory):
        folders.add(path.parent.parent.parent)
    for folder in folders:
        files.fsync_path(folder)


def save(path: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint durably; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in _named(checkpoint).items()}
    metadata = {
        _RESULT: json.dumps(checkpoint.result.to_json()),
        "sha256": trial_dir.NO_DIGEST,
    }
    with files.atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)
        trial_dir.write_checkpoint_digest(temporary)
    files.fsync_path(path.parent.parent)
    log.info("trial %s: checkpoint saved at step %s", checkpoint.result.trial_id, path.stem)
    return path


def load_all(paths: Iterable[Path], device: str) -> Iterator[Checkpoint]:
    """Yield the checkpoints of ``paths`` in order, several of which are read at once.

    Raises:
        EnvironmentProblem: ``state-damaged``.
    """
    yield from _map_in_threads(lambda path: load(path, device), paths, _bytes_on_disk)


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


def _map_in_threads(
    function: Callable[[Item], Done], items: Iterable[Item], size: Callable[[Item], int]
) -> Iterator[Done]:
    """Yield ``function(item)`` in order, of several items at once.

    Hashing, copying and syncing release Python's lock. ``size`` is an item's bytes: many large
    items at once would not fit in memory. After an error no further item is begun.
    """
    running: deque[Future[Done]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for item in items:
            limit = max(1, min(THREADS, BYTES_AT_ONCE // max(1, size(item))))
            while len(running) >= limit:
                yield running.popleft().result()
            running.append(pool.submit(function, item))
        for done in running:
            yield done.result()


def _named(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by their names in the file."""
    hook = {_HOOK + name: t for name, t in checkpoint.hook.items()}
    pending = checkpoint.pending_losses
    return {**checkpoint.lane, **hook, **({} if pending is None else {_PENDING: pending})}


def _bytes_in_memory(item: tuple[Path, Checkpoint]) -> int:
    return sum(t.nbytes for t in _named(item[1]).values())


def _bytes_on_disk(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
