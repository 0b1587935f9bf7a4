"""The simulation of verdicts: what it counts, and that its worlds are what they say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from bakeoff.analysis.compare import Verdict

Script = Callable[[str], ModuleType]


def test_quick_prints_six_figures(script: Script) -> None:
    figures = script("verdict").quick(3, 0, 1)
    assert set(figures) == {
        "family_wise_error",
        "coverage",
        "equivalence_error",
        "power_gap",
        "end_to_end_false",
        "end_to_end_false_one_search",
    }
    assert all(0 <= figure <= 1 for figure in figures.values())


def test_studies_do_not_depend_on_their_task(script: Script) -> None:
    """The same studies in one task as in two; the designs see the same noise."""
    rounds = script("verdict_rounds")
    world = rounds.seeds_only(60, 1.0)
    row = rounds.Row("null", world, 2, most=8)
    whole = rounds._simulate_chunk(row, 0, 0, 4)
    assert whole == rounds._simulate_chunk(row, 0, 0, 2) + rounds._simulate_chunk(row, 0, 2, 2)
    assert row.looks == (5, 8)
    assert rounds.Row("null", world, 3).looks == (3, 5, 8, 12, 16)


def test_counts_by_hand(script: Script) -> None:
    """Points against fractions; the margin is 3 points, differences from 4 points are large."""
    rounds = script("verdict_rounds")
    outcomes = [
        rounds.Outcome(Verdict.BETTER, 0.01, 0.09, 5),  # true: 5
        rounds.Outcome(Verdict.EQUIVALENT, -0.02, 0.01, 8),  # true: 3, at the margin
        rounds.Outcome(Verdict.WORSE, -0.04, -0.01, 5),  # true: 0
        rounds.Outcome(Verdict.INCONCLUSIVE, -0.06, 0.0, 16),  # true: -4
    ]
    counts = rounds._count(outcomes, np.array([5.0, 3.0, 0.0, -4.0]))
    assert (counts.false, counts.covered, counts.false_equivalent) == (True, False, True)
    assert (counts.large, counts.found) == (2, 1)
    assert (counts.equivalent, counts.inconclusive) == (0.25, 0.25)
    assert (counts.replicates, counts.control_replicates) == (8.5, 16)
    right = rounds._count(outcomes[:1], np.array([5.0]))
    assert (right.false, right.covered) == (False, True)


def test_items_have_the_discordance_and_the_correlation_of_the_world(script: Script) -> None:
    world = script("verdict_world")
    rng = np.random.default_rng(0)
    groups = world.group_items(world.Groups(500, True, 0.3), 5000, rng)
    made = world.score_items(np.zeros((2, 4)), 5000, rng, groups)
    assert made.mean() == pytest.approx(0.66, abs=0.02)
    difference = made[0] - made[1]
    assert np.mean(difference != 0) == pytest.approx(0.15, abs=0.02)
    by_group = difference.reshape(4, 500, 10)
    pairs = by_group.sum(axis=2) ** 2 - (by_group**2).sum(axis=2)
    icc = pairs.sum() / (10 * 9) / 500 / 4 / difference.var()
    assert icc == pytest.approx(0.3, abs=0.06)


def test_search_in_each_replicate_chooses_near_the_best_rate(script: Script) -> None:
    """A replicate's value is seldom far below that at the best of the grid's rates."""
    world = script("verdict_world")
    rng = np.random.default_rng(0)
    case = world.World("quiet", 0.01, validation=100_000, shift=0.0)
    best = np.array([0.0, 0.5, -0.5])
    assert world.replicates(case, best, 50, rng) == pytest.approx(0.0, abs=0.1)
    assert world.one_search(case, best, 3, rng) == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize(("false", "n_missed"), [(0.03, 0), (0.07, 3)])
def test_missed_criteria_are_named(script: Script, false: float, n_missed: int) -> None:
    """False verdicts in 7 % of studies miss the row's limit, coverage and the mean."""
    rounds = script("verdict_rounds")
    summary = rounds.Summary(
        rounds.Row("null", rounds.WORLDS[0], 1),
        (0.0,),
        2000,
        rounds.Rate(false, 0.005),
        rounds.Rate(1 - false, 0.005),
        rounds.Rate(0.0, 0.001),
        None,
        *[0.0] * 5,
    )
    assert len(rounds.misses([summary])) == n_missed
    toothless = rounds.Row("teeth", rounds.seeds_only(480, 0.74), 3, design=rounds.NAIVE)
    assert len(rounds.misses([dataclasses.replace(summary, row=toothless)])) == 1
