"""Which of a million points are drawn: by density and by extremes, never without those that matter. Pure, seeded."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_CELLS = 24
_SEED = 20190800496


def sample_points(points: NDArray[np.floating], limit: int, keep: NDArray[np.integer]) -> NDArray[np.intp]:
    """Rows of at most ``limit`` points, more of them where it is sparse.

    Kept in any case: ``keep`` and the lowest and highest of every dimension. The others are drawn at random from the
    cells of a grid over the first three dimensions, from a cell with n points in proportion to the root of n, so that
    dense regions are thinned and no region is lost.

    Parameters
    ----------
    points : array, shape (n_points, n_dimensions)
    limit : int
    keep : array of int
        Rows that are among the result.

    Returns
    -------
    array of int, sorted
        All rows where there are no more than ``limit``.
    """
    n_points = len(points)
    if n_points <= limit:
        return np.arange(n_points)
    extremes = np.concatenate([points.argmin(axis=0), points.argmax(axis=0)])
    kept = np.unique(np.concatenate([np.asarray(keep, dtype=np.intp), extremes]))
    low, high = points.min(axis=0), points.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    cell = np.minimum((_CELLS * (points[:, :3] - low[:3]) / span[:3]).astype(np.int64), _CELLS - 1)
    flat = cell @ (_CELLS ** np.arange(cell.shape[1]))
    _, which, counts = np.unique(flat, return_inverse=True, return_counts=True)
    # The smallest of exponential numbers over weights: a weighted choice without replacement (Efraimidis 2006).
    rank = np.random.default_rng(_SEED).exponential(size=n_points) * np.sqrt(counts[which])
    rank[kept] = -1.0
    return np.sort(np.argpartition(rank, min(n_points, max(limit, len(kept))) - 1)[: max(limit, len(kept))])


def sample_series(values: NDArray[np.floating], limit: int, keep: Iterable[int] = ()) -> NDArray[np.intp]:
    """Places of a series that draw the same line: the first and last, and the lowest and highest of every stretch.

    Parameters
    ----------
    values : array, shape (n,)
    limit : int
        About so many places, at least four.
    keep : iterable of int
        Places that are among the result.

    Returns
    -------
    array of int, sorted
    """
    n = len(values)
    if n <= max(4, limit):
        return np.arange(n)
    n_stretches = max(1, (limit - 2) // 2)
    starts = np.linspace(0, n, n_stretches, endpoint=False).astype(np.intp)
    length = int(np.diff([*starts, n]).max())
    # Rows of stretches, the last places of short ones given twice: one argmin and argmax for all.
    ends = np.append(starts[1:], n)
    places = np.minimum(starts[:, None] + np.arange(length), ends[:, None] - 1)
    rows = np.arange(n_stretches)
    stretched = values[places]
    lowest, highest = places[rows, stretched.argmin(axis=1)], places[rows, stretched.argmax(axis=1)]
    return np.unique(np.concatenate([[0, n - 1], lowest, highest, np.fromiter(keep, dtype=np.intp)]))
