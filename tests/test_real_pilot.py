"""Real campaigns of RADICAL-EnTK on a local pilot, run as a user runs them. Slow, few, each with a hard time limit."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest
from browser import check_figures, check_three_dimensions, find_errors, show
from check_accounting import check_accounting
from check_invariants import check_invariants
from check_report import Page, check_report
from check_run import check_run
from conftest import collect_logs
from real_pilot import end_everything, find_processes, read_summary, run_to_end, start

from entk_app.cli import main

pytestmark = [pytest.mark.pilot, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """The default campaign, calpha villin until it folds, in a folder with a space, with a home of its own."""
    folder = tmp_path_factory.mktemp("folded") / "my runs"
    home = folder.parent / "home"
    folder.mkdir()
    home.mkdir()
    finished = run_to_end(["--run-dir", "villin", "--seed", "3"], folder, home)
    return folder, home, finished


def test_the_default_campaign_folds_villin_with_restarts_from_outliers(folded):
    folder, _, finished = folded
    assert finished.returncode == 0, finished.stdout + collect_logs(folder)
    summary = read_summary(folder / "villin")
    assert summary["stop_reason"] == "target_rmsd"
    assert summary["min_rmsd_angstrom"] <= 2.0
    assert summary["n_restarts"] >= 1
    assert summary["n_failed_tasks"] == 0


def test_mdanalysis_confirms_every_trajectory_and_restart(folded):
    counts = check_run(folded[0] / "villin")
    assert counts["segments"] >= 4
    assert counts["restarts"] >= 1


def test_the_account_adds_up_and_agrees_with_the_tasks_own_clocks(folded):
    measured = check_accounting(folded[0] / "villin")
    assert 0.0 < measured["by_records"] <= measured["in_use"] < measured["whole"]


def test_a_control_on_a_pilot_is_compared_with_the_steered_campaign(folded, tmp_path, capsys):
    """Independent simulations of the same seed and slots, for a little longer: censored, unless they fold too."""
    steered = read_summary(folded[0] / "villin")
    limit = f"stop.max_time_us={1.1 * steered['total_time_us']:.9f}"
    ended = run_to_end(["--run-dir", "control", "--seed", "3", "--steering", "none", "--set", limit], tmp_path)
    assert ended.returncode == 0, ended.stdout + collect_logs(tmp_path)
    control = read_summary(tmp_path / "control")
    assert (control["n_restarts"], control["n_purged"], control["n_failed_tasks"]) == (0, 0, 0)
    assert control["stop_reason"] in ("max_time", "target_rmsd")
    assert check_run(tmp_path / "control", every=5)["segments"] == check_invariants(tmp_path / "control")["segments"]
    assert list((tmp_path / "control" / "models").glob("*")) == []

    output = tmp_path / "compared"
    assert main(["compare", str(folded[0] / "villin"), str(tmp_path / "control"), "-o", str(output)]) == 0
    with (output / "compare.csv").open(encoding="utf-8") as stream:
        rows = {row["arm"]: row for row in csv.DictReader(stream)}
    assert (rows["cvae"]["reached"], rows["none"]["reached"]) == ("1", str(int(control["stop_reason"] != "max_time")))
    # One run each: the ratio of their times, a lower bound where the control did not fold.
    ratio = float(rows["none"]["time_us"]) / float(rows["cvae"]["time_us"])
    found = json.loads((output / "compare.json").read_text(encoding="utf-8"))["folding"]["gains"][0]
    assert found["ratio"] == pytest.approx(ratio, rel=1e-6)
    assert f"{ratio:.3g}" in capsys.readouterr().out
    assert all((output / name).stat().st_size > 3000 for name in ("survival.svg", "survival.png"))


def test_nothing_is_left_outside_the_run_folder(folded):
    folder, home, _ = folded
    assert [path.name for path in folder.iterdir()] == ["villin"]
    assert list(home.iterdir()) == []


def test_no_process_is_left(folded):
    assert folded[2].left == {}


def test_radicals_files_and_the_tasks_logs_lie_in_the_run_folder(folded):
    run = folded[0] / "villin"
    assert list((run / "radical").glob("re.session.*/*.prof"))
    assert list((run / "radical").glob("radical.pilot.sandbox/*/pilot.0000"))
    assert list((run / "logs" / "tasks").glob("simulate.*/*.err"))


def test_what_is_printed_off_a_terminal_is_plain_and_short(folded):
    lines = folded[2].stdout.splitlines()
    assert not any("\x1b" in line for line in lines)
    assert lines[0].startswith("entk-app ")
    assert any("stop: folded" in line for line in lines)
    assert lines[-1].startswith("report: ") and Path(lines[-1].removeprefix("report: ")).is_file()
    assert len(lines) < 60


@pytest.fixture(scope="module")
def all_atom(tmp_path_factory):
    """Two iterations of all-atom Fs-peptide, of a few ps."""
    folder = tmp_path_factory.mktemp("fs")
    # 500 K and a wide contact cutoff: in so few ps the maps must differ for outliers to exist.
    finished = run_to_end(
        ["--preset", "fs-peptide-quick", "--run-dir", "fs", "--seed", "5",
         "--set", "simulate.segment_ns=0.008", "--set", "simulate.report_interval_ps=0.1",
         "--set", "steering.min_frames=80", "--set", "steering.window=40", "--set", "simulate.temperature_k=500",
         "--set", "train.epochs=4", "--set", "simulate.contact_cutoff_angstrom=10", "--set", "resource.cores=2"],
        folder,
    )  # fmt: skip
    return folder / "fs", finished


def test_all_atom_fs_peptide_runs_two_iterations_of_a_few_ps(all_atom):
    run, finished = all_atom
    assert finished.returncode == 0, finished.stdout + collect_logs(run.parent)
    summary = read_summary(run)
    assert (summary["stop_reason"], summary["n_iterations"], summary["n_failed_tasks"]) == ("max_iterations", 2, 0)
    assert summary["n_restarts"] >= 1
    for iteration in (1, 2):
        for latent_dim in (3, 4, 5, 6):
            folder = run / "models" / f"iteration-{iteration:04d}" / f"latent-{latent_dim}"
            assert {"encoder.keras", "decoder.keras", "history.csv", "model.json"} <= {p.name for p in folder.iterdir()}
    assert check_run(run)["restarts"] >= 1


@pytest.fixture(scope="module")
def reports(folded, all_atom):
    """The reports that the two campaigns wrote at their end."""
    assert folded[2].returncode == all_atom[1].returncode == 0
    return {"villin-quick": folded[0] / "villin" / "report", "fs-peptide-quick": all_atom[0] / "report"}


@pytest.mark.parametrize("preset", ["villin-quick", "fs-peptide-quick"])
def test_the_report_of_a_run_has_every_figure_and_the_raw_files_numbers(reports, preset):
    folder = reports[preset]
    checked = check_report(folder.parent)
    page = Page(folder / "index.html")
    # A short all-atom campaign folds nothing: there are no such structures.
    assert set(page.missing) <= ({"structure-folded", "structure-partial"} if preset != "villin-quick" else set())
    assert checked["figures"] + len(page.missing) == 20
    assert checked["latent"] > 0 and checked["structures"] >= 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("preset", ["villin-quick", "fs-peptide-quick"])
def test_a_browser_shows_the_report(chromium, reports, preset, width, scheme):
    path = reports[preset] / "index.html"
    show(chromium, path, width, scheme)
    check_figures(chromium, set(Page(path).figures))
    assert check_three_dimensions(chromium) >= 5
    inside, shown, back = chromium.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth,"
        " getComputedStyle(document.body).backgroundColor]"
    )
    assert inside <= shown, "the page scrolls sideways"
    assert (sum(map(int, re.findall(r"\d+", back))) < 384) == (scheme == "dark")
    assert find_errors(chromium) == []


def measure_cpu(pid: int, seconds: float) -> float:
    """The share of a core that a process takes over the next seconds."""
    process = psutil.Process(pid)
    began, before = time.monotonic(), process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / (time.monotonic() - began)


def test_the_launcher_waits_idly_and_an_interrupt_keeps_what_is_finished_and_leaves_no_process(tmp_path):
    run = tmp_path / "run"
    # A target out of reach: eleven seconds may be enough to fold.
    settings = ["--set", "simulate.segment_ns=50", "--set", "stop.target_rmsd_angstrom=0.1"]
    process = start(["--run-dir", "run", *settings], tmp_path)
    try:
        deadline = time.monotonic() + 180
        while not list(run.glob("simulations/*/segment-0000.partial/progress.json")):
            assert process.poll() is None, "the campaign ended by itself\n" + collect_logs(tmp_path)
            assert time.monotonic() < deadline, "no simulation began\n" + collect_logs(tmp_path)
            time.sleep(0.5)
        running = find_processes(tmp_path)
        # The launcher's submission is over, and the simulations outlast this wait on any machine.
        time.sleep(3.0)
        share = measure_cpu(process.pid, 8.0)
        # As a terminal does: to every process of the group.
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=90)
        leftovers = find_processes(tmp_path)
    finally:
        end_everything(process, tmp_path)
    assert any("entk_app.tasks simulate" in command for command in running.values())  # the search does find them
    assert process.returncode == 130, output
    assert leftovers == {}
    # Stock EnTK takes a third to a whole core here. Not a speed: the share is the same on a slow machine.
    assert share < 0.10
    summary = read_summary(run)
    assert summary["stop_reason"] == "interrupted"
    # The tasks saved what they had: shorter segments, whole all the same.
    assert summary["n_frames"] > 0
    check_run(run)


#: As many simulations as a DGX-2 has GPUs, each as small as can be: two cores must run them all.
SMALL_DGX2 = [
    "--resource", "local.dgx2_emulated", "--run-dir", "run", "--seed", "4",
    "--set", "simulate.segment_ns=0.08", "--set", "train.epochs=2", "--set", "steering.min_frames=20",
    "--set", "steering.window=20", "--set", "stop.target_rmsd_angstrom=0.1", "--set", "stop.max_iterations=2",
]  # fmt: skip


def devices_by_iteration(run: Path) -> dict[int, tuple[list[str], list[str]]]:
    """Devices of the simulations and of the trainings of each iteration, from their records."""
    found: dict[int, tuple[list[str], list[str]]] = {}
    for place, pattern in enumerate(("simulations/*/segment-????/segment.json", "models/*/*/model.json")):
        for path in run.glob(pattern):
            record = json.loads(path.read_text(encoding="utf-8"))
            assert record["placement"]["emulated"]
            assert len(record["placement"]["cores"]) == 6
            found.setdefault(record["iteration"], ([], []))[place].append(record["device"])
    return found


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory):
    """A campaign on the emulated DGX-2 whose launcher is killed beside the first trainings, then taken up again."""
    folder = tmp_path_factory.mktemp("dgx2")
    run = folder / "run"
    process = start(SMALL_DGX2, folder)
    try:
        deadline = time.monotonic() + 400
        while not list(run.glob("simulations/*/segment-0001")):
            assert process.poll() is None, "the campaign ended by itself\n" + collect_logs(folder)
            assert time.monotonic() < deadline, "no second segment\n" + collect_logs(folder)
            time.sleep(0.2)
        process.kill()
        process.wait()
        left = find_processes(folder)
        finished = {path: path.read_text() for path in run.glob("simulations/*/segment-????/segment.json")}
        resumed = run_to_end(["--resume", "run"], folder)
    finally:
        end_everything(process, folder)
        process.stdout.close()
    return folder, left, finished, resumed


def test_a_campaign_whose_launcher_was_killed_goes_on(killed_and_resumed):
    folder, left, finished, resumed = killed_and_resumed
    assert left, "nothing outlived the launcher: this tests nothing"
    assert resumed.returncode == 0, resumed.stdout + collect_logs(folder)
    assert resumed.left == {}
    summary = read_summary(folder / "run")
    assert (summary["stop_reason"], summary["n_iterations"], summary["n_failed_tasks"]) == ("max_iterations", 2, 0)
    # What was finished before is as it was.
    assert len(finished) >= 17
    assert {path: path.read_text() for path in finished} == finished
    # What the watchdog let simulations keep was completed: each iteration has all of its frames.
    assert check_run(folder / "run", every=5)["segments"] >= 16 + 12 + 12
    assert summary["n_frames"] == 20 * (16 + 12 + 12)


def test_the_initial_phase_takes_16_devices_then_12_simulate_and_4_learn(killed_and_resumed):
    devices = devices_by_iteration(killed_and_resumed[0] / "run")
    every = sorted(map(str, range(16)))
    assert sorted(devices[1][0]) == every and devices[1][1] == []
    # One pilot ran all of iteration 3; of iteration 2 some was run before the kill and the rest after it.
    assert (len(devices[3][0]), len(devices[3][1])) == (12, 4)
    assert sorted(devices[3][0] + devices[3][1]) == every
    assert len(devices[2][0]) >= 12 and len(devices[2][1]) == 4


def test_both_pilots_of_a_resumed_campaign_are_kept(killed_and_resumed):
    run = killed_and_resumed[0] / "run"
    pilots = [json.loads(line) for line in (run / "pilots.jsonl").read_text().splitlines()]
    assert [pilot["number"] for pilot in pilots] == [0, 1]
    assert all((pilot["cores"], pilot["gpus"], pilot["nodes"]) == (96, 16, 1) for pilot in pilots)
    assert pilots[0]["unix_active"] < pilots[0]["unix_end"] <= pilots[1]["unix_submitted"] < pilots[1]["unix_end"]
    assert list((run / "logs" / "tasks-0001").glob("analyse.*"))
    # Two pilots, one of them killed: the parts still add up, and agree with the tasks' own clocks.
    check_accounting(run)


#: Four GPUs of the emulated node, two simulations each: eight at a time, then six beside a training.
SHARED = [
    "--resource", "local.dgx2_emulated", "--run-dir", "run", "--seed", "6", "--set", "resource.gpus=4",
    "--set", "resource.cores=20", "--set", "resource.sims_per_gpu=2", "--set", "coupling=concurrent",
    "--set", "simulate.segment_ns=0.2", "--set", "train.latent_dims=[3]", "--set", "train.epochs=3",
    "--set", "steering.min_frames=60", "--set", "steering.window=30", "--set", "stop.target_rmsd_angstrom=0.1",
    "--set", "stop.max_iterations=2", "--set", "steering.initial_frames=300",
]  # fmt: skip


def test_two_simulations_share_a_device_and_a_training_has_one_of_its_own(tmp_path):
    run = tmp_path / "run"
    finished = run_to_end(SHARED, tmp_path)
    assert finished.returncode == 0, finished.stdout + collect_logs(tmp_path)
    assert finished.left == {}
    summary = read_summary(run)
    assert (summary["stop_reason"], summary["n_failed_tasks"]) == ("max_iterations", 0)
    segments = [json.loads(path.read_text()) for path in run.glob("simulations/*/segment-????/segment.json")]
    models = [json.loads(path.read_text()) for path in run.glob("models/*/*/model.json")]
    assert {segment["placement"]["sharers"] for segment in segments} == {2}
    assert len(models) == 2 and {model["placement"]["sharers"] for model in models} == {1}
    most: dict[str, int] = {}
    for segment in segments:
        # Segments that were running when this one began, on the same device.
        beside = [s for s in segments if _overlap(s, segment) and s["unix_start"] <= segment["unix_start"]]
        most[segment["device"]] = max(most.get(segment["device"], 0), len(beside))
        cores = [core for s in beside for core in s["placement"]["cores"]]
        assert len(cores) == len(set(cores)), "two that share a device have the same core"
    assert most == {"0": 2, "1": 2, "2": 2, "3": 2}
    for model in models:
        assert len(model["placement"]["cores"]) == 5
        assert not [segment for segment in segments if _overlap(segment, model)]
    check_run(run, every=20)
    check_accounting(run)
    # What the scheduler gave is what the records say, and half a device is half.
    with (run / "accounting" / "tasks.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["unix_started"]]
    assert {row["gpus"] for row in rows if row["kind"] == "simulate"} == {"0.5"}
    assert {row["gpus"] for row in rows if row["kind"] != "simulate"} == {"1"}


def _overlap(one: dict, other: dict) -> bool:
    """Whether two records are of one device at one time."""
    is_same = one["device"] == other["device"]
    return is_same and one["unix_start"] < other["unix_end"] and other["unix_start"] < one["unix_end"]


#: Segments that take longer than an iteration of learning: who is purged is ended within one.
CONCURRENT = [
    "--run-dir", "run", "--seed", "7", "--set", "coupling=concurrent", "--set", "simulate.segment_ns=3",
    "--set", "train.latent_dims=[3]", "--set", "train.epochs=3", "--set", "steering.min_frames=100",
    "--set", "steering.window=50", "--set", "steering.min_restarts=1", "--set", "stop.target_rmsd_angstrom=0.1",
    "--set", "stop.max_iterations=2", "--set", "resource.cores=2",
]  # fmt: skip


def test_simulations_go_on_while_models_train_also_after_a_kill(tmp_path):
    run = tmp_path / "run"
    process = start(CONCURRENT, tmp_path)
    try:
        deadline = time.monotonic() + 300
        while not list(run.glob("models/iteration-0002/*.partial")) and not list(run.glob("models/*/*/model.json")):
            assert process.poll() is None, "the campaign ended by itself\n" + collect_logs(tmp_path)
            assert time.monotonic() < deadline, "no training began\n" + collect_logs(tmp_path)
            time.sleep(0.2)
        process.kill()
        process.wait()
        resumed = run_to_end(["--resume", "run"], tmp_path)
    finally:
        end_everything(process, tmp_path)
        process.stdout.close()
    assert resumed.returncode == 0, resumed.stdout + collect_logs(tmp_path)
    assert resumed.left == {}
    summary = read_summary(run)
    assert (summary["stop_reason"], summary["n_iterations"], summary["n_failed_tasks"]) == ("max_iterations", 2, 0)
    assert check_invariants(run)["restarts"] >= 1
    check_run(run, every=20)
    check_accounting(run)
    segments = [json.loads(path.read_text()) for path in run.glob("simulations/*/segment-????/segment.json")]
    # Purged within its segment, not after it.
    assert any(segment["ended_by"] == "decision" and segment["n_frames"] < 750 for segment in segments)
    for path in run.glob("models/iteration-0003/*/model.json"):
        model = json.loads(path.read_text())
        beside = [s for s in segments if s["unix_start"] < model["unix_end"] and s["unix_end"] > model["unix_start"]]
        assert {segment["iteration"] for segment in beside} >= {3}
        assert not (run / "stop.request").exists()
