"""Batch scripts: what was asked for in, the text of a script out. ``jobs/`` holds what it writes by default.

All scripts share one logic. The first thing a job does is to queue its successor, dependent on its own end, so that a
job that is killed in whatever way is followed by one that resumes; the last thing, if it gets there, is to cancel that
successor when nothing is left to do. ``ENTK_APP_RUN`` (the run folder) and ``ENTK_APP_JOBS`` (how many jobs there may
be, this one included) are handed from job to job.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from entk_app.errors import SettingsError
from entk_app.resources import Resource

Scheduler = Literal["slurm", "pbs", "lsf"]


@dataclass(frozen=True)
class JobRequest:
    """What a batch script is written for.

    Attributes
    ----------
    label : str
        Resource that the launcher takes inside the allocation.
    scheduler : {'slurm', 'pbs', 'lsf'}
    nodes : int
    cores_per_node, threads_per_core : int
        Cores, and hardware threads of each. Slurm's jobs take whole nodes and need neither.
    gpus_per_node : int
    walltime_min : int
        Of each job, at least 2.
    queue, project : str or None
    options : tuple of str
        Of ``entk-app run``.
    path : str
        Where the script will stand: relative to the checkout, or absolute.
    folder : str or None
        Checkout; None: where the job was submitted.
    python : str or None
        Interpreter; None: what ``ENTK_APP_PYTHON`` says, else ``.venv/bin/python`` in the checkout.
    """

    label: str = "local.localhost"
    scheduler: Scheduler = "slurm"
    nodes: int = 1
    cores_per_node: int = 32
    threads_per_core: int = 1
    gpus_per_node: int = 4
    walltime_min: int = 60
    queue: str | None = None
    project: str | None = None
    options: tuple[str, ...] = ()
    path: str = "jobs/slurm.sh"
    folder: str | None = None
    python: str | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("nodes", 1),
            ("cores_per_node", 1),
            ("threads_per_core", 1),
            ("gpus_per_node", 0),
            ("walltime_min", 2),
        ):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} = {getattr(self, name)}: a batch job needs at least {least}")

    @property
    def threads_per_node(self) -> int:
        return self.cores_per_node * self.threads_per_core


#: The scripts in ``jobs/``.
COMMITTED = {
    "slurm.sh": JobRequest(label="slurm.cluster"),
    "dgx2.sh": JobRequest(
        label="ornl.dgx2", cores_per_node=48, threads_per_core=2, gpus_per_node=16, path="jobs/dgx2.sh"
    ),
    "pbs.sh": JobRequest(scheduler="pbs", path="jobs/pbs.sh"),
    "lsf.sh": JobRequest(scheduler="lsf", path="jobs/lsf.sh"),
}


def build_request(
    resource: Resource,
    *,
    scheduler: Scheduler | None = None,
    output: Path | None = None,
    walltime_min: int = 60,
    queue: str | None = None,
    project: str | None = None,
    options: tuple[str, ...] = (),
) -> JobRequest:
    """A request for nodes of a resource, from this folder and with this Python.

    Parameters
    ----------
    resource : Resource
    scheduler : {'slurm', 'pbs', 'lsf'}, optional
        Default: as the resource's entry says, else Slurm.
    output : Path, optional
        Absolute name of the script.
    walltime_min, queue, project, options
        As in `JobRequest`.

    Raises
    ------
    SettingsError
        There is no `output` and the scheduler's jobs find their script only by its name; a number is too small; the
        resource's scheduler is none of the three.
    """
    named = scheduler or resource.scheduler or "slurm"
    if named not in get_args(Scheduler):
        raise SettingsError(f"{resource.label}: no batch script is known for {named}; see --scheduler")
    if output is None and named != "slurm":
        raise SettingsError(f"--output: a job under {named} queues the next one from its file: say where that will be")
    cores = int(resource.entry.get("cores_per_node") or 0) or resource.node_cores
    return JobRequest(
        label=resource.label,
        scheduler=cast(Scheduler, named),
        nodes=resource.nodes,
        cores_per_node=cores,
        threads_per_core=resource.node_cores // cores,
        gpus_per_node=resource.node_gpus,
        walltime_min=walltime_min,
        queue=queue,
        project=project,
        options=options,
        path="FILE" if output is None else str(output),
        folder=str(Path.cwd()),
        python=sys.executable,
    )


@dataclass(frozen=True)
class _Dialect:
    """How one scheduler says it, in lines of shell; ``{path}`` is the script's own.

    ``arguments`` are lines that make script arguments of what a user can hand to this scheduler; with ``knows_end`` the
    launcher finds out by itself when its job ends.
    """

    title: str
    prefix: str
    usage: str
    folder: str
    job_id: str
    arguments: tuple[str, ...]
    submit: str
    cancel: str
    knows_end: bool


_OPTIONS_FROM_VARIABLE = (
    "# shellcheck disable=SC2086 # Words on purpose: a job's script gets no arguments here.",
    "set -- ${ENTK_APP_OPTIONS:=}",
    "export ENTK_APP_OPTIONS",
)

_DIALECTS = {
    "slurm": _Dialect(
        title="Slurm",
        prefix="#SBATCH ",
        usage="sbatch {path} [options of app.py]",
        folder='"$SLURM_SUBMIT_DIR"',
        job_id="$SLURM_JOB_ID",
        arguments=(),
        # $0 is Slurm's own copy: a chain goes on with the script that it began with.
        submit='next=$(sbatch --parsable --export=ALL --dependency="afterany:$SLURM_JOB_ID" "$0" "$@")',
        cancel='scancel "${next%;*}"',
        knows_end=True,
    ),
    "pbs": _Dialect(
        title="PBS",
        prefix="#PBS ",
        usage="ENTK_APP_OPTIONS='options of app.py' qsub -v ENTK_APP_OPTIONS {path}",
        folder='"$PBS_O_WORKDIR"',
        job_id="${PBS_JOBID%%.*}",
        arguments=_OPTIONS_FROM_VARIABLE,
        submit='next=$(qsub -v "$handed" -W depend="afterany:$PBS_JOBID" {path})',
        cancel='qdel "$next"',
        knows_end=False,
    ),
    "lsf": _Dialect(
        title="LSF",
        prefix="#BSUB ",
        usage="ENTK_APP_OPTIONS='options of app.py' bsub < {path}",
        folder='"$LS_SUBCWD"',
        job_id="$LSB_JOBID",
        arguments=_OPTIONS_FROM_VARIABLE,
        # It prints: Job <123> is submitted to queue <normal>.
        submit='next=$(bsub -w "ended($LSB_JOBID)" < {path} | sed "s/^Job <\\([0-9]*\\)>.*/\\1/")',
        cancel='bkill "$next"',
        knows_end=False,
    ),
}


def render_job(request: JobRequest) -> str:
    """The batch script for a request."""
    dialect = _DIALECTS[request.scheduler]
    path = shlex.quote(request.path)
    python = '"${ENTK_APP_PYTHON:-.venv/bin/python}"' if request.python is None else shlex.quote(request.python)
    started = shlex.join(["--resource", request.label, *request.options])
    # The pilot of the launcher is to end before the job does.
    end = "" if dialect.knows_end else f" --set resource.walltime_min={request.walltime_min - 1}"
    lines = [
        "#!/usr/bin/env bash",
        f"# A campaign on {request.label} under {dialect.title}, job after job until it is finished.",
        f"# Usage: {dialect.usage.format(path=path)}",
        *(dialect.prefix + directive for directive in _list_directives(request)),
        "set -feuo pipefail",
        # The scheduler runs a copy of the script, from a folder of its own.
        f"cd {dialect.folder if request.folder is None else shlex.quote(request.folder)}",
        f"export ENTK_APP_PYTHON={python}",
        '[ -x "$ENTK_APP_PYTHON" ] || { echo "no $ENTK_APP_PYTHON: not the checkout, or not installed" >&2; exit 2; }',
        *dialect.arguments,
        f': "${{ENTK_APP_RUN:=runs/{request.scheduler}-{dialect.job_id}}}" "${{ENTK_APP_JOBS:=20}}"',
        "export ENTK_APP_RUN ENTK_APP_JOBS",
        "",
        "# The next job is queued first, so that it follows also when this one is killed; ENTK_APP_JOBS at most.",
        'next=""',
        "if ((--ENTK_APP_JOBS > 0)); then",
        *(
            ["    handed=ENTK_APP_PYTHON,ENTK_APP_RUN,ENTK_APP_JOBS,ENTK_APP_OPTIONS"]
            if "$handed" in dialect.submit
            else []
        ),
        f'    {dialect.submit.format(path=path)} || echo "no job follows" >&2',
        "fi",
        "",
        "# At the limit shell and launcher are sent a SIGTERM: if the shell went at once, the launcher was killed.",
        "# No signal before that: the launcher ends in time by itself, and what is killed all the same is resumed.",
        "trap : TERM",
        f'how=({started} --run-dir "$ENTK_APP_RUN" "$@")',
        'if [ -e "$ENTK_APP_RUN/settings.yaml" ]; then how=(--resume "$ENTK_APP_RUN"); fi',
        "code=0",
        f'"$ENTK_APP_PYTHON" -m entk_app run "${{how[@]}}"{end} || code=$?',
        "over=0",
        'said=$("$ENTK_APP_PYTHON" -m entk_app finished "$ENTK_APP_RUN") || over=$?',
        'echo "$said"',
        'if [ "$code" -eq 1 ] && [ "${said%%:*}" = pilot_lost ]; then',
        "    # Killed while it worked, by whatever: the next job goes on.",
        '    echo "the pilot was lost" >&2',
        "# Failed (1), refused (2), over for good (0), or not meant to be a campaign: nothing is to follow.",
        'elif [ "$code" -eq 1 ] || [ "$code" -eq 2 ] || [ "$over" -eq 0 ] || [ "$code$over" = 02 ]; then',
        f'    [ -z "$next" ] || {dialect.cancel}',
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _list_directives(request: JobRequest) -> list[str]:
    # RADICAL-Pilot takes PBS's ncpus for hardware threads and LSF's slots for cores.
    n, cores, gpus = request.nodes, request.cores_per_node, request.gpus_per_node
    hours, minutes = divmod(request.walltime_min, 60)
    match request.scheduler:
        case "slurm":
            lines = [
                "--job-name=entk-app",
                f"--nodes={n}",
                "--exclusive",
                *([f"--gres=gpu:{gpus}"] if gpus else []),
                f"--time={request.walltime_min}",
                # A job that is put back to the queue would be there twice: as itself and as its successor.
                "--no-requeue",
            ]
            named = (("--partition=", request.queue), ("--account=", request.project))
        case "pbs":
            lines = [
                "-N entk-app",
                f"-l select={n}:ncpus={request.threads_per_node}" + (f":ngpus={gpus}" if gpus else ""),
                "-l place=scatter:excl",
                f"-l walltime={hours:02d}:{minutes:02d}:00",
                "-r n",
            ]
            named = (("-q ", request.queue), ("-A ", request.project))
        case "lsf":
            lines = [
                "-J entk-app",
                f"-n {n * cores}",
                f'-R "span[ptile={cores}]"',
                "-x",
                *([f'-gpu "num={gpus}"'] if gpus else []),
                f"-W {hours}:{minutes:02d}",
                "-rn",
            ]
            named = (("-q ", request.queue), ("-P ", request.project))
    return lines + [flag + value for flag, value in named if value is not None]
