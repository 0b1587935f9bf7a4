"""The bootstrap against hand-computed answers, and against what it must get right on average."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bakeoff.analysis.bootstrap import (
    Scores,
    SeedNoise,
    bootstrap,
    difference_effect,
    mean_effect,
    pool_seed_noise,
    standardised_deviations,
    variance_components,
)
from bakeoff.core.errors import BakeoffError


def scores(rows: object, seeds: tuple[int, ...] | None = None) -> Scores:
    values = np.array(rows, dtype=np.float64)
    return Scores(seeds or tuple(range(len(values))), values)


def test_item_variance_by_hand() -> None:
    effect = mean_effect(scores([[1, 1, 1, 0]]))
    # mean 3/4; squared deviations 3 * 1/16 + 9/16 = 3/4; / (n - 1) / n = 3/4 / 3 / 4
    assert effect.estimate == 0.75
    assert effect.standard_error == pytest.approx(np.sqrt(1 / 16))
    assert effect.uncertain_variance == 0.0
    assert variance_components([effect]).item_df == pytest.approx(3)
    assert not effect.seed_noise_known


def test_seed_variance_by_hand() -> None:
    """Between-seed variance matches a hand computation and is not understated."""
    # items agree, so all noise is the seeds': sample variance 1 of (1, 2, 3), over 3 seeds
    effect = mean_effect(scores(np.repeat([[1.0], [2.0], [3.0]], 50, axis=1)))
    assert effect.standard_error == pytest.approx(np.sqrt(1 / 3))
    assert effect.uncertain_variance == pytest.approx(1 / 3)
    assert effect.seed_df == pytest.approx(2)
    assert effect.seed_noise_known
    # resampling the three seeds as they are gives (S-1)/S of that variance
    rng = np.random.default_rng(0)
    naive = np.array([1.0, 2.0, 3.0])[rng.integers(0, 3, (200_000, 3))].mean(axis=1).var()
    assert naive == pytest.approx(effect.standard_error**2 * 2 / 3, rel=0.02)


def test_draws_have_the_effects_spread() -> None:
    rng = np.random.default_rng(1)
    # 30 seeds and 400 items: degrees of freedom are many, so the draws' variance is the effect's
    rows = rng.normal(size=(30, 1)) + rng.normal(size=(1, 400)) * 3 + rng.normal(size=(30, 400))
    effect = mean_effect(scores(rows))
    draws = bootstrap([effect], rng)[0]
    inflated = effect.uncertain_variance * effect.seed_df / (effect.seed_df - 2)
    variance = effect.standard_error**2 - effect.uncertain_variance + inflated
    assert draws.var() == pytest.approx(variance, rel=0.06)
    assert draws.mean() == pytest.approx(effect.estimate, abs=0.02)


def test_few_seeds_use_students_t() -> None:
    """Bootstrap draws from few seeds have the tails of Student's t."""
    effect = mean_effect(scores(np.repeat([[1.0], [2.0], [3.0]], 50, axis=1)))
    draws = bootstrap([effect], np.random.default_rng(2), 40_000)[0]
    found = np.quantile((draws - 2) / effect.standard_error, [0.025, 0.1, 0.9, 0.975])
    assert found == pytest.approx(stats.t.ppf([0.025, 0.1, 0.9, 0.975], 2), rel=0.06)


def test_item_noise_share() -> None:
    """Only part of the uncertainty comes from item noise."""
    # by hand, luck 3 and noise 1: 3 * (3 + 2) / (3 + 1); none without luck, all without noise
    assert SeedNoise(3, 3.0, 1.0, 2.0, 0.5).uncertain == pytest.approx(15 / 4)
    assert SeedNoise(3, 0.0, 1.0, 2.0, 0.5).uncertain == 0.0
    assert SeedNoise(3, 3.0, 0.0, 2.0, 0.5).uncertain == 3.0


def test_contenders_share_control_variance() -> None:
    """All contenders share the variance of their control."""
    rng = np.random.default_rng(6)
    control = scores(np.repeat(rng.normal(size=(3, 1)), 40, axis=1))
    others = [scores(np.repeat(rng.normal(size=(3, 1)), 40, axis=1)) for _ in range(3)]
    joint = standardised_deviations([difference_effect(o, control) for o in others], rng, 20_000)
    assert joint.std(axis=1) == pytest.approx(1, abs=0.02)
    assert np.corrcoef(joint)[np.triu_indices(3, 1)] == pytest.approx(0.5, abs=0.03)


