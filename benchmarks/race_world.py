"""Studies made up from 63 published runs, for ``race.py``: who competes, curves, noise, costs.

``published_runs.csv`` holds what PEFT's ``method_comparison/MetaMathQA`` published (repository
huggingface/peft, commit 5d602fdb, 2026-08-21; Llama-3.2-3B, 5000 steps, one seed): test accuracy,
mean training loss of the 250 steps up to five of the 5000 (one pass over the data, so each is a
loss on examples not seen before), peak memory, time of all steps, parameters, file size.

A simulated study is LoRA r32 as the control and 7 (or 23) runs drawn from the file:

- *quality*: accuracy and final loss of the run, taken together, are those of the method at its
  best learning rate. Costs are the run's.
- *curve*: at a rung the method differs from the control by its final difference plus a move, the
  10 % and the 30 % one taken together from a run at most ``NEAR`` places of accuracy away. So who
  starts slowly and ends well occurs as often as published. Rank correlation of the loss at 10 %
  with accuracy, model against published, is printed.
- *settings*: five rates half a decade apart (``plan.GRID_STEP``); the best rate lies off their
  middle with SD ``OFFSET`` (best rates differ up to 18 times between LoRA's variants). Accuracy
  falls by 2 points at ``HALF_WIDTH`` decades, to the power ``BELOW`` or ``ABOVE`` beyond (read
  from the 13 rates of five methods of arXiv 2602.04998); past ``CLIFF`` points above it diverges.
  A point of accuracy is ``SLOPE`` nats (least squares over the 51 runs above 30 %). Early the best
  rate is higher: 3.1 times for 79 times fewer examples (same paper), ``SHIFT`` decades a decade.
- *noise*: a seed's SD in points (same paper: 0.40 near the optimum), in nats by ``SLOPE``, half of
  its variance from rung to rung the same; items correlate (``ITEM_SD``, ``PAIR_SD``: from how much
  one run's, and the difference of two runs', 250-step means scatter), 300 of them. Replicates have
  the same items and methods, and a noise of their own.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bakeoff.study.planning import racing

RUNS = Path(__file__).with_name("published_runs.csv")
CONTROL = "lora/rank32"
STEPS, RUNGS = 5000, (500,)
READ = (250, 500, 750, 1500, STEPS)
"""Steps of which a loss was published."""
GRID = np.linspace(-1.0, 1.0, 5)
NEAR = 4
OFFSET = 0.36
HALF_WIDTH, BELOW, ABOVE, CLIFF = 0.69, 2.5, 5.0, 40.0
SLOPE = 0.00836
SHIFT = math.log10(3.1) / math.log10(79)
SEED_SD = 0.40
ITEMS, ITEM_SD, PAIR_SD = 300, 0.24, 0.05
AXES = {
    "memory": "memory_gb",
    "time": "step_seconds",
    "parameters": "parameters",
    "file": "file_bytes",
}

Array = NDArray[np.float64]


class Published(NamedTuple):
    """The published runs, best accuracy first; ``losses`` is ``[runs, steps of READ]`` in nats."""

    names: list[str]
    accuracy: Array
    losses: Array
    costs: list[dict[str, float]]

    @property
    def control(self) -> int:
        """The place of LoRA r32."""
        return self.names.index(CONTROL)


@dataclass(frozen=True)
class World:
    """From what studies are drawn: the best ``top`` runs, gaps to the control times ``gaps``."""

    name: str
    top: int = 63
    gaps: float = 1.0
    axes: tuple[str, ...] = ("memory", "time", "parameters")
    methods: int = 8
    seed_sd: float = SEED_SD
    shift: float = SHIFT
    items: int = ITEMS
    rungs: tuple[int, ...] = RUNGS
    keep: tuple[int, ...] = racing.KEEP
    replicates: int = 3
    late: bool = False
    """Whether moves come from any run, not from one of like quality: slow starters everywhere."""


class Study(NamedTuple):
    """A simulated study: ``points`` ``[methods]``; ``means`` ``[rungs + end, methods, rates]``."""

    names: list[str]
    points: Array
    drops: Array
    means: Array
    costs: dict[str, dict[str, float]]


def published(path: Path = RUNS) -> Published:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return Published(
        [r["run"] for r in rows],
        np.array([float(r["accuracy"]) for r in rows]) * 100,
        np.array([[float(r[f"loss_{step}"]) for step in READ] for r in rows]),
        [{axis: float(r[column]) for axis, column in AXES.items()} for r in rows],
    )


def draw(world: World, runs: Published, rng: np.random.Generator) -> Study:
    """Draw a study: who competes, its settings' quality and mean curves."""
    control = runs.control
    others = [i for i in range(world.top) if i != control]
    members = [control, *rng.choice(others, world.methods - 1, replace=False)]
    points = runs.accuracy[control] + world.gaps * (runs.accuracy[members] - runs.accuracy[control])
    best = mean_losses(world, runs, members, rng)
    decades = GRID - rng.normal(0.0, OFFSET, len(members))[:, None]
    early = [world.shift * math.log10(STEPS / step) for step in (*world.rungs, STEPS)]
    falls = np.array([drop(decades - shift) for shift in early])
    # what diverges does so early and for good
    falls[:, falls.max(axis=0) > CLIFF] = math.inf
    names = [f"{m}:{runs.names[i]}" for m, i in enumerate(members)]
    costs = {
        n: {a: runs.costs[i][a] for a in world.axes} for n, i in zip(names, members, strict=True)
    }
    return Study(names, points, falls[-1], best[:, :, None] + SLOPE * falls, costs)


