"""The throw-away Slurm itself: what the tests of job scripts and pilots rely on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import conftest
import psutil
import pytest
import throwaway_slurm
from throwaway_slurm import SlurmUnavailable, ThrowawaySlurm, check_available

pytestmark = pytest.mark.timeout(240)


def write_script(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["#!/bin/bash", *lines, ""]), encoding="utf-8")
    return str(path)


def find_processes_of(folder: str) -> list[int]:
    """Processes with this cluster's configuration in their environment: daemons, jobs and their children."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            variables = process.environ()
            if variables.get("SLURM_CONF", "").startswith(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def test_a_job_with_two_gpus_sees_two_devices(slurm: ThrowawaySlurm, tmp_path: Path):
    script = write_script(tmp_path / "job.sh", 'echo "$CUDA_VISIBLE_DEVICES"')
    record = slurm.wait_for(slurm.submit("--gres=gpu:2", f"--output={tmp_path}/out", script))
    assert record["JobState"] == "COMPLETED", slurm.logs()
    assert (tmp_path / "out").read_text().strip() == "0,1"


def test_sixteen_steps_at_a_time_get_a_device_each(slurm: ThrowawaySlurm, tmp_path: Path):
    # Each step waits until all sixteen have said which device is theirs: they do run at the same time.
    step = write_script(
        tmp_path / "step.sh",
        f"cd {tmp_path}",
        'touch "device-$CUDA_VISIBLE_DEVICES"',
        "until [ $(ls device-* | wc -l) = 16 ]; do sleep 0.2; done",
    )
    script = write_script(
        tmp_path / "job.sh",
        f"for i in {{1..16}}; do srun --exact -n1 -c6 --gres=gpu:1 bash {step} & done",
        "wait",
    )
    number = slurm.submit("-N1", "--exclusive", "--gres=gpu:16", f"--output={tmp_path}/out", script)
    try:
        record = slurm.wait_for(number, timeout_s=60)
    finally:
        slurm.run("scancel", str(number))
    assert record["JobState"] == "COMPLETED", (tmp_path / "out").read_text()
    assert {path.name for path in tmp_path.glob("device-*")} == {f"device-{number}" for number in range(16)}


def test_the_scheduler_cuts_a_job_off_at_its_end(slurm: ThrowawaySlurm, tmp_path: Path):
    script = write_script(tmp_path / "job.sh", "sleep 1000")
    number = slurm.submit("--time=10", f"--output={tmp_path}/out", script)
    slurm.wait_for(number, ("RUNNING",))
    slurm.end_in(number, 2)
    assert slurm.wait_for(number, timeout_s=60)["JobState"] == "TIMEOUT"


def test_a_job_of_two_nodes_runs_on_both(two_node_slurm: ThrowawaySlurm, tmp_path: Path):
    script = write_script(tmp_path / "job.sh", "srun bash -c 'echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES'")
    record = two_node_slurm.wait_for(
        two_node_slurm.submit("-N2", "--ntasks-per-node=1", "--gres=gpu:2", f"--output={tmp_path}/out", script)
    )
    assert record["JobState"] == "COMPLETED", two_node_slurm.logs()
    assert sorted((tmp_path / "out").read_text().split("\n")) == ["", "node1 0,1", "node2 0,1"]


def test_nothing_of_a_cluster_outlives_the_sudden_death_of_its_user(slurm: ThrowawaySlurm, tmp_path: Path):
    job = write_script(tmp_path / "job.sh", "setsid sleep 1000 &", "sleep 1000")
    user = (
        "import time; from throwaway_slurm import ThrowawaySlurm\n"
        "with ThrowawaySlurm.started() as slurm:\n"
        f"    slurm.wait_for(slurm.submit('--output=/dev/null', {job!r}), ('RUNNING',))\n"
        "    time.sleep(1)\n"
        "    print(slurm.folder, flush=True)\n"
        "    time.sleep(1000)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", user],
        env={**os.environ, "PYTHONPATH": str(Path(throwaway_slurm.__file__).parent)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        folder = process.stdout.readline().strip()
        assert folder, "the cluster did not start"
        assert len(find_processes_of(folder)) >= 6
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    deadline = time.monotonic() + 15
    while (left := find_processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
    assert not Path(folder).exists()


def test_without_the_programs_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(throwaway_slurm, "_DAEMON_PATH", "/nowhere")
    with pytest.raises(SlurmUnavailable, match="not installed: munged, slurmctld"):
        check_available()


def test_without_root_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(throwaway_slurm.shutil, "which", lambda name, path: name)
    monkeypatch.setattr(throwaway_slurm.os, "geteuid", lambda: 1000)
    with pytest.raises(SlurmUnavailable, match="root"):
        check_available()


def test_tests_skip_with_the_reason_but_fail_where_slurm_is_required(monkeypatch):
    monkeypatch.setattr(throwaway_slurm, "_DAEMON_PATH", "/nowhere")
    monkeypatch.delenv("ENTK_APP_REQUIRE_SLURM", raising=False)
    with pytest.raises(pytest.skip.Exception, match="not installed"), conftest._slurm_or_skip(1):
        pass
    monkeypatch.setenv("ENTK_APP_REQUIRE_SLURM", "1")
    with pytest.raises(SlurmUnavailable, match="not installed"), conftest._slurm_or_skip(1):
        pass
