"""Effective performance: how many times less simulation an arm needs than its control, with censored runs (pure).

An arm is a set of runs that differ by their seeds only. Each run gives one time: at which it first reached what is
looked for, or, right-censored, how long it had gone on without.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from entk_app.errors import DataError

#: Survival is a product of fractions: a half may come out as a hair more.
_ROUNDING = 1e-12

#: What a ratio of restricted means says of the ratio of the means: the same, a bound of it, or neither of both.
Qualifier = Literal["exact", "at least", "at most", "truncated"]


@dataclass(frozen=True)
class Arm:
    """The times of the runs of one arm.

    Attributes
    ----------
    label : str
    times : array, shape (n_runs,)
        More than 0, in one unit: until it was reached, or until the run was last looked at.
    reached : array of bool, shape (n_runs,)
        False: right-censored.

    Raises
    ------
    DataError
        There is no run, the shapes differ, or a time is not a number above 0.
    """

    label: str
    times: NDArray[np.float64]
    reached: NDArray[np.bool_]

    def __post_init__(self) -> None:
        times, reached = np.asarray(self.times, dtype=np.float64), np.asarray(self.reached, dtype=bool)
        if times.ndim != 1 or times.shape != reached.shape or not len(times):
            raise DataError(f"{self.label}: {times.shape} times and {reached.shape} marks: give one of each a run")
        if not (np.isfinite(times).all() and (times > 0).all()):
            raise DataError(f"{self.label}: the times {times.tolist()} must be numbers above 0")
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "reached", reached)

    def __len__(self) -> int:
        return len(self.times)

    @property
    def n_reached(self) -> int:
        return int(self.reached.sum())

    @property
    def total_time(self) -> float:
        return float(self.times.sum())


@dataclass(frozen=True)
class SurvivalCurve:
    """The share of runs that have not reached it, by time: 1 at first, then a step at each of ``times``.

    Attributes
    ----------
    times : array, shape (n_steps,)
        All distinct times, censored ones included, in order.
    survival : array, shape (n_steps,)
        From that time on.
    """

    times: NDArray[np.float64]
    survival: NDArray[np.float64]

    @property
    def horizon(self) -> float:
        """How far it is known: to the last time, or for ever where all have reached it by then."""
        return math.inf if self.survival[-1] == 0.0 else float(self.times[-1])

    @property
    def median(self) -> float | None:
        """When half of the runs had reached it; None where fewer ever did."""
        half = np.flatnonzero(self.survival <= 0.5 + _ROUNDING)
        return float(self.times[half[0]]) if len(half) else None

    def find_share(self, time: float) -> float:
        """The share that has not reached it by this time."""
        place = int(np.searchsorted(self.times, time, side="right"))
        return 1.0 if place == 0 else float(self.survival[place - 1])

    def compute_restricted_mean(self, horizon: float) -> float:
        r"""Mean of the time or of the horizon, whichever is less: the area below the curve up to there [1]_.

        .. math:: \mu(\tau) = E[\min(T, \tau)] = \int_0^\tau S(t)\,dt

        References
        ----------
        .. [1] P. Royston, M. Parmar (2013), Restricted mean survival time: an alternative to the hazard ratio for the
           design and analysis of randomized trials with a time-to-event outcome, doi:10.1186/1471-2288-13-152
        """
        edges = np.minimum(np.concatenate([[0.0], self.times, [max(horizon, self.times[-1])]]), horizon)
        return float(np.diff(edges) @ np.concatenate([[1.0], self.survival]))


@dataclass(frozen=True)
class ArmSummary:
    """One arm in numbers, in the unit of its times.

    Attributes
    ----------
    median : float or None
        None: fewer than half of its runs reached it.
    restricted_mean, horizon : float
        Mean up to the horizon, which is as far as the arm alone is known (its largest time).
    mean_by_rate : float or None
        Total time over the number of runs that reached it; None where none did.
    """

    label: str
    n_runs: int
    n_reached: int
    total_time: float
    median: float | None
    restricted_mean: float
    horizon: float
    mean_by_rate: float | None


@dataclass(frozen=True)
class EffectivePerformance:
    """How many times less an arm needs than its control.

    Attributes
    ----------
    horizon : float
        Up to which both arms are known.
    control_restricted_mean, steered_restricted_mean : float
    ratio : float or None
        Of the control's over the steered arm's: above 1 the steering helps. None where no run of both reached it by
        the horizon: nothing is known.
    qualifier : str
        exact: it is the ratio of the mean times; at least, at most: this is a bound of it, as only the control's (the
        steered arm's) runs had not all reached it by the horizon; truncated: neither arm's had, the ratio is of the
        times up to the horizon and says nothing of what is beyond.
    interval : (float, float) or None
        Of ``ratio``, from resampled runs; None where an arm has a single run, or there is no ratio.
    rate_ratio : float or None
        Of the steered arm's rate over the control's; infinite where no run of the control reached it, None where
        none of both did.
    rate_interval : (float, float) or None
        Exact for exponential times.
    logrank_p : float or None
        Probability of curves as different as these where there is no difference; None where none reached it.
    confidence : float
        Of both intervals.
    """

    n_control: int
    n_control_reached: int
    n_steered: int
    n_steered_reached: int
    horizon: float
    control_restricted_mean: float
    steered_restricted_mean: float
    ratio: float | None
    qualifier: Qualifier
    interval: tuple[float, float] | None
    rate_ratio: float | None
    rate_interval: tuple[float, float] | None
    logrank_p: float | None
    confidence: float
    n_resamples: int
    seed: int


def estimate_survival(times: ArrayLike, reached: ArrayLike) -> SurvivalCurve:
    r"""The product-limit estimate of Kaplan and Meier [1]_, by scipy.

    .. math:: S(t) = \prod_{t_i \le t} \left(1 - \frac{d_i}{n_i}\right)

    with :math:`d_i` runs that reached it at :math:`t_i`, of :math:`n_i` that had neither reached it nor been censored
    before. At equal times a run that reached it counts as before one that was censored.

    Parameters
    ----------
    times : array, shape (n_runs,)
    reached : array of bool, shape (n_runs,)

    Raises
    ------
    DataError
        As :class:`Arm`.

    References
    ----------
    .. [1] E. L. Kaplan, P. Meier (1958), Nonparametric estimation from incomplete observations,
       doi:10.1080/01621459.1958.10501452
    """
    return _estimate(Arm("runs", np.asarray(times), np.asarray(reached)))


def _estimate(arm: Arm) -> SurvivalCurve:
    from scipy.stats import ecdf

    found = ecdf(_as_censored(arm)).sf
    return SurvivalCurve(np.asarray(found.quantiles), np.asarray(found.probabilities))


def _as_censored(arm: Arm) -> Any:
    from scipy.stats import CensoredData

    return CensoredData.right_censored(arm.times, ~arm.reached)


def summarise_arm(arm: Arm) -> ArmSummary:
    """One arm by itself."""
    curve = _estimate(arm)
    horizon = float(arm.times.max())
    return ArmSummary(
        label=arm.label,
        n_runs=len(arm),
        n_reached=arm.n_reached,
        total_time=arm.total_time,
        median=curve.median,
        restricted_mean=curve.compute_restricted_mean(horizon),
        horizon=horizon,
        mean_by_rate=arm.total_time / arm.n_reached if arm.n_reached else None,
    )


def compute_effective_performance(
    control_times: ArrayLike,
    control_reached: ArrayLike,
    steered_times: ArrayLike,
    steered_reached: ArrayLike,
    *,
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 1,
) -> EffectivePerformance:
    r"""Compare an arm with its control.

    The ratio is that of the restricted means up to a common horizon,

    .. math:: \rho = \mu_\mathrm{control}(\tau) / \mu_\mathrm{steered}(\tau)

    where :math:`\tau` is the shorter of the two times up to which the arms are known: an arm's largest time where that
    is censored, without limit where all of its runs have reached it by then (its curve stays 0). Its interval is the
    percentile bootstrap [1]_ over runs, within each arm; a resampled curve that ends before the horizon goes on as it
    ended [2]_.

    The ratio of rates takes times as exponential: an arm's rate is estimated by the number of runs that reached it over
    the time of all, censored ones included. Given how many of both arms reached it, those of the steered arm are
    binomial, which gives its interval (Clopper and Pearson), also for few runs and for none.

    Parameters
    ----------
    control_times, steered_times : arrays, shapes (n_control,), (n_steered,)
        In one unit: of aggregate simulated time, or frames.
    control_reached, steered_reached : arrays of bool, likewise
        False: right-censored.
    confidence : float
        Of the intervals.
    n_resamples : int
    seed : int
        Of the resampling.

    Raises
    ------
    DataError
        As :class:`Arm`.

    References
    ----------
    .. [1] B. Efron (1981), Censored data and the bootstrap, doi:10.1080/01621459.1981.10477650
    .. [2] R. D. Gill (1980), Censoring and stochastic integrals, doi:10.1111/j.1467-9574.1980.tb00692.x
    """
    control = Arm("control", np.asarray(control_times), np.asarray(control_reached))
    steered = Arm("steered", np.asarray(steered_times), np.asarray(steered_reached))
    curves = (_estimate(control), _estimate(steered))
    horizon = min(curve.horizon for curve in curves)
    if math.isinf(horizon):
        horizon = float(max(control.times.max(), steered.times.max()))
    means = [curve.compute_restricted_mean(horizon) for curve in curves]
    shares = [curve.find_share(horizon) for curve in curves]
    is_known = min(shares) < 1.0
    rate_ratio, rate_interval = _compare_rates(control, steered, confidence)
    return EffectivePerformance(
        n_control=len(control),
        n_control_reached=control.n_reached,
        n_steered=len(steered),
        n_steered_reached=steered.n_reached,
        horizon=horizon,
        control_restricted_mean=means[0],
        steered_restricted_mean=means[1],
        ratio=means[0] / means[1] if is_known else None,
        qualifier=_qualify(*(share > 0.0 for share in shares)),
        interval=_resample_ratio(control, steered, horizon, confidence, n_resamples, seed) if is_known else None,
        rate_ratio=rate_ratio,
        rate_interval=rate_interval,
        logrank_p=_compute_logrank_p(control, steered),
        confidence=confidence,
        n_resamples=n_resamples,
        seed=seed,
    )


def _qualify(is_control_open: bool, is_steered_open: bool) -> Qualifier:
    """Open: not all of an arm's runs had reached it by the horizon, so that its mean is longer than its restricted."""
    if is_control_open:
        return "truncated" if is_steered_open else "at least"
    return "at most" if is_steered_open else "exact"


