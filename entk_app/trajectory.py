"""Single frames of trajectories by their place: positions, and the box of a periodic system."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entk_app.errors import DataError
from entk_app.frames import group_by_segment
from entk_app.integrity import check_part, read_segment
from entk_app.layout import RunLayout, SegmentPaths
from entk_app.records import FrameRef

#: No DCD that is written here has a longer header.
_HEADER_BYTES = 4096


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


def read_frame(layout: RunLayout, ref: FrameRef, is_periodic: bool = False) -> StoredFrame:
    """One frame, read by its place in its own segment.

    Raises
    ------
    DamagedError, DataError
        As :func:`read_positions`.
    """
    return next(_read_frames(layout.segment(ref.simulation, ref.segment), [ref.frame], is_periodic))


def read_positions(layout: RunLayout, refs: Iterable[FrameRef]) -> Iterator[tuple[FrameRef, NDArray[np.float64]]]:
    """Positions of frames, each of shape (n_atoms, 3), ångström, segment by segment.

    Only the parts of a trajectory that are used are held against their checksums: its header and the frames.

    Raises
    ------
    DamagedError
        These parts of a trajectory, or its length, are not as they were published.
    DataError
        A trajectory has no such frame.
    """
    for place, wanted in group_by_segment(refs).items():
        stored = _read_frames(layout.segment(*place), [ref.frame for ref in wanted], is_periodic=False)
        yield from ((ref, frame.positions) for ref, frame in zip(wanted, stored, strict=True))


def _read_frames(paths: SegmentPaths, frames: Sequence[int], is_periodic: bool) -> Iterator[StoredFrame]:
    from MDAnalysis.lib.formats.libdcd import DCDFile

    path, files = paths.trajectory, read_segment(paths).files
    check_part(path, files, 0, _HEADER_BYTES)
    with DCDFile(str(path)) as trajectory:
        n_frames, header = len(trajectory), trajectory.header
        # Frames are of one length: three records of numbers of 4 bytes, and one of the box where there is one.
        n_bytes = 3 * (8 + 4 * header["natoms"]) + (56 if header["is_periodic"] else 0)
        for frame in frames:
            if not 0 <= frame < n_frames:
                raise DataError(f"{path} has {n_frames} frames, there is no frame {frame}")
            begin = path.stat().st_size - (n_frames - frame) * n_bytes
            check_part(path, files, begin, begin + n_bytes)
            yield read_stored(trajectory, frame, is_periodic)
