"""Real campaigns of RADICAL-EnTK on a local pilot, run as a user runs them. Slow, few, each with a hard time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from check_run import check_run
from conftest import CHECKOUT, collect_logs, end_campaign_processes, run_command

pytestmark = [pytest.mark.pilot, pytest.mark.timeout(900)]


def find_processes(run: Path) -> list[str]:
    """Command lines of living processes that know one of the run's sessions, whoever started them."""
    sessions = [path.name.encode() for path in run.rglob("re.session.*") if path.is_dir()]
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            text = Path(f"/proc/{process.pid}/environ").read_bytes() + " ".join(process.cmdline()).encode()
        except (OSError, psutil.Error):
            continue
        if any(session in text for session in sessions):
            found.append(" ".join(process.cmdline()))
    return found


def read_summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """The default campaign, calpha villin until it folds, in a folder with a space, with a home of its own."""
    folder = tmp_path_factory.mktemp("folded") / "my runs"
    home = folder.parent / "home"
    folder.mkdir()
    home.mkdir()
    launcher_cpu: list[float] = []
    finished = run_and_watch(["--run-dir", "villin", "--seed", "3"], folder, home, launcher_cpu)
    return folder, home, finished, launcher_cpu


def run_and_watch(arguments, cwd, home, launcher_cpu, timeout_s=600):
    """Run the command and note the share of a core that the launching process takes while tasks run."""
    process = subprocess.Popen(
        [sys.executable, str(CHECKOUT / "app.py"), *arguments],
        cwd=cwd,
        env={**os.environ, "HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    watched, run = psutil.Process(process.pid), cwd / "villin"
    began, earlier = time.monotonic(), None
    while process.poll() is None:
        if time.monotonic() - began > timeout_s:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            logs = collect_logs(cwd)
            end_campaign_processes(cwd)
            pytest.fail(f"no end after {timeout_s} s\n{logs}")
        try:
            times = watched.cpu_times()
        except psutil.NoSuchProcess:
            break
        now = (time.monotonic(), times.user + times.system)
        # Trainings are the longest stage: the launcher has nothing to do but wait.
        training = any(run.glob("models/iteration-*/*.task.json")) and not any(run.glob("analysis/*.task.json"))
        if training and earlier is not None and not launcher_cpu:
            if now[0] - earlier[0] > 8.0:
                launcher_cpu.append((now[1] - earlier[1]) / (now[0] - earlier[0]))
        elif training and earlier is None:
            earlier = now
        time.sleep(0.25)
    output = process.communicate()[0]
    return subprocess.CompletedProcess(arguments, process.returncode, output, "")


def test_the_default_campaign_folds_villin_with_restarts_from_outliers(folded):
    folder, _, finished, _ = folded
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


def test_nothing_is_left_outside_the_run_folder(folded):
    folder, home, _, _ = folded
    assert [path.name for path in folder.iterdir()] == ["villin"]
    assert list(home.iterdir()) == []


def test_no_process_is_left(folded):
    assert find_processes(folded[0] / "villin") == []


def test_radicals_files_and_the_tasks_logs_lie_in_the_run_folder(folded):
    run = folded[0] / "villin"
    assert list((run / "radical").glob("re.session.*/*.prof"))
    assert list((run / "radical").glob("radical.pilot.sandbox/*/pilot.0000"))
    assert list((run / "logs" / "tasks").glob("simulate.*/*.err"))


def test_the_launcher_uses_little_cpu_while_tasks_run(folded):
    # Stock EnTK takes a third to a whole core here. Not a speed: the share is the same on a slow machine.
    assert folded[3], "no training stage was long enough to measure"
    assert folded[3][0] < 0.10


def test_what_is_printed_off_a_terminal_is_plain_and_short(folded):
    lines = folded[2].stdout.splitlines()
    assert not any("\x1b" in line for line in lines)
    assert lines[0].startswith("entk-app ")
    assert any("stop: folded" in line for line in lines)
    assert len(lines) < 60


def test_all_atom_fs_peptide_runs_two_iterations_of_a_few_ps(tmp_path):
    # 500 K and a wide contact cutoff: in so few ps the maps must differ for outliers to exist.
    finished = run_command(
        ["--preset", "fs-peptide-quick", "--run-dir", "fs", "--seed", "5",
         "--set", "simulate.segment_ns=0.008", "--set", "simulate.report_interval_ps=0.1",
         "--set", "steering.min_frames=80", "--set", "steering.window=40", "--set", "simulate.temperature_k=500",
         "--set", "train.epochs=4", "--set", "simulate.contact_cutoff_angstrom=10", "--set", "resource.cores=2"],
        tmp_path, timeout_s=600,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + collect_logs(tmp_path)
    run = tmp_path / "fs"
    summary = read_summary(run)
    assert (summary["stop_reason"], summary["n_iterations"], summary["n_failed_tasks"]) == ("max_iterations", 2, 0)
    assert summary["n_restarts"] >= 1
    for iteration in (1, 2):
        for latent_dim in (3, 4, 5, 6):
            folder = run / "models" / f"iteration-{iteration:04d}" / f"latent-{latent_dim}"
            assert {"encoder.keras", "decoder.keras", "history.csv", "model.json"} <= {p.name for p in folder.iterdir()}
    assert check_run(run)["restarts"] >= 1


def test_an_interrupt_keeps_what_is_finished_and_leaves_no_process(tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(CHECKOUT / "app.py"), "--run-dir", "run", "--set", "simulate.segment_ns=50"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    run = tmp_path / "run"
    try:
        deadline = time.monotonic() + 180
        while not list(run.glob("simulations/*/segment-0000.partial/progress.json")):
            assert process.poll() is None, "the campaign ended by itself\n" + collect_logs(tmp_path)
            assert time.monotonic() < deadline, "no simulation began\n" + collect_logs(tmp_path)
            time.sleep(0.5)
        running = find_processes(run)
        # As a terminal does: to every process of the group.
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        leftovers = find_processes(run)
        end_campaign_processes(tmp_path)
    assert any("entk_app.tasks simulate" in command for command in running)  # the search does find them
    assert process.returncode == 130, output
    assert leftovers == []
    summary = read_summary(run)
    assert summary["stop_reason"] == "interrupted"
    # The tasks saved what they had: shorter segments, whole all the same.
    assert summary["n_frames"] > 0
    check_run(run)
