"""The check before a campaign: sizes against files that a campaign wrote, speeds, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple

import numpy as np
import pytest
from conftest import prepare, tiny_settings

from entk_app import cli, cvae, frames, preflight
from entk_app.check import check_campaign, render_report
from entk_app.layout import RunLayout
from entk_app.preflight import Size, Speed, TrainingSpeed, compute_size, compute_times
from entk_app.probe import ProbeError, ProbeTask, run_probe
from entk_app.records import SegmentKey, SegmentRecord, SystemRecord, read_record
from entk_app.resources import config_folders
from entk_app.settings import build_settings, read_preset
from entk_app.steering import Slots
from entk_app.training_set import choose_training_set

SYSTEM = SystemRecord(
    name="x", model="all-atom", sequence="A" * 28, n_atoms=504, n_residues=28, ca_indices=(), has_native=True,
    force_field="",
)  # fmt: skip
SPEED = Speed(platform="Reference", cores=1, ns_per_day=1000.0, seconds=5.0)
TRAINING = TrainingSpeed(platform="CPU", cores=1, n_parameters=(700_000, 700_000), seconds_per_frame=1e-3)


@pytest.fixture
def measured(monkeypatch):
    """Speeds as if they had been measured."""
    import entk_app.probe

    results = {"simulate": SPEED, "train": TRAINING}
    monkeypatch.setattr(entk_app.probe, "run_probe", lambda kind, *rest: results[kind])


@pytest.fixture
def disk(monkeypatch):
    """A disk with so many bytes free."""
    usage = namedtuple("usage", "total used free")

    def make(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free, 0, free))

    return make


# Sizes.


def test_the_files_of_a_campaign_have_the_sizes_computed(tiny_campaign):
    layout = tiny_campaign.layout
    system = read_record(SystemRecord, layout.system_record)
    segments = sorted(layout.simulations.glob("????/segment-????"))
    assert segments
    for folder in segments:
        paths = layout.segment(int(folder.parent.name), int(folder.name[-4:]))
        n_frames = read_record(SegmentRecord, paths.record).n_frames
        assert paths.trajectory.stat().st_size == preflight.compute_trajectory_bytes(system.n_atoms, n_frames)
        computed = preflight.compute_frames_bytes(system.n_atoms, system.n_residues, True, n_frames)
        assert paths.frames.stat().st_size == pytest.approx(computed, rel=0.01)


@pytest.mark.parametrize(
    ("n_residues", "n_frames", "has_native"), [(21, 3000, True), (60, 1025, False), (200, 10, True)]
)
def test_a_file_of_frames_has_the_size_computed(tmp_path, n_residues, n_frames, has_native):
    native = np.arange(3.0 * n_residues).reshape(-1, 3)
    writer = frames.FrameWriter(tmp_path / "frames.h5", n_residues, native if has_native else None, 8.0, native)
    for number in range(n_frames):
        writer.add(number, 1.0 * number, native)
    writer.flush()
    computed = preflight.compute_frames_bytes(n_residues, n_residues, has_native, n_frames)
    assert (tmp_path / "frames.h5").stat().st_size == pytest.approx(computed, rel=0.02)


@pytest.mark.staged("only there an iteration has a known number of segments")
def test_a_campaign_takes_the_room_computed(tiny_campaign):
    """All that tiny_campaign left: an upper limit, and not by much; radical's part, which it has not, taken off."""
    settings, slots = tiny_campaign.settings, tiny_campaign.machine.slots
    system = read_record(SystemRecord, tiny_campaign.layout.system_record)
    n_parameters = tuple(
        cvae.build_model(settings.train.architecture, system.n_residues, dim).n_parameters
        for dim in settings.train.latent_dims
    )
    size = compute_size(settings, slots, system, settings.frames_per_segment, n_parameters)
    history = list(tiny_campaign.layout.simulations.glob("????/segment-????"))
    n_tasks = size.n_segments + size.n_iterations * 3
    assert (size.n_segments, size.n_frames) == (len(history), len(history) * settings.frames_per_segment)
    used = preflight.count_bytes_in(tiny_campaign.layout.root)
    computed = size.total_bytes - preflight._RADICAL - n_tasks * preflight._RADICAL_TASK
    assert used <= computed <= 1.2 * used


