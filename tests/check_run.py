"""An independent check of a run folder: MDAnalysis recomputes what the reporter wrote, and walks the lineage.

Reads only files, with MDAnalysis, h5py and json; it shares no code with the application.
``python tests/check_run.py RUN`` checks a run by hand.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import h5py
import MDAnalysis as mda
import numpy as np
from MDAnalysis.analysis import rms
from MDAnalysis.lib.distances import distance_array

RMSD_TOLERANCE_ANGSTROM = 1e-3


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def check_run(run: Path, every: int = 10) -> dict[str, int]:
    """Check trajectories, restarts, decisions and summary; returns how many of each were checked."""
    counts = {"segments": 0, "frames": 0, "restarts": 0}
    settings = read_settings(run)
    lost = read_set_aside(run)
    simulations = sorted(path for path in (run / "simulations").iterdir() if path.is_dir())
    total_frames, total_ps, lowest = 0, 0.0, np.inf
    origins = []
    for folder in simulations:
        origin = read_json(folder / "simulation.json")["origin"]
        segments = sorted(path for path in folder.glob("segment-*") if path.is_dir())
        assert not [path for path in segments if path.name.endswith(".partial")], f"unfinished segments in {folder}"
        if not segments:
            continue
        last_step, number = 0, 0
        for segment in segments:
            gap = False
            while segment.name != f"segment-{number:04d}":
                assert (folder.name, f"segment-{number:04d}") in lost, f"segment {number} of {folder} is missing"
                gap, number = True, number + 1
            number += 1
            record = read_json(segment / "segment.json")
            assert record["first_step"] == last_step or (gap and record["first_step"] > last_step)
            last_step = record["first_step"] + record["steps"]
            counts["frames"] += check_segment(run, segment, record, settings, every)
            counts["segments"] += 1
            total_frames += record["n_frames"]
            total_ps += record["time_ps"]
            lowest = min(lowest, np.inf if record["min_rmsd_angstrom"] is None else record["min_rmsd_angstrom"])
        was_kept = (f"{origin['simulation']:04d}", f"segment-{origin['segment']:04d}") not in lost if origin else False
        if origin is not None and was_kept and segments[0].name == "segment-0000":
            check_restart(run, folder, segments[0], origin)
        if origin is not None:
            origins.append((origin["simulation"], origin["segment"], origin["frame"]))
            counts["restarts"] += 1
    assert len(set(origins)) == len(origins), "a frame was used twice as a start"
    assert all((segment, frame) != (0, 0) for _, segment, frame in origins), "a first frame was used as a start"
    check_outliers_are_recorded(run, origins)
    summary = read_json(run / "summary.json")
    assert summary["n_frames"] == total_frames
    assert abs(summary["total_time_us"] - total_ps * 1e-6) < 1e-9
    if (run / "system" / "native.pdb").exists():
        assert abs(summary["min_rmsd_angstrom"] - lowest) < 1e-9
        check_best_frame(run, summary, settings)
    else:
        assert summary["min_rmsd_angstrom"] is None
    assert summary["n_restarts"] >= counts["restarts"]
    return counts


def read_set_aside(run: Path) -> set[tuple[str, str]]:
    """Folders of segments that were damaged."""
    path = run / "set-aside" / "notes.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    notes = [json.loads(line) for line in lines]
    return {tuple(note["path"].split("/")[1:]) for note in notes if note["segment"] is not None}


def read_settings(run: Path) -> dict:
    import yaml

    return yaml.safe_load((run / "settings.yaml").read_text(encoding="utf-8"))


def native_ca(run: Path) -> np.ndarray | None:
    if not (run / "system" / "native.pdb").exists():
        return None
    return mda.Universe(str(run / "system" / "native.pdb")).select_atoms("protein and name CA").positions


def check_segment(run: Path, segment: Path, record: dict, settings: dict, every: int) -> int:
    universe = mda.Universe(str(run / "system" / "topology.pdb"), str(segment / "trajectory.dcd"))
    ca = universe.select_atoms("protein and name CA")
    native = native_ca(run)
    cutoff = settings["simulate"]["contact_cutoff_angstrom"]
    checked = 0
    with h5py.File(segment / "frames.h5") as file:
        n = int(file.attrs["n_residues"])
        assert len(ca) == n
        assert len(universe.trajectory) == record["n_frames"] == len(file["contacts"])
        assert ("rmsd_angstrom" in file) == (native is not None)
        bits = np.unpackbits(file["contacts"][:], axis=1)[:, : n * (n - 1) // 2].astype(bool)
        times, gyration = (file[name][:] for name in ("time_ps", "radius_of_gyration_angstrom"))
        rmsd = None if native is None else file["rmsd_angstrom"][:]
    if rmsd is not None:
        assert np.isclose(record["min_rmsd_angstrom"], rmsd.min())
        assert int(np.argmin(rmsd)) == record["min_rmsd_frame"]
    interval = settings["simulate"]["report_interval_ps"]
    np.testing.assert_allclose(np.diff(times), interval, rtol=1e-6)
    for frame in range(0, len(universe.trajectory), every):
        universe.trajectory[frame]
        if rmsd is not None:
            expected = rms.rmsd(ca.positions, native, center=True, superposition=True)
            assert abs(expected - rmsd[frame]) < RMSD_TOLERANCE_ANGSTROM, (segment, frame, expected, rmsd[frame])
        distances = distance_array(ca.positions, ca.positions)[np.triu_indices(n, 1)]
        np.testing.assert_array_equal(distances < cutoff, bits[frame], err_msg=f"{segment} frame {frame}")
        centred = ca.positions - ca.positions.mean(axis=0)
        assert abs(np.sqrt((centred**2).sum() / n) - gyration[frame]) < 1e-3
        checked += 1
    log = (segment / "log.csv").read_text(encoding="utf-8").splitlines()
    assert len(log) == record["n_frames"] + 1
    return checked


def check_restart(run: Path, folder: Path, first_segment: Path, origin: dict) -> None:
    parent = run / "simulations" / f"{origin['simulation']:04d}" / f"segment-{origin['segment']:04d}"
    universe = mda.Universe(str(run / "system" / "topology.pdb"), str(parent / "trajectory.dcd"))
    universe.trajectory[origin["frame"]]
    expected = universe.atoms.positions
    with h5py.File(first_segment / "frames.h5") as file:
        np.testing.assert_allclose(file["start_positions_angstrom"][:], expected, atol=1e-4)
    np.testing.assert_allclose(mda.Universe(str(folder / "start.pdb")).atoms.positions, expected, atol=1.1e-3)


def check_outliers_are_recorded(run: Path, origins: list[tuple[int, int, int]]) -> None:
    recorded = set()
    for path in (run / "analysis").glob("iteration-*[0-9].json"):
        for outlier in read_json(path)["outliers"]:
            recorded.add((outlier["frame"]["simulation"], outlier["frame"]["segment"], outlier["frame"]["frame"]))
    assert set(origins) <= recorded, "a start is no recorded outlier"


def check_best_frame(run: Path, summary: dict, settings: dict) -> None:
    best = summary["min_rmsd_frame"]
    segment = run / "simulations" / f"{best['simulation']:04d}" / f"segment-{best['segment']:04d}"
    universe = mda.Universe(str(run / "system" / "topology.pdb"), str(segment / "trajectory.dcd"))
    universe.trajectory[best["frame"]]
    ca = universe.select_atoms("protein and name CA").positions
    found = rms.rmsd(ca, native_ca(run), center=True, superposition=True)
    assert abs(found - summary["min_rmsd_angstrom"]) < RMSD_TOLERANCE_ANGSTROM
    target = settings["stop"]["target_rmsd_angstrom"]
    assert (summary["stop_reason"] == "target_rmsd") == (
        target is not None and found <= target + RMSD_TOLERANCE_ANGSTROM
    )


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1], "summary.json").exists():
        sys.exit("usage: check_run.py RUN, the folder of a campaign that has ended")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="MDAnalysis")
    found = check_run(Path(sys.argv[1]))
    print(
        f"in order: {found['segments']} segments, {found['frames']} frames recomputed (every tenth), "
        f"{found['restarts']} restarts"
    )
