"""Positions of single frames, read segment by segment from their trajectories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from entk_app.errors import DataError
from entk_app.frames import group_by_segment
from entk_app.integrity import check_file, read_segment
from entk_app.layout import RunLayout
from entk_app.records import FrameRef


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
                trajectory.seek(ref.frame)
                yield ref, trajectory.read().xyz.astype(np.float64)
