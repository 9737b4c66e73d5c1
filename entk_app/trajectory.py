"""Single frames of trajectories by their place: positions, and the box of a periodic system."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entk_app.errors import DataError
from entk_app.frames import group_by_segment
from entk_app.integrity import check_file, read_segment
from entk_app.layout import RunLayout
from entk_app.records import FrameRef


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


def read_positions(layout: RunLayout, refs: Iterable[FrameRef]) -> Iterator[tuple[FrameRef, NDArray[np.float64]]]:
    """Positions of frames, each of shape (n_atoms, 3), ångström; segment by segment, a file is checked once.

    Raises
    ------
    DamagedError
        A trajectory is not as it was published.
    DataError
        A trajectory has no such frame.
    """
    from MDAnalysis.lib.formats.libdcd import DCDFile

    for place, frames in group_by_segment(refs).items():
        paths = layout.segment(*place)
        check_file(paths.trajectory, read_segment(paths).files)
        with DCDFile(str(paths.trajectory)) as trajectory:
            for ref in frames:
                if not 0 <= ref.frame < len(trajectory):
                    raise DataError(f"{paths.trajectory} has {len(trajectory)} frames, there is no frame {ref.frame}")
                yield ref, read_stored(trajectory, ref.frame, is_periodic=False).positions