def test_item_noise_counted_once() -> None:
    """Item noise within the seed means is not counted twice."""
    # no seed effect at all: the standard error is that of 3 * 400 independent values
    variances = []
    for seed in range(200):
        rows = np.random.default_rng(seed).normal(size=(3, 400))
        effect = mean_effect(scores(rows))
        variances.append(effect.standard_error**2)
    truth = 1 / 1200
    # truncation at zero leaves it on the safe side, the plain sum of margins would be at 2
    assert 1.0 <= np.mean(variances) / truth < 1.7


def test_seeds_are_paired_by_name() -> None:
    method = scores([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]], (1, 2, 9))
    control = scores([[1.0, 1.0], [0.0, 0.0], [0.1, 0.1]], (2, 1, 4))
    effect = difference_effect(method, control)
    assert effect.n_seeds == 2
    assert effect.estimate == 0.0
    assert effect.standard_error == 0.0


def test_unpaired_seeds_keep_noise() -> None:
    """Without common seeds, both sides keep their noise."""
    method = scores(np.repeat([[1.0], [3.0]], 10, axis=1), (1, 2))
    control = scores(np.repeat([[0.0], [0.0], [3.0]], 10, axis=1), (3, 4, 5))
    effect = difference_effect(method, control)
    assert effect.estimate == pytest.approx(1.0)
    assert len(effect.seeds) == 2
    assert effect.standard_error**2 == pytest.approx(2 / 2 + 3 / 3)
    assert effect.n_seeds == 2


def test_pooling_adjusts_variances() -> None:
    """Pooling raises a small variance estimate and leaves a large one as it is."""
    control = scores(np.zeros((3, 40)))
    lucky = difference_effect(scores(np.tile(np.arange(40.0) % 2, (3, 1))), control)
    noisy = difference_effect(scores(np.repeat([[0.0], [3.0], [6.0]], 40, axis=1)), control)
    same = difference_effect(control, control)
    raised, kept, still = pool_seed_noise([lucky, noisy, same])
    # sample variance 9 over 3 seeds = 3 for the noisy, 0 for the lucky: the mean is 1.5
    assert lucky.seeds[0].variance == 0.0
    assert raised.seeds[0].variance == pytest.approx(1.5)
    assert kept.seeds[0].variance == pytest.approx(3.0)
    assert still.standard_error == 0.0, "a difference that never varies gets no noise"
    # pooled from two at 1/4 correlation: 8/5 as sure as one; all above the pool just as sure as one
    assert raised.seed_df == pytest.approx(2 * 8 / 5)
    assert kept.seed_df == pytest.approx(3**2 / ((1.5**2 / 1.6 + 1.5**2) / 2))
    draws = bootstrap([raised], np.random.default_rng(0))[0]
    assert np.quantile(draws, 0.84) - np.quantile(draws, 0.16) > 1.5


def test_draws_independent_of_later_chunks() -> None:
    """Draws do not depend on the draws that follow them."""
    rng = np.random.default_rng(3)
    effects = [mean_effect(scores(rng.random((3, 25)))) for _ in range(4)]
    first = standardised_deviations(effects[:2], np.random.default_rng(7), 500)
    among = standardised_deviations(effects, np.random.default_rng(7), 500)[:2]
    np.testing.assert_allclose(first, among, atol=1e-12)


def test_chunks_cover_draws_reproducibly() -> None:
    """Chunks cover every draw, and the same seed gives identical bits."""
    effect = mean_effect(scores(np.random.default_rng(0).random((3, 900))))
    first = bootstrap([effect], np.random.default_rng(5))
    again = bootstrap([effect], np.random.default_rng(5))
    assert first.tobytes() == again.tobytes()
    assert np.unique(first).size > 9_900
    assert first.tobytes() != bootstrap([effect], np.random.default_rng(6)).tobytes()


@pytest.mark.parametrize("rows", [[[1.0, np.nan]], np.zeros((1, 0)), np.zeros((0, 3)), [1.0, 2.0]])
def test_unusable_scores_are_refused(rows: object) -> None:
    with pytest.raises(BakeoffError, match="scores-shape"):
        Scores((0,), np.array(rows, dtype=np.float64))


def test_other_items_are_refused() -> None:
    with pytest.raises(BakeoffError, match="scores-items"):
        difference_effect(scores(np.zeros((1, 3))), scores(np.zeros((1, 4))))