def mean_losses(
    world: World, runs: Published, members: Sequence[int], rng: np.random.Generator
) -> Array:
    """Return the loss at each rung and the end at the best rate, ``[rungs + end, methods]``."""
    losses = runs.losses[:, [READ.index(step) for step in (*world.rungs, STEPS)]]
    own = losses[runs.control]
    gaps = losses - own
    moves = gaps - gaps[:, -1:]
    found = [own]
    for member in members[1:]:
        mover = neighbour(world, runs.control, member, rng)
        found.append(own + world.gaps * gaps[member, -1] + moves[mover])
    return np.array(found).T


def neighbour(world: World, control: int, member: int, rng: np.random.Generator) -> int:
    """Return the run that a method's move is taken from."""
    low, high = (0, 62) if world.late else (member - NEAR, member + NEAR)
    near = [i for i in range(max(0, low), min(world.top - 1, high) + 1) if i != control]
    return int(rng.choice(near))


def drop(decades: Array) -> Array:
    """Return the points lost at ``decades`` from the best rate; above it the cliff is steep."""
    power = np.where(decades > 0, ABOVE, BELOW)
    return np.asarray(2.0 * (np.abs(decades) / HALF_WIDTH) ** power)


def standings(
    study: Study, world: World, rng: np.random.Generator
) -> list[dict[str, racing.RungStanding]]:
    """Return for each rung and the end the trials' per-item losses, by trial id."""
    items = rng.normal(0.0, ITEM_SD, world.items)
    shape, luck_sd = study.drops.shape, world.seed_sd * SLOPE / math.sqrt(2)
    found: list[dict[str, racing.RungStanding]] = [{} for _ in study.means]
    for seed in range(world.replicates):
        luck = rng.normal(0.0, luck_sd, (len(study.means) + 1, *shape))
        for at, means, own in zip(found, study.means, luck[1:], strict=True):
            noise = rng.normal(0.0, PAIR_SD / math.sqrt(2), (*shape, world.items))
            losses = (means + luck[0] + own)[..., None] + items + noise
            at.update((s.trial_id, s) for s in _trials(study, losses, seed))
    return found


def _trials(study: Study, losses: Array, seed: int) -> Iterator[racing.RungStanding]:
    for m, method in enumerate(study.names):
        for s in range(len(GRID)):
            there = losses[m, s] if np.isfinite(losses[m, s, 0]) else None
            rate = 10.0 ** GRID[s]
            yield racing.RungStanding(f"{seed}/{m}/{s}", method, seed, rate, there)
