"""Latent space -> DBSCAN outliers, for every eps from one neighbour query. Pure and deterministic.

DBSCAN (Ester et al. 1996) with ``min_samples`` k calls a point *core* when at least k points, itself counted,
lie within eps; *noise* when it is not core and no core point lies within eps. Let D(i, j) be the distance to
the j-th of the k nearest neighbours of i (itself counted) and c(i) = D(i, k). Then i is core iff c(i) <= eps. A point
that is not core has all its neighbours within eps among those k, so i stops being noise exactly at

    e(i) = min( c(i), min over its neighbours j of max(D(i, j), c(j)) ),

and the noise set at eps is {i : e(i) > eps}. One query of O(n k) memory serves every eps, where scikit-learn
materialises all neighbourhoods (5 to 20 GB for 100,000 frames).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from entk_app.errors import DataError

#: Radii nearer to one another than this, relatively, count as equal: eps must not fall between them.
_TIE = 1e-9


@dataclass(frozen=True)
class OutlierSet:
    """The outliers of one latent space.

    Attributes
    ----------
    rows : array of int, shape (n_outliers,)
        Row numbers in the latent space, most isolated first.
    distance : array of float, shape (n_outliers,)
        Radius at which each stops being noise.
    eps : float or None
        A radius at which DBSCAN's noise set is exactly ``rows``; None where no radius gives few enough.
    """

    rows: NDArray[np.intp]
    distance: NDArray[np.float64]
    eps: float | None


def compute_noise_radii(latent: NDArray[np.floating], min_samples: int = 10, workers: int = 1) -> NDArray[np.float64]:
    """The radius e(i) at which each point stops being DBSCAN noise.

    Parameters
    ----------
    latent : array, shape (n_points, n_dims)
    min_samples : int
    workers : int
        Threads of the neighbour query.

    Returns
    -------
    array of float64, shape (n_points,)
        Infinite where there are fewer than ``min_samples`` points: everything is noise at every radius.

    Raises
    ------
    DataError
        Not a table of finite numbers.
    """
    points = np.asarray(latent, dtype=np.float64)
    if points.ndim != 2:
        raise DataError(f"latent coordinates of shape {points.shape} are not (points, dimensions)")
    if not np.isfinite(points).all():
        raise DataError("latent coordinates hold NaN or infinity: the model that made them did not converge")
    if len(points) < min_samples:
        return np.full(len(points), np.inf)
    distance, neighbour = cKDTree(points).query(points, k=min_samples, workers=workers)
    core_radius = distance[:, -1]
    through_neighbours = np.maximum(distance, core_radius[neighbour]).min(axis=1)
    return np.minimum(core_radius, through_neighbours)


def select_outliers(radii: NDArray[np.floating], max_outliers: int) -> OutlierSet:
    """The largest DBSCAN noise set of at most ``max_outliers`` points, and an eps that has it.

    Parameters
    ----------
    radii : array, shape (n_points,)
        From :func:`compute_noise_radii`.
    max_outliers : int

    Notes
    -----
    Noise sets only shrink with eps, and change at the distinct values of e(i). The chosen eps lies in the middle
    of the gap between two such values, so that rounding cannot move a point across it.
    """
    values: NDArray[np.float64] = np.asarray(radii, dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    n_positive = int(np.count_nonzero(ranked > 0))
    n_infinite = int(np.count_nonzero(np.isinf(ranked)))
    size = min(max_outliers, n_positive)
    # Points of equal radius are noise together: move down to the nearest gap.
    while 0 < size < n_positive and not _is_gap(ranked[size - 1], ranked[size]):
        size -= 1
    empty = OutlierSet(np.empty(0, dtype=np.intp), np.empty(0), None)
    if size < n_infinite or len(values) == 0:
        return empty
    above = ranked[size - 1] if size else np.inf
    below = ranked[size] if size < len(ranked) else 0.0
    if size == n_positive:
        below = 0.0
    return OutlierSet(order[:size], ranked[:size], _choose_eps(float(above), float(below)))


def find_outliers(
    latent: NDArray[np.floating], max_outliers: int = 50, min_samples: int = 10, workers: int = 1
) -> OutlierSet:
    """Outliers of a latent space: at most ``max_outliers``, equal to scikit-learn's noise at the eps returned.

    Parameters
    ----------
    latent : array, shape (n_points, n_dims)

    Raises
    ------
    DataError
        The coordinates are not finite.
    """
    return select_outliers(compute_noise_radii(latent, min_samples, workers), max_outliers)


def _choose_eps(above: float, below: float) -> float:
    """A radius between two neighbouring values of e(i); any beyond the last where nothing, or everything, is noise."""
    if np.isinf(above):
        return 2.0 * below if below > 0 else 1.0
    return 0.5 * (above + below)


def _is_gap(above: float, below: float) -> bool:
    if np.isinf(above):
        return not np.isinf(below)
    return bool(above - below > _TIE * above)