def _resample_ratio(
    control: Arm, steered: Arm, horizon: float, confidence: float, n_resamples: int, seed: int
) -> tuple[float, float] | None:
    """Percentile interval of the ratio of restricted means; None where there is nothing to resample."""
    if min(len(control), len(steered)) < 2:
        return None
    generator = np.random.default_rng(seed)
    above, below = (resample_restricted_means(arm, horizon, n_resamples, generator) for arm in (control, steered))
    low, high = np.quantile(above / below, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return float(low), float(high)


def resample_restricted_means(
    arm: Arm, horizon: float, n_resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Restricted means of as many runs drawn from the arm with replacement, shape (n_resamples,)."""
    n = len(arm)
    # At equal times those that reached it first: then one factor a run is the estimate's factor a time.
    order = np.lexsort((~arm.reached, arm.times))
    times, reached = arm.times[order], arm.reached[order]
    drawn = generator.multinomial(n, np.full(n, 1.0 / n), size=n_resamples)
    at_risk = drawn[:, ::-1].cumsum(axis=1)[:, ::-1]
    survival = np.cumprod(1.0 - np.where(reached, drawn, 0) / np.maximum(at_risk, 1), axis=1)
    edges = np.minimum(np.concatenate([[0.0], times, [max(horizon, times[-1])]]), horizon)
    widths = np.diff(edges)
    means: NDArray[np.float64] = widths[0] + survival @ widths[1:]
    return means


def _compare_rates(
    control: Arm, steered: Arm, confidence: float
) -> tuple[float | None, tuple[float, float] | None]:
    from scipy.stats import binomtest

    n_reached = control.n_reached + steered.n_reached
    if not n_reached:
        return None, None
    times = control.total_time / steered.total_time
    share = binomtest(steered.n_reached, n_reached).proportion_ci(confidence, method="exact")
    low, high = (times * _to_odds(float(bound)) for bound in (share.low, share.high))
    return times * _to_odds(steered.n_reached / n_reached), (low, high)


def _to_odds(share: float) -> float:
    return math.inf if share == 1.0 else share / (1.0 - share)


def _compute_logrank_p(control: Arm, steered: Arm) -> float | None:
    """By the log-rank test; None where it does not exist."""
    from scipy.stats import logrank

    with warnings.catch_warnings():
        # Nothing over nothing, where no run reached it or only the last two were left.
        warnings.simplefilter("ignore", RuntimeWarning)
        found = float(logrank(_as_censored(control), _as_censored(steered)).pvalue)
    return None if math.isnan(found) else found
