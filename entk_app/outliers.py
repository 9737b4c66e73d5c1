"""Latent space -> DBSCAN outliers, for every eps from one neighbour query. Pure and deterministic.

DBSCAN (Ester et al. 1996) with ``min_samples`` k calls a point *core* when at least k points, itself counted,
lie within eps; *noise* when it is not core and no core point lies within eps. Let D(i, j) be the distance to
the j-th of the k nearest neighbours of i (itself counted) and c(i) = D(i, k). Then i is core iff c(i) <= eps. A point
that is not core has all its neighbours within eps among those k, so i stops being noise exactly at

    e(i) = min( c(i), min over its neighbours j of max(D(i, j), c(j)) ),

and the noise set at eps is {i : e(i) > eps}. One query of O(n k) memory serves every eps, where scikit-learn
materialises all neighbourhoods (5 to 20 GB for 100,000 frames).

Only the largest e(i) are asked for. Any k points near i, itself among them, bound c(i) and so e(i) from above; the
points of the largest bounds are queried first, until no bound that is left exceeds the smallest e(i) that is wanted.
The result is the same, of a million frames after some thousand queries (docs/decisions/0017).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from entk_app.errors import DataError

#: Radii nearer to one another than this, relatively, count as equal: eps must not fall between them.
_TIE = 1e-9

#: Bounds are rounded up by so much, relatively: two ways to compute one distance differ in the last digits.
_ROUNDING = 1e-9

#: Points of a group that bounds the core radii of its members, at least.
_GROUP = 32

#: Distances within groups that are in memory at a time, and points that are queried at a time, at most.
_MAX_DISTANCES = 2_000_000
_MAX_BATCH = 65_536


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
    points = _as_points(latent)
    if len(points) < min_samples:
        return np.full(len(points), np.inf)
    distance, neighbour = cKDTree(points).query(points, k=min_samples, workers=workers)
    core_radius = distance[:, -1]
    return np.minimum(core_radius, _reach(distance, core_radius[neighbour]))


def compute_largest_radii(
    latent: NDArray[np.floating], n_largest: int, min_samples: int = 10, workers: int = 1
) -> NDArray[np.float64]:
    """The ``n_largest`` largest of :func:`compute_noise_radii`, without computing the rest.

    Parameters
    ----------
    latent : array, shape (n_points, n_dims)
    n_largest : int
        At least 1.
    min_samples, workers : int

    Returns
    -------
    array of float64, shape (n_points,)
        e(i) of every point where it is one of the ``n_largest`` largest, ties with the last of them left out or not;
        elsewhere e(i) or 0.

    Raises
    ------
    DataError
        Not a table of finite numbers.
    """
    points = _as_points(latent)
    n_points = len(points)
    if n_points < max(min_samples, _GROUP):
        return compute_noise_radii(points, min_samples, workers)
    # A balanced tree takes several times as long to make as the few queries save.
    tree = cKDTree(points, balanced_tree=False, compact_nodes=False)
    bound = bound_core_radii(points, tree.indices, min_samples)
    order = np.argsort(-bound)
    core_radius, radii = np.full(n_points, np.nan), np.zeros(n_points)
    smallest, start, size = 0.0, 0, 8 * n_largest
    while start < n_points and bound[order[start]] > smallest:
        batch = order[start : start + size]
        batch = batch[bound[batch] > smallest]
        start, size = start + size, min(2 * size, _MAX_BATCH)
        distance, neighbour = tree.query(points[batch], k=min_samples, workers=workers)
        core_radius[batch] = distance[:, -1]
        wanted = np.minimum(distance[:, -1], _reach(distance, bound[neighbour])) > smallest
        batch, distance, neighbour = batch[wanted], distance[wanted], neighbour[wanted]
        # Where c(j) is at most D(i, j) it does not matter.
        open_ones = neighbour[np.isnan(core_radius[neighbour]) & (bound[neighbour] > distance)]
        if len(open_ones):
            unknown = np.unique(open_ones)
            core_radius[unknown] = tree.query(points[unknown], k=[min_samples], workers=workers)[0][:, 0]
        through = _reach(distance, np.nan_to_num(core_radius[neighbour], nan=0.0))
        radii[batch] = np.minimum(distance[:, -1], through)
        if n_largest <= n_points:
            smallest = float(np.partition(radii, n_points - n_largest)[n_points - n_largest])
    return radii


def bound_core_radii(points: NDArray[np.float64], order: NDArray[np.integer], min_samples: int) -> NDArray[np.float64]:
    """A radius that is not below c(i) for every point: from the points that stand beside it in an order.

    Parameters
    ----------
    points : array, shape (n_points, n_dims)
    order : array of int, shape (n_points,)
        Of all points, near ones beside one another, as a k-d tree has them. There are at least ``min_samples``.
    min_samples : int

    Returns
    -------
    array of float64, shape (n_points,)
    """
    n_points, size = len(points), min(len(points), max(_GROUP, 2 * min_samples))
    bound = np.empty(n_points)
    step = max(1, _MAX_DISTANCES // size**2)
    whole = n_points // size * size
    pieces = [order[start : min(start + step * size, whole)] for start in range(0, whole, step * size)]
    # The last group reaches back over the one before.
    for rows in (*pieces, order[n_points - size :]):
        groups = points[rows].reshape(-1, size, points.shape[1])
        squared = np.zeros((len(groups), size, size))
        for coordinate in np.moveaxis(groups, 2, 0):
            squared += (coordinate[:, :, None] - coordinate[:, None, :]) ** 2
        squared.partition(min_samples - 1, axis=2)
        bound[rows] = np.sqrt(squared[:, :, min_samples - 1]).ravel()
    return bound * (1 + _ROUNDING)


def select_outliers(radii: NDArray[np.floating], max_outliers: int) -> OutlierSet:
    """The largest DBSCAN noise set of at most ``max_outliers`` points, and an eps that has it.

    Parameters
    ----------
    radii : array, shape (n_points,)
        From :func:`compute_noise_radii`, or at least its ``max_outliers + 1`` largest.
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
    # One more than may be outliers: eps lies above it.
    return select_outliers(compute_largest_radii(latent, max_outliers + 1, min_samples, workers), max_outliers)