def test_slots_limits_and_iterations_count_frames():
    paper = build_settings(read_preset("bba")[1])
    # 16 slots until 100,000 frames, then 12 beside 4 trainings for 100 iterations.
    size = compute_size(paper, Slots(16, 12, 4), SYSTEM, 500)
    assert (size.n_segments, size.limit) == (13 * 16 + 100 * 12, "stop.max_iterations")
    turns = build_settings(read_preset("bba")[1], assignments=["steering.initial_frames=0"])
    assert compute_size(turns, Slots(8, 8, 4), SYSTEM, 500).n_segments == 8 + 99 * 8
    short = build_settings(read_preset("bba")[1], assignments=["stop.max_time_us=6"])
    size = compute_size(short, Slots(16, 12, 4), SYSTEM, 500)
    # 6 us are 120,000 frames of 50 ps, that is 240 segments.
    assert (size.n_segments, size.limit) == (13 * 16 + 3 * 12, "stop.max_time_us")


def test_absurd_limits_are_computed_at_once():
    endless = build_settings(
        read_preset("bba")[1], assignments=["stop.max_iterations=1000000000000000", "stop.max_time_us=1e15"]
    )
    assert compute_size(endless, Slots(16, 12, 4), SYSTEM, 500).total_bytes > 1e22


def test_what_is_known_of_training_is_what_training_does():
    for name in ("villin-quick", "bba"):
        for n_frames in (2, 50, 5_000, 1_000_000):
            settings = build_settings(read_preset(name)[1])
            assert preflight.choose_batch(settings, n_frames) == cvae.choose_batch_size(settings.train, n_frames)
    settings = build_settings(read_preset("bba")[1])
    segments = [SegmentKey(simulation=n, segment=0, n_frames=500) for n in range(300)]
    chosen = choose_training_set(segments, settings.train, 1, np.random.default_rng(1))
    # Each block of 100 frames is held out by a draw of its own.
    assert len(chosen.train) == pytest.approx(preflight.count_training_frames(settings, 150_000), rel=0.05)


@pytest.mark.parametrize(("growth", "n_iterations"), [(1.5, 1), (1.5, 37), (1.1, 90), (3.0, 90), (1.01, 12)])
def test_trainings_are_counted_as_the_rule_orders_them(growth, n_iterations):
    settings = build_settings(read_preset("bba")[1], assignments=[f"train.retrain_growth={growth}"])
    first, more = 220, 12
    known, n_trainings, encoded = 0, 0, 0
    for iteration in range(n_iterations):
        n_segments = first + more * iteration
        if n_segments >= growth * known:
            known, n_trainings = n_segments, n_trainings + 1
            encoded += n_segments
        elif iteration:
            encoded += more
    assert preflight.count_trainings(settings, first, more, n_iterations) == (n_trainings, encoded)
    always = settings.model_copy(update={"train": settings.train.model_copy(update={"retrain": "always"})})
    total = sum(first + more * iteration for iteration in range(n_iterations))
    assert preflight.count_trainings(always, first, more, n_iterations) == (n_iterations, total)


def test_in_a_split_models_are_not_trained_on_what_is_simulated_beside_them():
    """As in a campaign: 16 segments, then 12 more an iteration, each analysed with those beside its training."""
    settings, known, trained = build_settings(read_preset("bba")[1]), 0, []
    for iteration in range(100):
        n_frames = 16 + 12 * iteration
        if n_frames >= 1.5 * known:
            known, trained = n_frames, [*trained, iteration]
    ends = [*trained[1:], 100]
    encoded = sum(16 + 12 * end for end in ends)
    assert preflight.count_trainings(settings, 16, 12, 100, beside=12) == (len(trained), encoded)


def test_a_control_neither_trains_nor_waits_for_initial_frames():
    settings = build_settings(
        read_preset("bba")[1], assignments=["steering.method=none", "stop.max_iterations=10"]
    )
    size = compute_size(settings, Slots(12, 12, 12), SYSTEM, 20)
    assert (size.n_segments, size.n_trainings, size.training_memory, size.analysis_memory) == (120, 0, 0, 0)


def test_memory_grows_with_the_frames_that_are_held():
    settings = build_settings(read_preset("bba")[1])
    small, large = (compute_size(settings, Slots(16, 12, 4), SYSTEM, n) for n in (100, 10_000))
    maps = (large.n_frames - small.n_frames) * 48  # 28 residues: 378 bits
    assert large.training_memory - small.training_memory >= 2 * maps
    # Distances and neighbours of DBSCAN: 10 each a frame.
    assert large.analysis_memory - small.analysis_memory >= (large.n_frames - small.n_frames) * 10 * 16


