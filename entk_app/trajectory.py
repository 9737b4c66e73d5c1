"""Frames of trajectories by their place: positions, and the box of a periodic system. Reads DCD by MDAnalysis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StoredFrame:
    """A frame as a trajectory holds it.

    Attributes
    ----------
    positions : array, shape (n_atoms, 3), ångström
    box : array, shape (3, 3), ångström, or None
        Vectors of the periodic box by row.
    """

    positions: NDArray[np.float64]
    box: NDArray[np.float64] | None


def read_stored(dcd: Any, frame: int, is_periodic: bool) -> StoredFrame:
    """A frame by its place in an open trajectory.

    Parameters
    ----------
    dcd : MDAnalysis.lib.formats.libdcd.DCDFile
    frame : int
    is_periodic : bool
        Whether the trajectory holds boxes.
    """
    dcd.seek(frame)
    stored = dcd.read()
    box = compute_box(np.asarray(stored.unitcell, dtype=np.float64)) if is_periodic else None
    return StoredFrame(stored.xyz.astype(np.float64), box)


def compute_box(unit_cell: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vectors of a box as DCD holds it.

    Parameters
    ----------
    unit_cell : array, shape (6,)
        Length a, cosine of gamma, length b, cosines of beta and alpha, length c; ångström. So OpenMM writes it.

    Returns
    -------
    array, shape (3, 3), ångström
        Vectors by row: a along x, b in the plane of x and y.
    """
    a, gamma, b, beta, alpha, c = unit_cell
    sine = np.sqrt(1.0 - gamma**2)
    along = c * (alpha - beta * gamma) / sine
    box = np.array([[a, 0, 0], [b * gamma, b * sine, 0], [c * beta, along, np.sqrt(c**2 * (1 - beta**2) - along**2)]])
    # OpenMM takes vectors with no part longer than half of what it is along: rounding must not make it longer.
    for row, axis in ((1, 0), (2, 0), (2, 1)):
        limit = 0.5 * box[axis, axis]
        box[row, axis] = np.clip(box[row, axis], -limit, limit)
    return box
