"""Exported files read back by the programs they are for: MDAnalysis, pyarrow, the csv module."""

from __future__ import annotations

import csv
import os
import shutil
import warnings

import MDAnalysis as mda
import numpy as np
import pytest
from conftest import learned, prepare, tiny_settings
from MDAnalysis.analysis import rms
from pyarrow import parquet
from test_frame_table import raw_frames, raw_outliers

from entk_app import cli
from entk_app.errors import ExportError
from entk_app.export import parse_range
from entk_app.layout import RunLayout
from entk_app.tasks import run_task

warnings.filterwarnings("ignore", module="MDAnalysis")


@pytest.fixture
def export(tiny_campaign, tmp_path, capsys):
    """Runs the command on the tiny campaign; returns its exit code, what it printed, and the file's path."""

    def run(name, *options, layout=tiny_campaign.layout):
        code = cli.main(["export", str(layout.root), "-o", str(tmp_path / name), *options])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out + captured.err, tmp_path / name

    return run


def read_csv(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def native_ca(layout):
    return mda.Universe(str(layout.native)).select_atoms("name CA").positions


def load(layout, path):
    if path.suffix == ".pdb":
        return mda.Universe(str(path))
    return mda.Universe(str(path.with_suffix(".topology.pdb")), str(path))


@pytest.mark.parametrize(("name", "tolerance"), [("best.pdb", 2e-3), ("best.xtc", 2e-2)])
def test_structures_are_the_frames_that_the_table_beside_them_names(tiny_campaign, export, name, tolerance):
    layout = tiny_campaign.layout
    code, printed, path = export(name, "--best", "12")
    assert code == 0, printed
    assert "12 frames (best 12), RMSD " in printed
    assert sorted(p.name for p in path.parent.iterdir() if p.is_file()) == sorted(
        {"best.csv", name, *(["best.topology.pdb"] if name.endswith("xtc") else [])}
    )
    # MDAnalysis leaves files of its own beside an XTC that it reads.
    rows, universe, native = read_csv(path.with_suffix(".csv")), load(layout, path), native_ca(layout)
    assert len(rows) == len(universe.trajectory) == 12
    for number, (row, _) in enumerate(zip(rows, universe.trajectory, strict=True), 1):
        assert int(row["model"]) == number
        ca = universe.select_atoms("name CA").positions
        # As they stand they lie on the native structure: no further superposition makes it better.
        assert rms.rmsd(ca, native) == pytest.approx(float(row["rmsd_angstrom"]), abs=tolerance)
        source = layout.segment(int(row["simulation"]), int(row["segment"])).trajectory
        original = mda.Universe(str(layout.topology), str(source))
        original.trajectory[int(row["frame"])]
        assert rms.rmsd(universe.atoms.positions, original.atoms.positions, superposition=True) < tolerance
    lowest = np.sort([row["rmsd_angstrom"] for row in raw_frames(layout.root).values()])[:12]
    np.testing.assert_allclose([float(row["rmsd_angstrom"]) for row in rows], lowest, rtol=1e-12)


def test_structures_may_stay_where_they_were_simulated(tiny_campaign, export):
    code, printed, path = export("raw.pdb", "--simulation", "0", "--segment", "0", "--every", "5", "--as-simulated")
    assert code == 0, printed
    original = mda.Universe(str(tiny_campaign.layout.topology), str(tiny_campaign.layout.segment(0, 0).trajectory))
    universe = mda.Universe(str(path))
    assert len(universe.trajectory) == 3
    for number, _ in enumerate(universe.trajectory):
        original.trajectory[5 * number]
        np.testing.assert_allclose(universe.atoms.positions, original.atoms.positions, atol=1e-3)


def test_xtc_frames_carry_their_time(tiny_campaign, export):
    _, _, path = export("some.xtc", "--simulation", "1")
    universe = load(tiny_campaign.layout, path)
    times = [ts.time for ts in universe.trajectory]
    np.testing.assert_allclose(times, [float(row["time_ps"]) for row in read_csv(path.with_suffix(".csv"))], atol=1e-3)


@pytest.mark.staged("it counts frames, or names iterations")
def test_the_whole_table_as_parquet_and_csv_is_the_same(tiny_campaign, export):
    assert export("all.parquet")[0] == export("all.csv")[0] == 0
    _, _, path = export("again.parquet")
    table = parquet.read_table(path)
    raw = raw_frames(tiny_campaign.layout.root)
    assert table.num_rows == len(raw) == 135
    keys = list(zip(*(table[name].to_pylist() for name in ("simulation", "segment", "frame")), strict=True))
    assert keys == sorted(raw)
    for name in ("rmsd_angstrom", "radius_of_gyration_angstrom", "native_contacts", "time_ps"):
        assert table[name].to_pylist() == [raw[key][name] for key in keys]
    rows = read_csv(path.with_name("all.csv"))
    assert list(rows[0]) == table.column_names
    assert [float(row["latent_1"]) for row in rows] == pytest.approx(table["latent_1"].to_pylist(), rel=1e-6)
    assert table.schema.field("rmsd_angstrom").metadata[b"meaning"].startswith(b"CA atoms superposed")


@pytest.mark.staged("it counts frames, or names iterations")
def test_outliers_of_the_last_of_one_and_of_any_analysis(tiny_campaign, export):
    root = tiny_campaign.layout.root
    for option, iterations in (([], [3]), (["1"], [1]), (["any"], [1, 2, 3])):
        code, printed, path = export("out.csv", "--force", "--outliers", *option)
        assert code == 0, printed
        rows = read_csv(path)
        found = {tuple(int(row[key]) for key in ("simulation", "segment", "frame")) for row in rows}
        assert found == raw_outliers(root, iterations)


@pytest.mark.staged("it counts frames, or names iterations")
def test_classes_are_of_the_limits_of_the_system(tiny_campaign, export):
    # The target is 0.1 Å: nothing is folded or partially folded.
    code, printed, _ = export("folded.csv", "--class", "folded")
    assert (code, "no frame is as asked for; the lowest RMSD of all is" in printed) == (2, True)
    code, printed, path = export("unfolded.csv", "--class", "unfolded")
    assert code == 0 and "unfolded, limits by stop.target_rmsd_angstrom; RMSD > 0.15 Å" in printed
    assert len(read_csv(path)) == 135


def test_the_model_of_a_latent_size_can_be_asked_for(export):
    for size in (3, 4):
        _, _, path = export(f"{size}.csv", "--latent", str(size))
        assert [name for name in read_csv(path)[0] if name.startswith("latent")] == [
            f"latent_{n}" for n in range(1, size + 1)
        ]
    code, printed, _ = export("x.csv", "--latent", "9")
    assert (code, "there is no model of that latent size; there are: 3, 4" in printed) == (2, True)


def test_nothing_is_overwritten_without_force(export, tmp_path):
    (tmp_path / "best.csv").write_text("mine")
    code, printed, path = export("best.pdb", "--best", "1")
    assert code == 2 and "best.csv is there already" in printed
    assert not path.exists() and (tmp_path / "best.csv").read_text() == "mine"
    code, _, path = export("best.pdb", "--best", "1", "--force")
    assert code == 0 and path.exists() and (tmp_path / "best.csv").read_text() != "mine"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("x.txt", [], "its name must end in .pdb, .xtc"),
        ("nowhere/x.csv", [], "there is no folder"),
        ("x.csv", ["--rmsd", "5"], "--rmsd '5': write it as A:B"),
        ("x.csv", ["--rmsd", "5:4"], "--rmsd '5:4': write it as A:B"),
        ("x.csv", ["--best", "0"], "--best 0: give a number of 1 or more"),
        ("x.csv", ["--every", "-1"], "--every -1: give a number of 1 or more"),
        ("x.csv", ["--simulation", "99"], "--simulation 99: there are no frames of it"),
        ("x.csv", ["--segment", "99"], "--segment 99: there are no frames of it"),
        ("x.csv", ["--outliers", "9"], f"iteration that was analysed ({learned(1)} to {learned(3)})"),
        ("x.csv", ["--outliers", "all"], "--outliers all: give an iteration"),
        ("x.pdb", ["--rmsd-below", "0.01"], "no frame is as asked for"),
    ],
)
def test_what_cannot_be_is_exit_2_and_leaves_nothing(export, tmp_path, name, options, words):
    code, printed, _ = export(name, *options)
    assert code == 2 and words in printed, printed
    assert [path for path in tmp_path.iterdir() if path.name != "tiny"] == []


