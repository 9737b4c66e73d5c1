"""Batch scripts: their text, and the logic of their chain with a stub in the launcher's place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CHECKOUT
from throwaway_slurm import ThrowawaySlurm

from entk_app.errors import SettingsError
from entk_app.jobs import COMMITTED, JobRequest, render_job

pytestmark = pytest.mark.timeout(240)

VARIANTS = {
    **COMMITTED,
    "two-nodes": JobRequest(label="x.y", nodes=2, cores_per_node=48, threads_per_core=2, gpus_per_node=16),
    **{
        f"generated-{scheduler}": JobRequest(
            scheduler=scheduler,
            gpus_per_node=0,
            walltime_min=90,
            queue="debug",
            project="p1",
            options=("--config", "it's mine.yaml", "--set", "train.latent_dims=[3,4]"),
            path="/a b/job.sh",
            folder="/a 'b'",
            python="/it's v}/python",
        )
        for scheduler in ("slurm", "pbs", "lsf")
    },
}

#: In the launcher's place: does in turn what the file `plan` says, and notes what it was called with.
STUB = """#!{python}
import json, os, pathlib, signal, sys, time
here = pathlib.Path(__file__).parent
if sys.argv[3] == "finished":
    run = pathlib.Path(sys.argv[4])
    print("pilot_lost: its agent ended unasked" if (run / "lost").exists() else "it was cut off")
    sys.exit(0 if (run / "over").exists() else 1)
run = pathlib.Path(sys.argv[sys.argv.index("--resume" if "--resume" in sys.argv else "--run-dir") + 1])
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
todo = (here / "plan").read_text().split()
(here / "plan").write_text(" ".join(todo[1:]))
if todo[0] != "refuse":
    run.mkdir(parents=True, exist_ok=True)
    (run / "settings.yaml").touch()
def save(*_):
    time.sleep(1)
    (run / "saved").touch()
    sys.exit(130)
if todo[0] == "hang":
    signal.signal(signal.SIGTERM, save)
    (run / "hangs").touch()
    time.sleep(1000)
elif todo[0] == "killed":
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
elif todo[0] == "target":
    (run / "over").touch()
elif todo[0] == "lost":
    (run / "lost").touch()
sys.exit({{"failed": 1, "refuse": 2, "lost": 1}}.get(todo[0], 0))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the committed job scripts and a stub instead of the environment's Python."""
    shutil.copytree(CHECKOUT / "jobs", tmp_path / "jobs")
    stub = tmp_path / ".venv" / "bin" / "python"
    stub.parent.mkdir(parents=True)
    stub.write_text(STUB.format(python=sys.executable), encoding="utf-8")
    stub.chmod(0o755)
    return tmp_path


def plan(checkout: Path, *words: str) -> None:
    (checkout / ".venv" / "bin" / "plan").write_text(" ".join(words), encoding="utf-8")


def read_calls(checkout: Path) -> list[list[str]]:
    calls = checkout / ".venv" / "bin" / "calls"
    return [json.loads(line) for line in calls.read_text(encoding="utf-8").splitlines()] if calls.exists() else []


# The text


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_script_is_what_the_generator_writes(name: str):
    path = CHECKOUT / "jobs" / name
    assert path.read_text(encoding="utf-8") == render_job(COMMITTED[name])
    assert os.access(path, os.X_OK)