def test_times_follow_from_speeds():
    settings = build_settings(
        read_preset("fs-peptide-quick")[1],
        assignments=["simulate.segment_ns=10", "train.epochs=6", "train.max_frames=1000", "train.latent_dims=[3,4,5]"],
    )
    size = compute_size(settings, Slots(2, 2, 2), SYSTEM, 1000)
    times = compute_times(settings, Slots(2, 2, 2), size, SPEED, TRAINING, 60.0, 2)
    assert times.segment == pytest.approx(14.4)
    # Three models, two at a time; 800 frames train.
    assert times.training == pytest.approx(2 * 6 * 800 * 1e-3 / 60)
    assert times.iteration == pytest.approx(times.segment + times.training)
    assert times.n_in_walltime == 4
    assert times.gpu_hours == pytest.approx(2 * 2 * times.iteration / 60)
    split = compute_times(settings, Slots(4, 2, 2), size, SPEED, TRAINING, 60.0, 4)
    assert split.iteration == pytest.approx(times.segment)


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (4.2e15, "4.2e+03 TB")]
)
def test_bytes_for_people(count, words):
    assert preflight.say_bytes(count) == words


# Measuring.


def test_speeds_are_measured_in_a_process_of_their_own(tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings())
    task = ProbeTask(cores=1, gpus=0, allow_cpu=True, seconds=0.2, n_frames=100)
    speed = run_probe("simulate", campaign.layout, task, Speed)
    assert speed.platform == "Reference" and speed.ns_per_day > 0
    training = run_probe("train", campaign.layout, task, TrainingSpeed)
    counts = tuple(cvae.build_model("fast", 35, dim).n_parameters for dim in (3, 4))
    assert training.n_parameters == counts and training.seconds_per_frame > 0


def test_a_probe_that_fails_says_why(tmp_path):
    campaign = prepare(tmp_path / "run", tiny_settings("simulate.platform=HIP"))
    with pytest.raises(ProbeError, match="HIP: not installed"):
        run_probe("simulate", campaign.layout, ProbeTask(cores=1, gpus=0, allow_cpu=True), Speed)


@pytest.mark.parametrize(("gpus_here", "part"), [(16, 2), (0, 1)])
def test_simulations_that_share_a_gpu_are_not_taken_for_as_fast_as_one_alone(
    tmp_path, monkeypatch, measured, gpus_here, part
):
    # Without a GPU the probe has the cores of a part already.
    monkeypatch.setattr("entk_app.check.count_gpus", lambda: gpus_here)
    layout, label = RunLayout(tmp_path / "run"), "resource.label=local.dgx2_emulated"
    alone, shared = (
        check_campaign(tiny_settings(label, f"resource.sims_per_gpu={n}"), layout, config_folders()) for n in (1, 2)
    )
    assert (alone.simulations, shared.simulations, shared.trainings) == (14, 28, 2)
    assert shared.speed.ns_per_day == alone.speed.ns_per_day / part
    assert any("divided by resource.sims_per_gpu = 2" in note for note in shared.notes) == (part == 2)
    assert shared.size.n_frames > 1.9 * alone.size.n_frames


# The command.


def test_a_good_campaign_is_exit_0_and_leaves_nothing(tmp_path, monkeypatch, capsys, measured):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check"]) == 0
    printed = capsys.readouterr().out
    for words in (
        "villin, calpha, 35 residues, 35 particles; native structure known",
        "local.localhost: ",
        "OpenMM platforms Reference",
        "1,000 ns a day on Reference",
        "at most 40 iterations (stop.max_iterations)",
        "nothing keeps it from running",
    ):
        assert words in printed
    assert list(tmp_path.iterdir()) == []


