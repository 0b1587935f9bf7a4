"""Whether a verdict depends on the output layer's learning rate."""

from __future__ import annotations

import math

import pytest

from bakeoff.analysis.compare import Comparison, Interval, Verdict
from bakeoff.analysis.head_sensitivity import Shift, measure_shift, verdict_turns


def compared(estimate: float, verdict: Verdict) -> Comparison:
    return Comparison(
        difference=Interval(estimate, estimate - 0.03, estimate + 0.03),
        p_value=0.001,
        p_adjusted=0.001,
        p_equivalence=0.5,
        verdict=verdict,
        n_seeds=3,
        seed_noise_known=True,
    )


def test_shift_is_paired() -> None:
    """The shift is the mean change of the paired difference, its error that of the mean."""
    shift = measure_shift(3.0, ([1, 1, 0, 1], [1, 1, 0, 1]), ([0, 0, 0, 1], [1, 1, 0, 1]))
    # differences 1 1 0 0 before, 0 0 0 0 after: changes -1 -1 0 0
    assert shift.shift == -0.5
    assert shift.error == pytest.approx(math.sqrt(4 * 0.25 / 3) / 2)
    assert Shift(**shift.to_json()) == shift


@pytest.mark.parametrize(
    ("verdict", "estimate", "shift", "noise", "turns"),
    [
        (Verdict.BETTER, 0.11, -0.13, 0.01, True),  # as on R8: LoRA's head at a larger rate
        (Verdict.BETTER, 0.11, -0.05, 0.01, False),  # still better
        (Verdict.BETTER, 0.11, -0.13, 0.05, False),  # within the noise of two trainings
        (Verdict.WORSE, -0.05, 0.08, 0.01, True),
        (Verdict.EQUIVALENT, 0.01, 0.05, 0.01, True),
        (Verdict.EQUIVALENT, 0.01, -0.025, 0.005, False),  # -1.5 points: inside the margin
        (Verdict.INCONCLUSIVE, 0.01, 0.2, 0.01, False),  # nothing was claimed
    ],
)
def test_verdict_turns(
    verdict: Verdict, estimate: float, shift: float, noise: float, turns: bool
) -> None:
    """A verdict turns where the shifted difference would contradict it, beyond the noise."""
    moved = Shift(3.0, shift, 0.005)
    assert verdict_turns(compared(estimate, verdict), moved, noise, margin=0.02) is turns