@pytest.mark.parametrize("name", VARIANTS)
def test_bash_finds_no_fault(name: str):
    checked = subprocess.run(
        ["bash", "-n"], input=render_job(VARIANTS[name]), text=True, check=False, timeout=30, capture_output=True
    )
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("name", [*VARIANTS, "local.sh"])
def test_shellcheck_finds_no_fault(name: str):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    text = render_job(VARIANTS[name]) if name in VARIANTS else (CHECKOUT / "jobs" / name).read_text(encoding="utf-8")
    done = subprocess.run(["shellcheck", "-"], input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def directives(request: JobRequest) -> list[str]:
    return [line for line in render_job(request).splitlines() if line.startswith(("#SBATCH", "#PBS", "#BSUB"))]


def test_slurm_is_asked_for_whole_nodes_with_their_gpus():
    assert directives(JobRequest(nodes=2, gpus_per_node=16, walltime_min=90, queue="debug", project="p1")) == [
        "#SBATCH --job-name=entk-app", "#SBATCH --nodes=2", "#SBATCH --exclusive", "#SBATCH --gres=gpu:16",
        "#SBATCH --time=90", "#SBATCH --no-requeue", "#SBATCH --partition=debug", "#SBATCH --account=p1",
    ]  # fmt: skip


def test_pbs_is_asked_for_whole_nodes_with_their_gpus():
    asked = directives(replace(VARIANTS["two-nodes"], scheduler="pbs", walltime_min=90))
    assert "#PBS -l select=2:ncpus=96:ngpus=16" in asked
    assert "#PBS -l walltime=01:30:00" in asked


def test_lsf_is_asked_for_all_slots_of_its_nodes():
    asked = directives(replace(VARIANTS["two-nodes"], scheduler="lsf", walltime_min=65))
    expected = ["#BSUB -n 96", '#BSUB -R "span[ptile=48]"', "#BSUB -x", '#BSUB -gpu "num=16"', "#BSUB -W 1:05"]
    assert asked[1:6] == expected


def test_without_gpus_none_are_asked_for():
    assert not [
        line for name in ("slurm", "pbs", "lsf") for line in directives(VARIANTS[f"generated-{name}"]) if "gpu" in line
    ]


@pytest.mark.parametrize(
    ("name", "value"), [("nodes", 0), ("cores_per_node", 0), ("gpus_per_node", -1), ("walltime_min", 1)]
)
def test_a_job_of_nothing_is_refused(name: str, value: int):
    with pytest.raises(SettingsError, match=name):
        replace(JobRequest(), **{name: value})


# Slurm


def submit(slurm: ThrowawaySlurm, checkout: Path, *options: str, script: str = "jobs/dgx2.sh", **variables: str) -> int:
    environment = {**os.environ, **variables}
    return slurm.submit(str(checkout / script), *options, folder=checkout, environment=environment)


def follow(slurm: ThrowawaySlurm, first: int) -> list[str]:
    """States of a chain's jobs, once nothing of it waits or runs."""
    number, states = first, []
    while number in (known := slurm.jobs(ended=True)):
        states.append(slurm.wait_for(number, timeout_s=60)["JobState"])
        number += 1
    assert max(known) < number
    return states


@pytest.mark.parametrize("name", ["slurm.sh", "dgx2.sh"])
def test_slurm_accepts_what_a_committed_script_asks_for(slurm, checkout, name):
    # It raises where Slurm refuses; a test queues nothing.
    assert slurm.run("sbatch", "--test-only", f"jobs/{name}", folder=checkout) == ""
    assert slurm.jobs() == []


def test_a_written_script_runs_from_anywhere_in_a_folder_with_spaces_and_quotes(slurm, checkout, tmp_path_factory):
    folder = checkout.rename(tmp_path_factory.mktemp("moved") / "it's here")
    plan(folder, "walltime", "target")
    request = JobRequest(
        options=("--config", "it's mine.yaml"), folder=str(folder), python=str(folder / ".venv" / "bin" / "python")
    )
    script = folder / "my job.sh"
    script.write_text(render_job(request), encoding="utf-8")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    first = slurm.submit(str(script), folder=elsewhere)
    assert follow(slurm, first) == ["COMPLETED", "COMPLETED", "CANCELLED"]
    run = f"runs/slurm-{first}"
    assert (folder / run / "over").exists()
    assert read_calls(folder) == [
        ["-m", "entk_app", "run", "--resource", "local.localhost", "--config", "it's mine.yaml", "--run-dir", run],
        ["-m", "entk_app", "run", "--resume", run],
    ]


def test_a_campaign_cut_off_by_its_jobs_limit_goes_on_in_the_next_job(slurm, checkout):
    plan(checkout, "hang", "target")
    first = submit(slurm, checkout, "--preset", "villin-quick", "--set", "train.latent_dims=[3, 4]")
    run = checkout / "runs" / f"slurm-{first}"
    slurm.wait_for(first, ("RUNNING",))
    slurm.wait_until((run / "hangs").exists)
    slurm.end_in(first, 1)
    assert follow(slurm, first) == ["TIMEOUT", "COMPLETED", "CANCELLED"], slurm.logs()
    # The launcher was given time to save although the whole job had its SIGTERM.
    assert (run / "saved").exists()
    name = f"runs/slurm-{first}"
    assert read_calls(checkout) == [
        ["-m", "entk_app", "run", "--resource", "ornl.dgx2", "--run-dir", name, "--preset", "villin-quick",
         "--set", "train.latent_dims=[3, 4]"],
        ["-m", "entk_app", "run", "--resume", name],
    ]  # fmt: skip


def test_a_job_that_is_killed_hard_is_followed_too(slurm, checkout):
    plan(checkout, "killed", "walltime", "target")
    states = follow(slurm, submit(slurm, checkout))
    assert states == ["FAILED", "COMPLETED", "COMPLETED", "CANCELLED"]
    assert [call[3] for call in read_calls(checkout)] == ["--resource", "--resume", "--resume"]


@pytest.mark.parametrize("word", ["failed", "refuse"])
def test_nothing_follows_a_failure(slurm, checkout, word):
    plan(checkout, word)
    assert follow(slurm, submit(slurm, checkout)) == ["FAILED", "CANCELLED"]
    assert len(read_calls(checkout)) == 1


def test_a_chain_has_no_more_jobs_than_allowed(slurm, checkout):
    plan(checkout, "walltime", "walltime", "walltime", "walltime")
    assert follow(slurm, submit(slurm, checkout, ENTK_APP_JOBS="3")) == ["COMPLETED"] * 3
    assert len(read_calls(checkout)) == 3


def test_a_chain_takes_up_the_run_that_it_is_given(slurm, checkout):
    (checkout / "runs" / "mine").mkdir(parents=True)
    (checkout / "runs" / "mine" / "settings.yaml").touch()
    plan(checkout, "target")
    assert follow(slurm, submit(slurm, checkout, ENTK_APP_RUN="runs/mine")) == ["COMPLETED", "CANCELLED"]
    assert read_calls(checkout) == [["-m", "entk_app", "run", "--resume", "runs/mine"]]


def test_a_job_without_its_python_queues_nothing(slurm, checkout):
    (checkout / ".venv" / "bin" / "python").unlink()
    number = submit(slurm, checkout)
    assert follow(slurm, number) == ["FAILED"]
    assert "no .venv/bin/python" in (checkout / f"slurm-{number}.out").read_text(encoding="utf-8")


# PBS and LSF, with commands that only note what they are called with


@pytest.fixture
def commands(checkout: Path) -> Path:
    """A folder for PATH with qsub, qdel, bsub and bkill; what they were called with goes to the file `called`."""
    folder = checkout / "commands"
    folder.mkdir()
    answers = {"qsub": "8.server", "bsub": "Job <8> is submitted to default queue <normal>.", "qdel": "", "bkill": ""}
    for name, answer in answers.items():
        script = folder / name
        lines = [
            "#!/bin/bash",
            f'echo "{name} $*" >> {folder}/called',
            f'echo "run=$ENTK_APP_RUN jobs=$ENTK_APP_JOBS options=$ENTK_APP_OPTIONS" >> {folder}/called',
            f"[ {name} != bsub ] || cat > {folder}/stdin",
            f'echo "{answer}"',
        ]
        script.write_text("\n".join(lines) + "\n", encoding="utf-8")
        script.chmod(0o755)
    return folder


def run_job(checkout: Path, scheduler: str, **variables: str) -> int:
    own = {
        "pbs": {"PBS_JOBID": "7.server", "PBS_O_WORKDIR": str(checkout)},
        "lsf": {"LSB_JOBID": "7", "LS_SUBCWD": str(checkout)},
    }[scheduler]
    environment = {"PATH": f"{checkout / 'commands'}:{os.environ['PATH']}", "HOME": str(checkout), **own, **variables}
    # As a scheduler does: a copy of the script, in another folder.
    copy = shutil.copy(checkout / "jobs" / f"{scheduler}.sh", checkout / "copy")
    return subprocess.run(["bash", copy], cwd="/", env=environment, timeout=60, check=False).returncode


SUBMITTED = {
    "pbs": "qsub -v ENTK_APP_PYTHON,ENTK_APP_RUN,ENTK_APP_JOBS,ENTK_APP_OPTIONS "
    "-W depend=afterany:7.server jobs/pbs.sh",
    "lsf": "bsub -w ended(7)",
}
CANCELLED = {"pbs": "qdel 8.server", "lsf": "bkill 8"}


@pytest.mark.parametrize("scheduler", ["pbs", "lsf"])
def test_the_successor_is_queued_and_cancelled_at_the_end(checkout, commands, scheduler):
    plan(checkout, "target")
    assert run_job(checkout, scheduler, ENTK_APP_OPTIONS="--preset bba --set train.latent_dims=[3,4]") == 0
    handed = f"run=runs/{scheduler}-7 jobs=19 options=--preset bba --set train.latent_dims=[3,4]"
    called = (commands / "called").read_text(encoding="utf-8").splitlines()
    assert called == [SUBMITTED[scheduler], handed, CANCELLED[scheduler], handed]
    assert read_calls(checkout) == [
        ["-m", "entk_app", "run", "--resource", "local.localhost", "--run-dir", f"runs/{scheduler}-7",
         "--preset", "bba", "--set", "train.latent_dims=[3,4]", "--set", "resource.walltime_min=59"]
    ]  # fmt: skip
    if scheduler == "lsf":
        assert (commands / "stdin").read_text(encoding="utf-8") == render_job(COMMITTED["lsf.sh"])


@pytest.mark.parametrize("scheduler", ["pbs", "lsf"])
def test_the_successor_stays_after_the_walltime_and_resumes(checkout, commands, scheduler):
    plan(checkout, "walltime", "failed")
    assert run_job(checkout, scheduler) == 0
    assert CANCELLED[scheduler] not in (commands / "called").read_text(encoding="utf-8")
    assert run_job(checkout, scheduler, ENTK_APP_RUN=f"runs/{scheduler}-7", ENTK_APP_JOBS="19") == 1
    assert CANCELLED[scheduler] in (commands / "called").read_text(encoding="utf-8")
    assert read_calls(checkout)[1] == [
        "-m", "entk_app", "run", "--resume", f"runs/{scheduler}-7", "--set", "resource.walltime_min=59",
    ]  # fmt: skip


@pytest.mark.parametrize("scheduler", ["pbs", "lsf"])
def test_the_successor_stays_after_a_lost_pilot(checkout, commands, scheduler):
    # Exit code 1 as after a failure, after which nothing follows.
    plan(checkout, "lost")
    assert run_job(checkout, scheduler) == 1
    assert CANCELLED[scheduler] not in (commands / "called").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheduler", ["pbs", "lsf"])
def test_the_last_job_of_a_chain_queues_none(checkout, commands, scheduler):
    plan(checkout, "walltime")
    assert run_job(checkout, scheduler, ENTK_APP_JOBS="1") == 0
    assert not (commands / "called").exists()
