"""Effective performance: hand-computed curves, scipy as oracle, known ratios, and what must not change them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from entk_app.effective import (
    Arm,
    compute_effective_performance,
    estimate_survival,
    resample_restricted_means,
    summarise_arm,
)
from entk_app.errors import DataError

#: Freireich et al. 1963, weeks in remission under 6-mercaptopurine and placebo: the textbook example of the estimate.
TREATED = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
RELAPSED = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]

#: A run's time, in twentieths so that there are ties, and whether it reached the target.
runs = st.lists(
    st.tuples(st.integers(1, 60).map(lambda n: n / 20), st.booleans()), min_size=1, max_size=8
).map(lambda rows: (np.array([row[0] for row in rows]), np.array([row[1] for row in rows])))


def test_curve_median_and_restricted_mean_are_those_computed_by_hand():
    curve = estimate_survival([8.0, 5.0, 3.0, 5.0], [False, True, True, False])
    np.testing.assert_allclose(curve.times, [3, 5, 8])
    np.testing.assert_allclose(curve.survival, [0.75, 0.5, 0.5])
    assert (curve.median, curve.horizon) == (5.0, 8.0)
    assert [curve.find_share(time) for time in (0.0, 2.9, 3.0, 4.0, 5.0, 9.0)] == [1.0, 1.0, 0.75, 0.75, 0.5, 0.5]
    assert curve.compute_restricted_mean(8.0) == pytest.approx(3.0 + 2.0 * 0.75 + 3.0 * 0.5)
    assert curve.compute_restricted_mean(4.0) == pytest.approx(3.0 + 0.75)
    assert curve.compute_restricted_mean(2.0) == 2.0


def test_the_textbook_example_is_as_in_the_textbooks():
    curve = estimate_survival(TREATED, RELAPSED)
    # Kalbfleisch and Prentice, table 1.1; Cox and Oakes, table 4.1.
    known = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
    assert {time: round(curve.find_share(time), 3) for time in known} == known
    assert curve.median == 23
    found = compute_effective_performance(PLACEBO, np.ones(21), TREATED, RELAPSED)
    # Relapses and weeks: 21 in 182, 9 in 359; log-rank chi-squared 16.79.
    assert found.rate_ratio == pytest.approx((9 / 359) / (21 / 182))
    assert found.logrank_p == pytest.approx(stats.chi2.sf(16.793, 1), rel=1e-3)
    # The treated are the slower ones, and not all had relapsed.
    assert found.qualifier == "at most" and found.interval[1] < 1.0 and found.rate_interval[1] < 1.0


def test_a_run_that_is_censored_when_another_reaches_it_was_still_at_risk():
    assert estimate_survival([5.0, 5.0], [True, False]).survival.tolist() == [0.5]


def test_an_arm_that_has_all_reached_it_is_known_for_ever():
    curve = estimate_survival([1.0, 2.0, 6.0], [True, True, True])
    assert math.isinf(curve.horizon)
    assert curve.compute_restricted_mean(100.0) == pytest.approx(3.0)


@given(runs, st.floats(0.1, 5.0))
def test_the_restricted_mean_is_the_area_below_the_curve(arm, horizon):
    curve = estimate_survival(*arm)
    edges = [time for time in curve.times if time < horizon]
    area = sum(
        integrate.quad(curve.find_share, low, high)[0]
        for low, high in zip([0.0, *edges], [*edges, horizon], strict=True)
    )
    assert curve.compute_restricted_mean(horizon) == pytest.approx(area, rel=1e-6)
    if arm[1].all():
        assert curve.compute_restricted_mean(horizon) == pytest.approx(np.minimum(arm[0], horizon).mean())


@given(runs, st.floats(0.1, 5.0))
@settings(max_examples=30)
def test_resampled_means_are_those_of_scipy_on_the_resampled_runs(arm, horizon):
    times, reached = arm
    found = resample_restricted_means(Arm("arm", times, reached), horizon, 5, np.random.default_rng(3))
    order = np.lexsort((~reached, times))
    n = len(times)
    for mean, counts in zip(found, np.random.default_rng(3).multinomial(n, np.full(n, 1 / n), size=5), strict=True):
        rows = np.repeat(order, counts)
        curve = estimate_survival(times[rows], reached[rows])
        assert mean == pytest.approx(curve.compute_restricted_mean(horizon))


def test_a_summary_tells_what_was_seen_of_an_arm():
    found = summarise_arm(Arm("cvae", np.array([2.0, 4.0, 6.0]), np.array([True, False, False])))
    assert (found.n_runs, found.n_reached, found.total_time, found.horizon) == (3, 1, 12.0, 6.0)
    assert (found.median, found.mean_by_rate) == (None, 12.0)
    assert found.restricted_mean == pytest.approx(2.0 + 4.0 * 2 / 3)
    assert summarise_arm(Arm("none", np.array([2.0]), np.array([False]))).mean_by_rate is None


# The ratio.


def test_ratio_and_rates_are_those_computed_by_hand():
    found = compute_effective_performance([4.0, 8.0], [True, False], [2.0, 3.0], [True, True])
    # The steered arm is known for ever, the control to 8.
    assert (found.horizon, found.control_restricted_mean, found.steered_restricted_mean) == (8.0, 6.0, 2.5)
    assert (found.ratio, found.qualifier) == (2.4, "at least")
    assert found.rate_ratio == pytest.approx((2 / 5) / (1 / 12))
    # Of 2 of 3 events by Clopper and Pearson, from beta quantiles.
    shares = np.array([stats.beta.ppf(0.025, 2, 2), stats.beta.ppf(0.975, 3, 1)])
    assert found.rate_interval == pytest.approx(shares / (1 - shares) * 12 / 5)
    assert (found.n_control, found.n_control_reached, found.n_steered, found.n_steered_reached) == (2, 1, 2, 2)


@pytest.mark.parametrize(
    ("control", "steered", "horizon", "ratio", "qualifier"),
    [
        # All reached it: means as they are, also of times beyond the other arm's last.
        (([10.0, 30.0], [1, 1]), ([1.0, 3.0], [1, 1]), 30.0, 10.0, "exact"),
        (([10.0, 30.0], [1, 0]), ([1.0, 3.0], [1, 1]), 30.0, 10.0, "at least"),
        (([1.0, 3.0], [1, 1]), ([10.0, 30.0], [1, 0]), 30.0, 0.1, "at most"),
        # Neither is known beyond its last: the shorter of both.
        (([10.0, 30.0], [1, 0]), ([2.0, 20.0], [1, 0]), 20.0, 15.0 / 11.0, "truncated"),
        # No run of the control: its whole time, at least.
        (([40.0, 40.0], [0, 0]), ([4.0, 4.0], [1, 1]), 40.0, 10.0, "at least"),
        # The last is censored with others at one time.
        (([9.0, 9.0], [1, 0]), ([3.0, 3.0], [1, 1]), 9.0, 3.0, "at least"),
    ],
)
def test_the_horizon_is_as_far_as_both_are_known_and_the_ratio_says_what_it_is(
    control, steered, horizon, ratio, qualifier
):
    found = compute_effective_performance(*control, *steered)
    assert (found.horizon, found.qualifier) == (horizon, qualifier)
    assert found.ratio == pytest.approx(ratio)


def test_where_no_run_of_the_control_reached_it_the_rates_have_a_lower_bound_only():
    found = compute_effective_performance([50.0] * 4, [False] * 4, [2.0] * 3, [True] * 3)
    low = 0.025 ** (1 / 3)
    assert math.isinf(found.rate_ratio)
    assert found.rate_interval == (pytest.approx(low / (1 - low) * 200 / 6), math.inf)
    assert found.qualifier == "at least" and found.ratio == 25.0


def test_where_none_reached_it_nothing_is_said():
    found = compute_effective_performance([5.0, 6.0], [False] * 2, [7.0, 8.0], [False] * 2)
    assert (found.ratio, found.interval, found.rate_ratio, found.rate_interval, found.logrank_p) == (None,) * 5
    # Likewise where the only one that did is beyond what is known of the other arm.
    late = compute_effective_performance([5.0, 5.0], [False] * 2, [7.0, 8.0], [True] * 2)
    assert (late.ratio, late.interval) == (None, None)


def test_a_single_run_has_a_ratio_and_no_interval():
    found = compute_effective_performance([12.0], [True], [3.0, 3.0], [True, True])
    assert (found.ratio, found.interval) == (4.0, None)
    assert found.rate_interval[0] < 4.0 < found.rate_interval[1]


def test_intervals_cover_a_known_ratio_as_often_as_they_say():
    generator = np.random.default_rng(20)
    covered = np.zeros(2, dtype=int)
    narrow = 0
    for _ in range(60):
        control, steered = generator.exponential(4.0, 40), generator.exponential(1.0, 40)
        found = compute_effective_performance(control, np.ones(40), steered, np.ones(40), n_resamples=400)
        covered += [low <= 4.0 <= high for low, high in (found.interval, found.rate_interval)]
        narrow += found.interval[0] > 1.5 and found.interval[1] < 12.0
    # 95 % of 60 are 57: fewer than 51 have a probability below one in a thousand.
    assert (covered >= 51).all()
    # Nor are they as wide as that they could not miss it.
    assert narrow > 50


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_interval_of_uncensored_runs_is_that_of_scipys_bootstrap_of_means(confidence):
    generator = np.random.default_rng(8)
    control, steered = generator.exponential(4.0, 12), generator.exponential(1.0, 9)
    expected = stats.bootstrap(
        (control, steered),
        lambda above, below, axis: above.mean(axis=axis) / below.mean(axis=axis),
        confidence_level=confidence,
        n_resamples=20_000,
        method="percentile",
        random_state=generator,
    ).confidence_interval
    found = compute_effective_performance(
        control, np.ones(12), steered, np.ones(9), confidence=confidence, n_resamples=20_000
    )
    assert found.interval == pytest.approx(tuple(expected), rel=0.04)
    assert found.rate_interval[0] < found.interval[0] and found.interval[1] < found.rate_interval[1]


def test_censored_runs_count_for_the_rates():
    generator = np.random.default_rng(4)
    times = generator.exponential(10.0, 400)
    steered = generator.exponential(2.0, 400)
    found = compute_effective_performance(
        np.minimum(times, 5.0), times <= 5.0, np.minimum(steered, 5.0), steered <= 5.0, n_resamples=200
    )
    # A control cut off at half of its mean: those that reached it alone took a third of what they would have.
    assert found.rate_ratio == pytest.approx(5.0, rel=0.2)
    assert times[times <= 5.0].mean() / steered[steered <= 5.0].mean() < 2.0
    expected = (10 * (1 - math.exp(-0.5))) / (2 * (1 - math.exp(-2.5)))
    assert found.ratio == pytest.approx(expected, rel=0.1) and found.qualifier == "truncated"


@given(runs, runs, st.sampled_from([0.001, 0.5, 3.0, 1e4]))
@settings(max_examples=40, deadline=None)
def test_the_unit_of_time_does_not_matter(control, steered, factor):
    def compute(scale):
        return compute_effective_performance(
            scale * control[0], control[1], scale * steered[0], steered[1], n_resamples=50
        )

    one, other = compute(1.0), compute(factor)
    assert other.horizon == pytest.approx(factor * one.horizon)
    for name in ("ratio", "interval", "rate_ratio", "rate_interval", "logrank_p"):
        before, after = getattr(one, name), getattr(other, name)
        assert (before is None) == (after is None)
        assert before is None or after == pytest.approx(before, rel=1e-9), name
    assert one.qualifier == other.qualifier


@given(runs, runs)
@settings(max_examples=40, deadline=None)
def test_arms_that_change_places_invert_the_ratio(control, steered):
    one = compute_effective_performance(*control, *steered, n_resamples=50)
    other = compute_effective_performance(*steered, *control, n_resamples=50)
    swapped = {"exact": "exact", "truncated": "truncated", "at least": "at most", "at most": "at least"}
    assert (other.horizon, other.qualifier) == (one.horizon, swapped[one.qualifier])
    assert (other.ratio is None) == (one.ratio is None)
    if one.ratio is not None:
        assert other.ratio == pytest.approx(1.0 / one.ratio)
    if one.rate_ratio is not None:
        invert = {0.0: math.inf, math.inf: 0.0}
        expected = [invert.get(value, 1.0 / (value or 1.0)) for value in (one.rate_ratio, *one.rate_interval[::-1])]
        assert [other.rate_ratio, *other.rate_interval] == pytest.approx(expected)


def test_equal_seeds_give_equal_intervals_and_others_nearly_equal_ones():
    generator = np.random.default_rng(2)
    arms = (generator.exponential(4.0, 9), np.ones(9), generator.exponential(1.0, 9), np.ones(9))
    one, same, other = (compute_effective_performance(*arms, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.interval != other.interval and one.interval == pytest.approx(other.interval, rel=0.1)
    assert replace(other, seed=1, interval=one.interval) == one


@pytest.mark.parametrize(
    ("times", "reached", "words"),
    [
        ([], [], "one of each a run"),
        ([1.0, 2.0], [True], "one of each a run"),
        ([[1.0]], [[True]], "one of each a run"),
        ([0.0], [True], "above 0"),
        ([-1.0], [True], "above 0"),
        ([math.nan], [True], "above 0"),
        ([math.inf], [False], "above 0"),
    ],
)
def test_what_is_no_time_is_refused(times, reached, words):
    with pytest.raises(DataError, match=words):
        compute_effective_performance([1.0], [True], times, reached)