def test_json_is_one_object(tmp_path, monkeypatch, capsys, measured):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True and report["problems"] == []
    assert report["speed"]["ns_per_day"] == 1000.0
    assert report["size"]["n_frames"] > 0 and report["frame_bytes"] == 12 * 35 + 24 + 75 + 40 + 115
    assert cli.main(["check", "--json", "--set", "stop.max_iterations=0"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False and "stop.max_iterations = 0" in report["problems"][0]


def test_every_problem_is_told_at_once(tmp_path, monkeypatch, capsys, measured):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    wrong = ("resource.scratch=file", "resource.md_slots=1000", "system.name=vilin", "simulate.platform=HIP",
             "resource.environments.train=nowhere")  # fmt: skip
    options = [part for text in wrong for part in ("--set", text)]
    assert cli.main(["check", "--run-dir", "file", *options]) == 2
    printed = capsys.readouterr().out
    problems = [line for line in printed.splitlines() if line.startswith("problem: ")]
    assert len(problems) == 6
    for words in ("file is a file", "not a folder", "1000", "'vilin'", "'HIP'", "no bin/python"):
        assert any(words in line for line in problems), words
    assert "it cannot run: 6 problems" in printed
    assert cli.main(["check", "--set", "stop.max_iterations=0", "--set", "train.epochs=0"]) == 2
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_login_node_without_gpus_says_what_it_cannot_measure(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cli.main(["check", "--preset", "fs-peptide", "--resource", "ornl.dgx2"]) == 0
    printed = capsys.readouterr().out
    assert "a task would have a GPU, this machine has none" in printed
    assert "it would be refused here" in printed
    assert "simulation  not measured" in printed
    # 264 atoms, 210 pairs of residues, two columns more for the native structure.
    assert f"{12 * 264 + 24 + 27 + 40 + 115:,} bytes" in printed


def test_a_disk_that_is_too_small(tmp_path, monkeypatch, capsys, measured, disk):
    import entk_app.pilot

    def start(*args):
        raise AssertionError("a pilot was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entk_app.pilot, "run_on_pilot", start)
    disk(1_000_000)
    assert cli.main(["check"]) == 2
    assert "problem: the disk of" in capsys.readouterr().out
    assert cli.main(["run"]) == 2
    assert "has 1 MB free" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    disk(20_000_000)
    assert cli.main(["check"]) == 0
    assert "note: the disk of" in capsys.readouterr().out
    monkeypatch.setattr(entk_app.pilot, "run_on_pilot", lambda *args: None)
    cli.main(["run"])
    assert "note: 40 iterations need up to" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("assignments", "ok", "words"),
    [
        (["train.patience=null", "train.epochs=100000"], False, "a training that is cut off starts again"),
        (["train.epochs=100000"], True, "unless train.patience ends them before"),
        (
            ["simulate.segment_ns=100", "simulate.report_interval_ps=1000"],
            True,
            "it is cut off and goes on with --resume",
        ),
    ],
)
def test_times_that_do_not_fit_the_walltime(tmp_path, measured, assignments, ok, words):
    settings = tiny_settings("resource.walltime_min=2", *assignments)
    report = check_campaign(settings, RunLayout(tmp_path / "run"), config_folders())
    assert report.ok is ok
    assert words in "\n".join(render_report(report))


def test_a_system_that_does_not_run_is_a_problem(tmp_path, monkeypatch):
    import entk_app.probe

    def fail(kind, *rest):
        raise ProbeError("after 10 steps its energy is nan")

    monkeypatch.setattr(entk_app.probe, "run_probe", fail)
    report = check_campaign(tiny_settings(), RunLayout(tmp_path / "run"), config_folders())
    assert report.problems == ("the simulation does not run here: after 10 steps its energy is nan",)
    assert "training is not measured: after 10 steps its energy is nan" in report.notes


def test_too_little_memory_is_noted(tmp_path, monkeypatch, measured):
    monkeypatch.setattr("os.sysconf", lambda name: 1 if name == "SC_PHYS_PAGES" else 1000)
    report = check_campaign(tiny_settings(), RunLayout(tmp_path / "run"), config_folders())
    assert report.ok and sum("of memory, this machine has 1 kB" in note for note in report.notes) == 2


def test_a_campaign_that_goes_on_is_checked_in_its_folder(tmp_path, monkeypatch, capsys, measured):
    campaign = prepare(tmp_path / "run", tiny_settings())
    before = sorted(campaign.layout.root.rglob("*"))
    assert cli.main(["check", "--resume", str(campaign.layout.root), "--set", "stop.max_iterations=7"]) == 0
    assert "at most 7 iterations" in capsys.readouterr().out
    assert sorted(campaign.layout.root.rglob("*")) == before


def test_sizes_are_kept_with_their_words(tmp_path, measured):
    report = check_campaign(tiny_settings(), RunLayout(tmp_path / "run"), config_folders())
    assert isinstance(report.size, Size)
    assert preflight.say_bytes(report.size.total_bytes) in "\n".join(render_report(report))
