"""States of a protein as clusters of its contact maps, the same for several runs. Only scikit-learn, only when it fits.

Contact maps are projected on their principal components, and k-means divides these into states. Both are fitted on as
many frames of each run: an encoder of one of them would tell apart what that run has seen, and less what others have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entk_app import geometry
from entk_app.errors import DataError

#: Principal components, and frames that are unpacked at a time.
_N_COMPONENTS = 10
_BATCH = 2048

#: All runs together are fitted on so many frames at most.
_MAX_FITTED = 50_000


@dataclass(frozen=True)
class States:
    """A division of contact maps into states.

    Attributes
    ----------
    n_states : int
    explained : float
        Share of the maps' variance that the principal components hold.
    """

    n_states: int
    explained: float
    n_pairs: int
    _components: Any
    _clusters: Any

    def assign(self, packed: NDArray[np.uint8]) -> NDArray[np.int32]:
        """The state of each packed contact map, shape (n_frames,)."""
        found = [
            self._clusters.predict(self._components.transform(_unpack(packed[start : start + _BATCH], self.n_pairs)))
            for start in range(0, len(packed), _BATCH)
        ]
        return np.concatenate([np.empty(0, np.int32), *found]).astype(np.int32)


def choose_frames(lengths: Sequence[int], max_frames: int = _MAX_FITTED) -> list[NDArray[np.intp]]:
    """Places of the frames of each run that the states are fitted on: as many of each, evenly over its length.

    A run that is longer than the others must not draw the states to where it has been.
    """
    n = min(min(lengths), max(1, max_frames // len(lengths)))
    return [np.linspace(0, length - 1, n).round().astype(np.intp) for length in lengths]


def fit_states(packed: NDArray[np.uint8], n_residues: int, n_states: int, seed: int) -> States:
    """Fit the projection, then the states.

    Parameters
    ----------
    packed : array of uint8, shape (n_frames, n_bytes)
        Packed contact maps of all runs.
    n_residues : int
    n_states : int
        Fewer where fewer maps are distinct.
    seed : int

    Raises
    ------
    DataError
        There are fewer than two distinct contact maps.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import IncrementalPCA

    n_distinct = len(np.unique(packed, axis=0))
    if n_distinct < 2:
        raise DataError(f"all {len(packed)} frames have one contact map: there are no states to tell apart")
    n_pairs = geometry.count_pairs(n_residues)
    components = IncrementalPCA(min(_N_COMPONENTS, n_pairs, len(packed)))
    order = np.random.default_rng(seed).permutation(len(packed))
    batches = np.array_split(order, max(1, len(packed) // _BATCH))
    for rows in batches:
        components.partial_fit(_unpack(packed[rows], n_pairs))
    projected = np.concatenate([components.transform(_unpack(packed[rows], n_pairs)) for rows in batches])
    k = min(n_states, n_distinct)
    clusters = MiniBatchKMeans(k, random_state=seed, n_init=3, batch_size=_BATCH).fit(projected)
    return States(k, float(components.explained_variance_ratio_.sum()), n_pairs, components, clusters)


def _unpack(packed: NDArray[np.uint8], n_pairs: int) -> NDArray[np.float32]:
    return np.unpackbits(packed, axis=1, count=n_pairs).astype(np.float32)


def find_discoveries(labels: NDArray[np.integer]) -> NDArray[np.intp]:
    """After how many frames the first, the second ... state had been seen, shape (n_states_seen,).

    Parameters
    ----------
    labels : array of int, shape (n_frames,)
        The state of each frame, in the order of time.
    """
    _, first = np.unique(labels, return_index=True)
    return np.sort(first) + 1