def _as_points(latent: NDArray[np.floating]) -> NDArray[np.float64]:
    points = np.asarray(latent, dtype=np.float64)
    if points.ndim != 2:
        raise DataError(f"latent coordinates of shape {points.shape} are not (points, dimensions)")
    if not np.isfinite(points).all():
        raise DataError("latent coordinates hold NaN or infinity: the model that made them did not converge")
    return points


def _reach(distance: NDArray[np.float64], core_radius: NDArray[np.float64]) -> NDArray[np.float64]:
    """The radius at which a core point is reached: over the neighbours j, the lowest max(D(i, j), c(j))."""
    return np.maximum(distance, core_radius).min(axis=1)


def group_regions(points: NDArray[np.floating], radius: float) -> NDArray[np.intp]:
    """Number of each point's region: points within a radius of the first of a region that has no other yet.

    The leader algorithm (Hartigan 1975): in the order of the points, each that is in no region leads one.

    Parameters
    ----------
    points : array, shape (n_points, n_dims)
    radius : float

    Returns
    -------
    array of int, shape (n_points,)
        From 0, in the order of the leaders.
    """
    tree = cKDTree(points)
    region = np.full(len(points), -1, dtype=np.intp)
    n_regions = 0
    for place, point in enumerate(points):
        if region[place] >= 0:
            continue
        near = np.asarray(tree.query_ball_point(point, radius), dtype=np.intp)
        region[near[region[near] < 0]] = n_regions
        region[place] = n_regions
        n_regions += 1
    return region


def _choose_eps(above: float, below: float) -> float:
    """A radius between two neighbouring values of e(i); any beyond the last where nothing, or everything, is noise."""
    if np.isinf(above):
        return 2.0 * below if below > 0 else 1.0
    return 0.5 * (above + below)


def _is_gap(above: float, below: float) -> bool:
    if np.isinf(above):
        return not np.isinf(below)
    return bool(above - below > _TIE * above)