def test_a_damaged_trajectory_leaves_nothing(tiny_campaign, export, tmp_path):
    shutil.copytree(tiny_campaign.layout.root, tmp_path / "run")
    layout = RunLayout(tmp_path / "run")
    trajectory = layout.segment(0, 0).trajectory
    with trajectory.open("r+b") as stream:
        stream.truncate(trajectory.stat().st_size // 2)
    code, printed, _ = export("x.pdb", "--simulation", "0", layout=layout)
    assert code == 2 and "trajectory.dcd" in printed, printed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_exit_2(export, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, printed, _ = export("locked/x.csv")
    assert code == 2 and "cannot be written" in printed


def test_a_folder_without_a_campaign_or_frames_is_exit_2(export, tmp_path):
    (tmp_path / "empty").mkdir()
    code, printed, _ = export("x.csv", layout=RunLayout(tmp_path / "empty"))
    assert code == 2 and "holds no campaign" in printed
    campaign = prepare(tmp_path / "begun", tiny_settings("coupling=staged"))
    campaign.start()
    code, printed, _ = export("x.csv", layout=campaign.layout)
    assert code == 2 and "has no whole segment yet" in printed


def test_without_native_structure_frames_lie_on_the_first_one(export, tmp_path):
    settings = tiny_settings(
        "coupling=staged", "system.name=mine", "system.sequence=AAAA", "system.model=all-atom",
        "simulate.time_step_fs=2",
        "simulate.report_interval_ps=0.02", "simulate.segment_ns=0.0001",
    )  # fmt: skip
    campaign = prepare(tmp_path / "run", settings, cores=1)
    stage = campaign.start()
    run_task("simulate", campaign.layout.root, stage.tasks[0].order)
    code, printed, path = export("x.pdb", layout=campaign.layout)
    assert code == 0, printed
    assert "5 frames (all)\n" in printed
    universe = mda.Universe(str(path))
    ca = universe.select_atoms("name CA")
    first = ca.positions
    for _ in universe.trajectory:
        assert rms.rmsd(ca.positions, first) == pytest.approx(
            rms.rmsd(ca.positions, first, superposition=True), abs=2e-3
        )
    assert "rmsd_angstrom" not in read_csv(path.with_suffix(".csv"))[0]
    code, printed, _ = export("y.pdb", "--best", "3", layout=campaign.layout)
    assert code == 2 and "no native structure" in printed
    code, printed, _ = export("y.pdb", "--outliers", layout=campaign.layout)
    assert code == 2 and "has no analysis yet" in printed


@pytest.mark.parametrize(("text", "expected"), [("2:4", (2, 4)), (":2.5", (None, 2.5)), ("8:", (8, None))])
def test_ranges(text, expected):
    assert parse_range(text) == expected


@pytest.mark.parametrize("text", ["", ":", "4:2", "2:2", "a:b", "1:2:3", "2", "nan:1", "1:nan"])
def test_what_is_no_range(text):
    with pytest.raises(ExportError, match="write it as A:B"):
        parse_range(text)
