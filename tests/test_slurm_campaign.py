"""Real campaigns through a real Slurm: inside its jobs, cut off and followed, and with a queued pilot."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from check_accounting import check_accounting
from check_run import check_run
from conftest import CHECKOUT, collect_logs
from real_pilot import find_processes, read_summary, run_to_end
from throwaway_slurm import SlurmError

pytestmark = [pytest.mark.pilot, pytest.mark.timeout(900)]

#: Campaigns of four slots, 3 simulations and a training at a time. GPUs are null devices: tasks run on the CPU.
TINY = [
    "--seed", "4",
    *(part for value in (
        "resource.require_gpu=false", "simulate.segment_ns=0.08", "train.epochs=2", "train.latent_dims=[3]",
        "train.retrain=always",
        "steering.min_frames=20", "steering.window=20", "stop.target_rmsd_angstrom=0.1", "stop.max_iterations=3",
    ) for part in ("--set", value)),
]  # fmt: skip

#: Of a node that has more.
FOUR_GPUS = ["--set", "resource.cores=24", "--set", "resource.gpus=4"]


def read_devices(run: Path, iteration: int) -> list[tuple[str, str]]:
    """Node and device of every simulation and training of an iteration."""
    records = [*run.glob("simulations/*/segment-????/segment.json"), *run.glob("models/*/*/model.json")]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in records]
    return sorted(
        (record["placement"]["host"], record["device"]) for record in found if record["iteration"] == iteration
    )


def read_analyses(run: Path) -> list[Path]:
    return list(run.glob("analysis/iteration-000[34].json"))


def check_finished(run: Path) -> dict:
    summary = read_summary(run)
    assert (summary["stop_reason"], summary["n_iterations"], summary["n_failed_tasks"]) == ("max_iterations", 3, 0)
    assert check_run(run)["segments"] == 4 + 3 + 3 + 3
    # Four steps at a time, each with a device that Slurm gave it and nobody else.
    assert len(set(read_devices(run, 1))) == 4
    for iteration in (3, 4):
        assert len(set(read_devices(run, iteration))) == 4
    return summary


def test_a_campaign_cut_off_by_its_jobs_limit_finishes_in_the_next_job(slurm, tmp_path):
    run = tmp_path / "run"
    environment = {**os.environ, "ENTK_APP_PYTHON": sys.executable, "ENTK_APP_RUN": str(run), "ENTK_APP_JOBS": "4"}
    output = f"--output={tmp_path}/job-%j.out"
    job = slurm.submit(output, "jobs/slurm.sh", *TINY, *FOUR_GPUS, environment=environment, folder=CHECKOUT)
    deadline = time.monotonic() + 300
    # The first simulations are done, the first training is not: in the middle of its work.
    while not list(run.glob("models/*/*.task.json")):
        assert time.monotonic() < deadline, slurm.queue() + collect_logs(tmp_path)
        time.sleep(0.5)
    slurm.end_in(job, 1)
    # Killed by Slurm, or just in time by the launcher, which learns of it when Slurm refuses its steps.
    slurm.wait_for(job, states=("TIMEOUT", "COMPLETED"), timeout_s=120)
    assert not read_analyses(run), "it came to an end before the limit: nothing was cut off"
    successor = job + 1
    try:
        slurm.wait_for(successor, states=("COMPLETED",), timeout_s=300)
    except SlurmError as error:
        pytest.fail(f"{error}\n{collect_logs(tmp_path)}")
    check_finished(run)
    # The successor of the last job was cancelled: there is nothing left to do.
    slurm.wait_until(lambda: not slurm.jobs(), timeout_s=60)
    pilots = [json.loads(line) for line in (run / "pilots.jsonl").read_text().splitlines()]
    assert [pilot["resource"] for pilot in pilots] == ["slurm.cluster"] * 2
    check_accounting(run)


def test_a_pilot_queued_from_a_login_node_runs_a_campaign_on_two_nodes(two_node_slurm, tmp_path, monkeypatch):
    slurm = two_node_slurm
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    shape = ["resource.nodes=2", "resource.cores_per_node=12", "resource.gpus_per_node=2", "resource.walltime_min=10"]
    arguments = [*TINY, "--resource", "slurm.cluster", "--run-dir", "run", "--submit"]
    arguments += [part for value in shape for part in ("--set", value)]
    seen = []

    def watch(pid):
        seen.extend(() if seen else slurm.jobs())

    finished = run_to_end(arguments, tmp_path, timeout_s=400, watch=watch)
    assert finished.returncode == 0, finished.stdout + collect_logs(tmp_path)
    assert seen, "there was never a job in the queue"
    assert finished.left == find_processes(tmp_path) == {}
    run = tmp_path / "run"
    check_finished(run)
    for iteration in (1, 3, 4):
        assert {node for node, _ in read_devices(run, iteration)} == set(slurm.nodes)
    pilot = json.loads((run / "pilots.jsonl").read_text())
    assert (pilot["nodes"], pilot["gpus"]) == (2, 4)
    assert pilot["queued"] and pilot["unix_submitted"] < pilot["unix_began"] < pilot["unix_active"]
    # Its time began with its job, not when that was queued.
    limit = json.loads((run / "deadline.json").read_text())
    assert limit["end_by_unix"] == pytest.approx(pilot["unix_began"] + 600 - 60, abs=2)
    slurm.wait_until(lambda: not slurm.jobs(), timeout_s=60)
    check_accounting(run)


def test_the_dgx2_script_runs_a_campaign_in_its_job(slurm, tmp_path):
    run = tmp_path / "run"
    environment = {**os.environ, "ENTK_APP_PYTHON": sys.executable, "ENTK_APP_RUN": str(run)}
    # The resource is the script's: RADICAL-Pilot forks the tasks and gives each its device.
    options = [*TINY, *FOUR_GPUS, "--set", "stop.max_iterations=1"]
    output = f"--output={tmp_path}/job-%j.out"
    job = slurm.submit(output, "jobs/dgx2.sh", *options, environment=environment, folder=CHECKOUT)
    try:
        slurm.wait_for(job, states=("COMPLETED",), timeout_s=300)
    except SlurmError as error:
        pytest.fail(f"{error}\n{collect_logs(tmp_path)}")
    slurm.wait_until(lambda: not slurm.jobs(), timeout_s=60)
    summary = read_summary(run)
    assert (summary["stop_reason"], summary["n_iterations"], summary["n_failed_tasks"]) == ("max_iterations", 1, 0)
    assert read_devices(run, 1) == read_devices(run, 2) == [(slurm.nodes[0], str(device)) for device in range(4)]
