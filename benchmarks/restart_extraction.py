"""Seconds to read the start structures of 100 restarts from long trajectories, checksums included.

``python benchmarks/restart_extraction.py`` writes trajectories of villin's CA model (444 bytes a frame, the longest has
0.4 GB) to a folder that goes away, with the record that a simulate task publishes, and reads random frames of each as a
restart does: ``trajectory.read_frame``. Every structure is held against what was written. The last column
is of records without checksums of blocks, as older run folders have them: all of the trajectory is read every time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

_N_ATOMS = 35


def make_frame(number: int) -> np.ndarray:
    """Positions that tell the frame's number, shape (n_atoms, 3), ångström."""
    return np.random.default_rng(number).uniform(-50.0, 50.0, (_N_ATOMS, 3)).astype(np.float32)


def write_trajectory(root: Path, n_frames: int, known: frozenset[int]) -> None:
    """A finished segment with a long trajectory and its record; frames that are not asked for are all the same."""
    from MDAnalysis.lib.formats.libdcd import DCDFile

    from entk_app.integrity import digest_files
    from entk_app.layout import RunLayout
    from entk_app.records import SegmentRecord, write_record

    paths = RunLayout(root).segment(0, 0)
    paths.folder.mkdir(parents=True)
    other = np.zeros((_N_ATOMS, 3), np.float32)
    with DCDFile(str(paths.trajectory), "w") as trajectory:
        trajectory.write_header("benchmark", _N_ATOMS, 0, 1, 1.0, 0)
        for number in range(n_frames):
            trajectory.write(make_frame(number) if number in known else other, np.zeros(6))
    record = SegmentRecord(
        simulation=0, segment=0, iteration=1, decision=0, origin=None, seed=1, n_frames=n_frames, steps=n_frames,
        first_step=0, time_ps=float(n_frames), start_time_ps=0.0, min_rmsd_angstrom=None, min_rmsd_frame=None,
        last_rmsd_angstrom=None, platform="CPU", device=None, cores=1, friction_per_ps=1.0, temperature_k=300.0,
        ended_by="length", seconds_setup=0.0, seconds_md=1.0, ns_per_day=1.0, unix_start=0.0, unix_end=1.0,
        files=digest_files([paths.trajectory]),
    )  # fmt: skip
    write_record(paths.record, record)


def forget_blocks(root: Path) -> None:
    """Make the record one of before."""
    from entk_app.layout import RunLayout
    from entk_app.records import SegmentRecord, read_record, write_record

    path = RunLayout(root).segment(0, 0).record
    record = read_record(SegmentRecord, path)
    files = {name: digest.model_copy(update={"blocks": ()}) for name, digest in record.files.items()}
    write_record(path, record.model_copy(update={"files": files}))


def extract(root: Path, frames: list[int]) -> float:
    """Seconds to read these frames."""
    from entk_app.layout import RunLayout
    from entk_app.records import FrameRef
    from entk_app.trajectory import read_frame

    layout, seconds = RunLayout(root), 0.0
    for frame in frames:
        began = time.monotonic()
        positions = read_frame(layout, FrameRef(simulation=0, segment=0, frame=frame)).positions
        seconds += time.monotonic() - began
        np.testing.assert_array_equal(positions, make_frame(frame))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--restarts", type=int, default=100)
    options = parser.parse_args()
    print(f"| frames | trajectory, MB | {options.restarts} structures, s | without checksums of blocks, s |")
    print("|---|---|---|---|")
    for n_frames in options.frames:
        chosen = np.random.default_rng(1).choice(n_frames, options.restarts, replace=False).tolist()
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            write_trajectory(root, n_frames, frozenset(chosen))
            n_bytes = next(root.rglob("trajectory.dcd")).stat().st_size
            # The first one imports MDAnalysis and loads the file's pages.
            extract(root, chosen[:1])
            seconds = extract(root, chosen)
            forget_blocks(root)
            some = chosen[: max(1, options.restarts // 20)]
            before = extract(root, some) * options.restarts / len(some)
        print(f"| {n_frames:,} | {n_bytes / 1e6:.1f} | {seconds:.2f} | {before:.1f} |", flush=True)


if __name__ == "__main__":
    main()
