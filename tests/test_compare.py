"""Runs side by side: times recomputed from the raw files, which are of one arm, what is refused, what is written."""

from __future__ import annotations

import csv
import json
import re
import shutil

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import tiny_settings

from entk_app import cli, compared_runs
from entk_app.compare import Gain, compare_runs, find_passage
from entk_app.compare_figure import Discoveries, plot_states, plot_survival
from entk_app.compare_files import choose_folder
from entk_app.compare_view import describe_gain
from entk_app.compared_runs import get_method, label_arms, name_runs
from entk_app.effective import Arm, compute_effective_performance
from entk_app.errors import CompareError, RunFolderError
from entk_app.layout import RunLayout
from entk_app.records import Decision, SystemRecord, read_lines, read_record, write_lines, write_record
from entk_app.report.data import read_frame_columns
from entk_app.run_reader import RunReader

#: Seeds of the runs here by what steers them.
METHODS = {1: "cvae", 2: "cvae", 11: "none", 12: "none", 21: "random"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where runs are, and what steers them told by their seeds."""
    monkeypatch.setattr(compared_runs, "get_method", lambda settings: METHODS[settings.seed])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def make_run(tiny_campaign, folder):
    """Copies of a finished campaign with another seed, other settings, other times on the clock."""

    def make(seed: int, *edits: tuple[str, str], keep: int | None = None) -> RunLayout:
        layout = RunLayout(folder / f"run-{seed}")
        shutil.copytree(tiny_campaign.layout.root, layout.root)
        edit_settings(layout, ("seed: 1\n", f"seed: {seed}\n"), *edits)
        set_side_by_side(layout, seed)
        if keep is not None:
            keep_simulations(layout, keep)
        return layout

    return make


def edit_settings(layout: RunLayout, *edits: tuple[str, str]) -> None:
    text = layout.settings.read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    layout.settings.write_text(text)


def set_side_by_side(layout: RunLayout, seed: int) -> None:
    """As on a pilot: the segments of an iteration begin together, and some simulations are faster."""
    for path in layout.simulations.glob("*/segment-*/segment.json"):
        record = json.loads(path.read_text())
        begin = 1.7e9 + 1000.0 * record["iteration"]
        lasts = 100.0 + 7.0 * ((3 * record["simulation"] + seed) % 5)
        path.write_text(json.dumps(record | {"unix_start": begin, "unix_end": begin + lasts}))


def keep_simulations(layout: RunLayout, n: int) -> None:
    """As if it had been cut off after its first n decisions."""
    kept = list(read_lines(Decision, layout.decisions))[:n]
    write_lines(layout.decisions, kept)
    started = {action.simulation for decision in kept for action in decision.actions}
    for path in layout.simulations.iterdir():
        if int(path.name) not in started:
            shutil.rmtree(path)


def read_rmsd(layout: RunLayout) -> np.ndarray:
    paths = sorted(layout.simulations.glob("*/segment-*/frames.h5"))
    return np.concatenate([h5py.File(path)["rmsd_angstrom"][:] for path in paths])


def list_frames(layout: RunLayout) -> list[tuple[float, float, float]]:
    """(unix, picoseconds, RMSD) of each frame from the raw files, in the order of the clock."""
    frames = []
    for path in sorted(layout.simulations.glob("*/segment-*/segment.json")):
        record = json.loads(path.read_text())
        with h5py.File(path.with_name("frames.h5")) as file:
            rmsd = file["rmsd_angstrom"][:]
        n = record["n_frames"]
        for i in range(n):
            unix = record["unix_start"] + (i + 1) / n * (record["unix_end"] - record["unix_start"])
            frames.append((unix, record["time_ps"] / n, rmsd[i]))
    return sorted(frames, key=lambda frame: frame[0])


def compute_simulated_ps(layout: RunLayout, unix: float) -> float:
    """What all simulations had simulated by then, each evenly within its segments."""
    total = 0.0
    for path in layout.simulations.glob("*/segment-*/segment.json"):
        record = json.loads(path.read_text())
        share = (unix - record["unix_start"]) / (record["unix_end"] - record["unix_start"])
        total += record["time_ps"] * min(max(share, 0.0), 1.0)
    return total


def run_compare(*arguments: object) -> int:
    return cli.main(["compare", *map(str, arguments)])


# Times.


@pytest.mark.parametrize("percentile", [0, 2, 20, 60])
def test_time_to_target_is_that_of_a_loop_over_all_frames_by_the_clock(make_run, percentile):
    layout = make_run(1)
    rmsd = read_rmsd(layout)
    target = float(np.percentile(rmsd, percentile))
    frames = list_frames(layout)
    assert len(frames) == len(rmsd) > 100
    simulated, first = 0.0, None
    for unix, picoseconds, value in frames:
        simulated += picoseconds
        if value <= target:
            first = unix
            break
    columns, left_out = read_frame_columns(layout, RunReader(layout).read(0.0))
    passage = find_passage(columns, target)
    assert passage.reached and passage.time == pytest.approx(simulated / 1e6)
    assert not left_out
    # Frames are whole, time is not: less than a frame of each simulation apart.
    assert abs(1e6 * passage.time - compute_simulated_ps(layout, first)) < 3 * frames[0][1]
    with h5py.File(layout.segment(passage.frame.simulation, passage.frame.segment).frames) as file:
        assert file["rmsd_angstrom"][passage.frame.frame] <= target


def test_a_run_that_never_came_near_is_censored_at_all_that_it_simulated(make_run):
    layout = make_run(1)
    columns, _ = read_frame_columns(layout, RunReader(layout).read(0.0))
    passage = find_passage(columns, float(read_rmsd(layout).min()) - 0.01)
    total = sum(json.loads(path.read_text())["time_ps"] for path in layout.simulations.glob("*/*/segment.json"))
    assert (passage.reached, passage.frame) == (False, None)
    assert passage.time == pytest.approx(total / 1e6)


def test_arms_hold_their_runs_and_the_control_is_what_they_are_measured_against(make_run):
    roots = [make_run(seed, keep=None if seed < 20 else 1).root for seed in (1, 21, 11, 2, 12)]
    target = float(np.percentile(read_rmsd(RunLayout(roots[0])), 3))
    found = compare_runs(roots, target=target)
    assert [run.name for run in found.runs] == ["run-11", "run-12", "run-1", "run-2", "run-21"]
    assert [arm.label for arm in found.folding.arms] == ["none", "cvae", "random"]
    times = [passage.time for passage in found.folding.passages]
    control, cvae, random = found.folding.arms
    assert [*control.times, *cvae.times, *random.times] == times
    assert [(gain.control, gain.steered) for gain in found.folding.gains] == [("none", "cvae"), ("none", "random")]
    gain = found.folding.gains[0].performance
    assert gain == compute_effective_performance(control.times, control.reached, cvae.times, cvae.reached)
    assert gain.ratio == pytest.approx(control.times.mean() / cvae.times.mean())
    assert found.states is None
    assert [run.is_over for run in found.runs] == [True] * 4 + [False]
    assert {run.slots for run in found.runs} == {3}


def test_without_a_control_there_are_times_and_a_word_about_what_is_missing(make_run, folder, capsys):
    roots = [make_run(1).root, make_run(2).root]
    assert run_compare(*roots, "--target", 50, "-o", folder / "out") == 0
    printed = capsys.readouterr().out
    assert "there is no control: run the same with steering.method=none" in printed and "few replicas" not in printed
    assert "Arms: aggregate time until RMSD ≤ 50 Å" in printed and "Effective performance" not in printed
    assert json.loads((folder / "out" / "compare.json").read_text())["folding"]["gains"] == []
    assert run_compare(make_run(11).root, make_run(12).root, "--target", 50, "-o", folder / "other") == 0
    assert "there are controls only" in capsys.readouterr().out


def test_equal_seeds_and_targets_of_their_own_are_told(make_run, monkeypatch):
    ended_early = ("target_rmsd_angstrom: 0.1\n", "target_rmsd_angstrom: 6.0\n")
    roots = [make_run(seed, ended_early).root for seed in (1, 2, 11)]
    edit_settings(RunLayout(roots[1]), ("seed: 2\n", "seed: 1\n"))
    notes = "\n".join(compare_runs(roots, target=0.5).notes)
    assert "run-1, run-2 have the same seed, 1" in notes
    assert "ended at a target of their own above 0.5 Å" in notes
    assert "few replicas (2 of cvae)" in notes


# Arms.


def test_what_steers_is_the_autoencoder_where_the_settings_do_not_say():
    assert get_method(tiny_settings()) == "cvae"
    assert get_method(tiny_settings("steering.method=random")) == "random"


def test_runs_of_one_method_are_one_arm_unless_they_differ_in_what_matters(monkeypatch):
    monkeypatch.setattr(compared_runs, "get_method", lambda settings: METHODS[settings.seed])
    alike = [
        tiny_settings("seed=1", "stop.max_iterations=9", "resource.walltime_min=5"),
        tiny_settings("seed=2", "faults.save_minutes=1", "simulate.platform=CPU"),
    ]
    assert label_arms(alike, [3, 3]) == ["cvae", "cvae"]
    assert label_arms(alike, [3, 4]) == ["cvae (3 slots)", "cvae (4 slots)"]
    other = tiny_settings("seed=2", "steering.ranking=novelty", "coupling=concurrent", "train.latent_dims=[3,5]")
    controls = [tiny_settings("seed=11"), tiny_settings("seed=12", "steering.ranking=mix", "train.epochs=7")]
    assert label_arms([alike[0], other, *controls], [3] * 4) == [
        "cvae (coupling staged, train.latent_dims 3/4, steering.ranking rmsd)",
        "cvae (coupling concurrent, train.latent_dims 3/5, steering.ranking novelty)",
        # What does not steer it does not matter to it.
        "none",
        "none",
    ]


def test_runs_are_named_by_as_much_of_their_paths_as_tells_them_apart(tmp_path):
    paths = [tmp_path / name for name in ("a/run", "b/run", "b/other")]
    assert name_runs(paths) == ["a/run", "b/run", "b/other"]
    assert name_runs(paths[1:]) == ["run", "other"]


# Refusals.


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("friction_per_ps: 1.0\n", "friction_per_ps: 91.0\n", "simulate.friction_per_ps: 1 in run-11; 91 in run-1"),
        ("temperature_k: 300.0\n", "temperature_k: 310.0\n", "simulate.temperature_k: 300 in run-11; 310 in run-1"),
        ("time_step_fs: 20.0\n", "time_step_fs: 10.0\n", "simulate.time_step_fs: 20 in run-11; 10 in run-1"),
        ("  name: villin\n", "  name: bba\n", "system.name: villin in run-11; bba in run-1"),
        ("  model: calpha\n", "  model: all-atom\n", "system.model: calpha in run-11; all-atom in run-1"),
        ("contact_cutoff_angstrom: 8.0\n", "contact_cutoff_angstrom: 9.0\n", "simulate.contact_cutoff_angstrom"),
        ("reduced_temperature: ", "reduced_temperature: 1", "system.reduced_temperature"),
        ("target_rmsd_angstrom: 0.1\n", "target_rmsd_angstrom: 3\n", "is 0.1 in run-11; 3 in run-1: give one"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_with_what_differs(make_run, folder, capsys, old, new, words):
    roots = [make_run(1, (old, new)).root, make_run(11).root]
    assert run_compare(*roots, "-o", folder / "out") == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not (folder / "out").exists()


def test_another_native_structure_is_another_system(make_run):
    one, other = make_run(1), make_run(11)
    lines = other.native.read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("ATOM"))
    lines[place] = f"{lines[place][:30]}{1.5:8.3f}{lines[place][38:]}"
    other.native.write_text("\n".join(lines))
    with pytest.raises(CompareError, match=r"CA atoms of system/native\.pdb"):
        compare_runs([one.root, other.root])


def test_one_target_for_all_can_be_given(make_run):
    roots = [make_run(1, ("target_rmsd_angstrom: 0.1\n", "target_rmsd_angstrom: 3\n")).root, make_run(11).root]
    assert compare_runs(roots, target=5.0).target_angstrom == 5.0
    none = ("target_rmsd_angstrom: 0.1\n", "target_rmsd_angstrom: null\n")
    roots = [make_run(2, none).root, make_run(12, none).root]
    with pytest.raises(CompareError, match="--target X"):
        compare_runs(roots)
    found = compare_runs(roots, with_states=True)
    assert found.folding is None and found.states is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "0"], "--target 0"),
        (["--target", "nan"], "--target nan"),
        (["--target", "-2"], "--target -2"),
        (["--n-states", "1"], "--n-states 1"),
        (["--n-states", "10001"], "--n-states 10001"),
        (["--seed", "-1"], "--seed -1"),
        (["--seed", str(2**31)], f"--seed {2**31}"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, capsys, options, words):
    assert run_compare(tmp_path / "a", tmp_path / "b", *options) == 2
    assert words in capsys.readouterr().err


def test_what_is_no_run_folder_is_refused(make_run, tmp_path, capsys):
    root = make_run(1).root
    with pytest.raises(RunFolderError, match="holds no campaign"):
        compare_runs([root, tmp_path])
    assert run_compare(root, tmp_path / "nowhere") == 2
    assert run_compare(root) == 2
    assert run_compare(root, f"{root}/../run-1") == 2
    assert re.findall("holds no campaign|two or more|given twice", capsys.readouterr().err) == [
        "holds no campaign", "two or more", "given twice",
    ]  # fmt: skip


# What is damaged, missing or still running.


def test_damaged_segments_are_left_out_and_named(make_run):
    whole, damaged = make_run(11), make_run(1)
    path = damaged.segment(1, 0).frames
    n_frames = json.loads(damaged.segment(1, 0).record.read_text())["n_frames"]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    damaged.segment(0, 0).record.write_text("{")
    found = compare_runs([whole.root, damaged.root])
    assert sum("run-1: " in note and "Left out" in note for note in found.notes) == 2
    assert any("simulations/0001/segment-0000" in note for note in found.notes)
    left = {run.name: len(run.frames) for run in found.runs}
    assert left["run-1"] == left["run-11"] - 2 * n_frames
    assert found.folding.passages[1].time < found.folding.passages[0].time


def test_a_run_without_frames_is_left_out_unless_too_few_remain(make_run, capsys):
    roots = [make_run(seed).root for seed in (1, 11, 12)]
    shutil.rmtree(roots[1] / "simulations")
    found = compare_runs([*roots])
    assert [run.name for run in found.runs] == ["run-12", "run-1"]
    assert "run-11: left out: no segment of it is whole yet" in found.notes
    assert run_compare(*roots[:2]) == 2
    assert "1 of 2 runs have frames" in capsys.readouterr().err


def test_without_native_structure_states_are_compared(make_run, folder, capsys):
    layouts = [make_run(1), make_run(11)]
    for layout in layouts:
        system = read_record(SystemRecord, layout.system_record)
        write_record(layout.system_record, system.model_copy(update={"has_native": False}))
        for path in layout.simulations.glob("*/*/frames.h5"):
            with h5py.File(path, "r+") as file:
                del file["rmsd_angstrom"], file["native_contacts"]
            # A file that has no digest is taken as it is.
            record = json.loads(path.with_name("segment.json").read_text())
            path.with_name("segment.json").write_text(json.dumps(record | {"files": {}}))
    roots = [layout.root for layout in layouts]
    assert run_compare(*roots, "-o", folder / "out", "--n-states", 20) == 0
    assert "RMSD is not compared: there is no native structure" in capsys.readouterr().out
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "compare.csv", "compare.json", "states.csv", "states.png", "states.svg",
    ]  # fmt: skip
    assert run_compare(*roots, "--target", 3) == 2
    assert "--target 3: there is no native structure" in capsys.readouterr().err


def test_states_are_counted_in_the_order_of_time_and_alike_for_all(make_run):
    roots = [make_run(11).root, make_run(12, keep=1).root, make_run(2).root]
    found = compare_runs(roots, with_states=True, n_states=25)
    states = found.states
    whole, cut_off, steered = states.discoveries
    # Two hold the same frames: they have seen the same, each in its own order.
    assert len(whole) == len(steered) <= states.n_states and whole.tolist() != steered.tolist()
    for run, seen in zip(found.runs, states.discoveries, strict=True):
        assert seen[0] == 1 and seen[-1] <= len(run.frames) and (np.diff(seen) > 0).all()
    # What every run of the control had seen.
    assert states.n_target == len(cut_off) < len(whole)
    times = [seen[states.n_target - 1] for seen in states.discoveries]
    assert [passage.time for passage in states.measure.passages] == times
    gain = states.measure.gains[0].performance
    assert gain.qualifier == "exact" and gain.ratio == pytest.approx(np.mean(times[:2]) / times[2])
    again = compare_runs(roots, with_states=True, n_states=25).states
    assert [seen.tolist() for seen in again.discoveries] == [seen.tolist() for seen in states.discoveries]


def test_a_run_that_saw_fewer_states_is_censored_at_its_last_frame(make_run):
    found = compare_runs([make_run(11).root, make_run(1, keep=1).root], with_states=True, n_states=25)
    of_control, of_steered = found.states.measure.passages
    assert of_control.reached and not of_steered.reached
    assert of_steered.time == len(found.runs[1].frames)
    assert found.states.measure.gains[0].performance.n_steered_reached == 0


def test_the_space_of_states_is_the_same_whatever_the_order_of_time(make_run, monkeypatch):
    """One state a contact map: what a run has seen is the number of its distinct maps so far."""
    roots = [make_run(11).root, make_run(1, keep=1).root]

    class Maps:
        n_states, explained = 10_000, 1.0

        def assign(self, packed):
            return np.array([hash(row.tobytes()) for row in packed])

    monkeypatch.setattr("entk_app.compare.fit_states", lambda *_: Maps())
    found = compare_runs(roots, with_states=True)
    for root, seen in zip(roots, found.states.discoveries, strict=True):
        maps = []
        for path in sorted((root / "simulations").glob("*/*/segment.json")):
            record = json.loads(path.read_text())
            with h5py.File(path.with_name("frames.h5")) as file:
                packed = file["contacts"][:]
            step = (record["unix_end"] - record["unix_start"]) / len(packed)
            maps += [(record["unix_start"] + (i + 1) * step, row.tobytes()) for i, row in enumerate(packed)]
        known: set[bytes] = set()
        expected = []
        for n, (_, row) in enumerate(sorted(maps, key=lambda one: one[0]), 1):
            expected += [n] if row not in known else []
            known.add(row)
        # Frames at one moment have no order.
        assert len(seen) == len(expected) and np.abs(seen - expected).max() <= 3


# What is printed and written.


def test_files_hold_what_is_printed(make_run, folder, capsys):
    roots = [make_run(seed).root for seed in (1, 2, 11, 12)]
    target = float(np.percentile(read_rmsd(RunLayout(roots[0])), 5).round(2))
    assert run_compare(*roots, "--target", target, "--states", "--n-states", 30) == 0
    printed = capsys.readouterr().out
    out = folder / "compare-001"
    assert f"written: {out}: compare.csv, compare.json, survival.svg" in printed
    assert "villin, calpha, 35 residues; 300 K, friction 1/ps, steps of 20 fs" in printed
    assert "4 runs with 3 simulations at a time; seeds 1, 2, 11, 12" in printed
    # Off a terminal: plain, and no line is wider than 80 but sentences.
    assert not re.search(r"[\x1b│─━]", printed)
    rows = list(csv.DictReader((out / "compare.csv").open()))
    assert [(row["run"], row["arm"], row["seed"]) for row in rows] == [
        ("run-11", "none", "11"), ("run-12", "none", "12"), ("run-1", "cvae", "1"), ("run-2", "cvae", "2"),
    ]  # fmt: skip
    for row, layout in zip(rows, map(RunLayout, [roots[2], roots[3], roots[0], roots[1]]), strict=True):
        rmsd = read_rmsd(layout)
        assert int(row["frames"]) == len(rmsd) and float(row["lowest_rmsd_angstrom"]) == pytest.approx(rmsd.min())
        with h5py.File(layout.segment(int(row["simulation"]), int(row["segment"])).frames) as file:
            assert file["rmsd_angstrom"][int(row["frame"])] <= target
        assert (row["reached"], row["over"], float(row["target_angstrom"])) == ("1", "1", target)
        assert f"{1000 * float(row['time_us']):.4g} ns" in printed
    statistics = json.loads((out / "compare.json").read_text())
    gain = statistics["folding"]["gains"][0]
    of_arm = {arm: np.mean([float(row["time_us"]) for row in rows if row["arm"] == arm]) for arm in ("none", "cvae")}
    assert gain["ratio"] == pytest.approx(of_arm["none"] / of_arm["cvae"])
    assert f"cvae over none: {gain['ratio']:.3g}" in printed
    assert statistics["states"]["n_target"] == min(int(row["states"]) for row in rows[:2])
    curves = list(csv.DictReader((out / "states.csv").open()))
    assert {row["run"]: max(int(c["states"]) for c in curves if c["run"] == row["run"]) for row in rows} == {
        row["run"]: int(row["states"]) for row in rows
    }
    assert "RMSD ≤" in (out / "survival.svg").read_text() and (out / "survival.png").stat().st_size > 5000
    assert choose_folder(folder) == folder / "compare-002"


def test_the_json_has_no_infinities(make_run, folder):
    low = float(read_rmsd(make_run(1)).min())
    make_run(11, keep=1)
    # Only the whole run has the frame with the lowest RMSD, or both have.
    assert run_compare(folder / "run-1", folder / "run-11", "--target", low, "-o", folder / "out") == 0

    def refuse(text):
        raise AssertionError(text)

    gain = json.loads((folder / "out" / "compare.json").read_text(), parse_constant=refuse)["folding"]["gains"][0]
    assert gain["n_steered_reached"] == 1 and gain["interval"] is None
    assert (gain["rate_interval"][1] is None) == (gain["n_control_reached"] == 0)


def test_nothing_is_overwritten_without_force_and_old_files_go(make_run, folder, capsys):
    roots = [make_run(1).root, make_run(11).root]
    out = folder / "out"
    assert run_compare(*roots, "-o", out, "--states", "--n-states", 5) == 0
    (out / "notes.txt").write_text("mine")
    before = (out / "compare.json").read_bytes()
    assert run_compare(*roots, "-o", out) == 2
    assert "overwrite it with --force" in capsys.readouterr().err
    assert (out / "compare.json").read_bytes() == before
    assert run_compare(*roots, "-o", out, "--force") == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "compare.csv", "compare.json", "notes.txt", "survival.png", "survival.svg",
    ]  # fmt: skip
    assert run_compare(*roots, "-o", folder / "no" / "out") == 2
    (folder / "file").write_text("")
    assert run_compare(*roots, "-o", folder / "file") == 2
    assert not list(folder.glob(".compare-*"))


@pytest.mark.parametrize(
    ("control", "steered", "sentence"),
    [
        (([4.0, 8.0], [1, 1]), ([1.0, 2.0], [1, 1]), r"a over c: 4, 95 % interval \S+ to \S+$"),
        (([8.0], [0]), ([2.0], [1]), r"a over c: ≥ 4 \(no interval: an arm has a single run\); at least, as not every"),
        (([8.0], [1]), ([16.0], [0]), r"a over c: ≤ 0.5 .*; at most, as not every run of a reached it"),
        (([8.0, 8.0], [1, 0]), ([8.0, 4.0], [0, 1]), r"a over c: 1.33.*; of the times up to 8 µs only"),
        (([8.0], [0]), ([6.0], [0]), r"a over c: unknown, as no run of either reached it"),
    ],
)
def test_a_ratio_is_told_with_what_it_is_worth(control, steered, sentence):
    gain = Gain("c", "a", compute_effective_performance(*control, *steered))
    assert re.search(sentence, describe_gain(gain, "µs"))


# Figures.


def test_survival_is_drawn_with_ticks_for_censored_runs_and_numbers_at_risk():
    arms = [
        Arm("none", np.array([4.0, 8.0, 10.0]), np.array([True, False, False])),
        Arm("cvae (3 slots)", np.array([2.0, 4.0]), np.array([True, True])),
    ]
    _, ax = plt.subplots()
    plot_survival(arms, ax, "µs", "RMSD ≤ 2 Å")
    ax.set_xticks(ax.get_xticks())
    steps = {line.get_label(): line.get_xydata() for line in ax.get_lines() if line.get_drawstyle() == "steps-post"}
    assert list(steps) == ["none (1 of 3)", "cvae (3 slots) (2 of 2)"]
    np.testing.assert_allclose(steps["none (1 of 3)"], [(0, 1), (4, 2 / 3), (8, 2 / 3), (10, 2 / 3)])
    np.testing.assert_allclose(steps["cvae (3 slots) (2 of 2)"], [(0, 1), (2, 0.5), (4, 0)])
    ticks = [line.get_xydata() for line in ax.get_lines() if line.get_marker() == "|"]
    np.testing.assert_allclose(ticks[0], [(8, 2 / 3), (10, 2 / 3)])
    assert len(ticks[1]) == 0
    assert ax.get_xlabel() == "aggregate simulated time (µs)" and "RMSD ≤ 2 Å" in ax.get_ylabel()
    rows: dict[int, dict[float, str]] = {}
    for text in ax.texts:
        if text.get_text().isdigit():
            rows.setdefault(text.xyann[1], {})[float(text.xy[0])] = text.get_text()
    control, steered = (rows[height] for height in sorted(rows, reverse=True))
    assert control == {tick: str(sum(time >= tick for time in (4, 8, 10))) for tick in control}
    assert steered == {tick: str(sum(time >= tick for time in (2, 4))) for tick in steered}
    assert len({line.get_color() for line in ax.get_lines() if line.get_drawstyle() == "steps-post"}) == 2
    plt.close()


def test_states_are_drawn_a_line_a_run_in_the_colour_of_its_arm():
    curves = [
        Discoveries("none", np.array([1, 5, 30]), 40),
        Discoveries("cvae", np.array([1, 2, 3, 9]), 20),
        Discoveries("cvae", np.array([1, 4]), 50),
    ]
    _, ax = plt.subplots()
    plot_states(curves, ax, n_target=3)
    lines = [line for line in ax.get_lines() if line.get_drawstyle() == "steps-post"]
    np.testing.assert_array_equal(lines[0].get_xydata(), [(1, 1), (5, 2), (30, 3), (40, 3)])
    np.testing.assert_array_equal(lines[2].get_xydata(), [(1, 1), (4, 2), (50, 2)])
    assert lines[1].get_color() == lines[2].get_color() != lines[0].get_color()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["none", "cvae"]
    assert [text.get_text() for text in ax.texts] == ["3: seen by every run of the control"]
    plt.close()


def test_many_arms_differ_in_colour_or_dashes():
    arms = [Arm(f"arm {i}", np.array([i + 1.0]), np.array([True])) for i in range(15)]
    _, ax = plt.subplots()
    plot_survival(arms, ax)
    looks = {(line.get_color(), str(line.get_linestyle()), line._dash_pattern[1] and tuple(line._dash_pattern[1]))
             for line in ax.get_lines() if line.get_drawstyle() == "steps-post"}  # fmt: skip
    assert len(looks) == 15
    plt.close()
