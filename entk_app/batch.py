"""The batch job that this process runs in, if any: read from the environment that its scheduler sets."""

from __future__ import annotations

import datetime
import logging
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A batch job, as far as its environment tells.

    Attributes
    ----------
    scheduler : str
        slurm, pbs, lsf or cobalt.
    number : str
        The job's id.
    nodes, node_cores, node_gpus : int or None
        None where the environment does not say.
    """

    scheduler: str
    number: str
    nodes: int | None = None
    node_cores: int | None = None
    node_gpus: int | None = None

    def holds(self, cores: int, gpus: int) -> bool:
        """Whether it says that it has so much on a node."""
        return (self.node_cores or 0) >= cores and (self.node_gpus or 0) >= gpus

    def __str__(self) -> str:
        return f"{self.scheduler} job {self.number}"


def find_job(environment: Mapping[str, str]) -> Job | None:
    """The job whose environment this is; None outside of any."""
    get = environment.get
    if get("SLURM_JOB_ID"):
        return Job(
            "slurm",
            environment["SLURM_JOB_ID"],
            nodes=_to_int(get("SLURM_JOB_NUM_NODES") or get("SLURM_NNODES")),
            node_cores=_to_int(get("SLURM_CPUS_ON_NODE")),
            node_gpus=_to_int(get("SLURM_GPUS_ON_NODE")) or _count_items(get("SLURM_JOB_GPUS")),
        )
    if get("PBS_JOBID"):
        return Job("pbs", environment["PBS_JOBID"], nodes=_count_hosts(get("PBS_NODEFILE")))
    if get("LSB_JOBID"):
        return Job("lsf", environment["LSB_JOBID"], nodes=_count_hosts(get("LSB_DJOB_HOSTFILE")))
    if get("COBALT_JOBID"):
        return Job("cobalt", environment["COBALT_JOBID"], nodes=_count_hosts(get("COBALT_NODEFILE")))
    return None


def find_end_unix(environment: Mapping[str, str]) -> float | None:
    """When the job that this process runs in is cut off; None outside of a job or where nobody says.

    ``ENTK_APP_JOB_END`` (seconds since the epoch) comes first, for schedulers that do not tell; then what Slurm sets
    or ``squeue`` answers.
    """
    for name in ("ENTK_APP_JOB_END", "SLURM_JOB_END_TIME"):
        value = _to_int(environment.get(name))
        if value is not None:
            return float(value)
    number, command = environment.get("SLURM_JOB_ID"), shutil.which("squeue", path=environment.get("PATH"))
    if not number or command is None:
        return None
    try:
        asked = subprocess.run(
            [command, "--noheader", "--jobs", number, "--format", "%e"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
            # Not the time left: that follows the limit, which an administrator's change of the end leaves behind.
            env={**environment, "SLURM_TIME_FORMAT": "%s"},
        )
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("squeue does not say how long job %s may run: %s", number, error)
        return None
    return parse_end(asked.stdout.strip())


def parse_end(text: str) -> float | None:
    """Seconds since the epoch of what Slurm prints as a job's end; None for ``N/A``, ``Unknown`` and the like."""
    if text.isdigit():
        return float(text)
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _to_int(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdigit() else None


def _count_items(text: str | None) -> int | None:
    return len([item for item in text.split(",") if item]) if text else None


def _count_hosts(path: str | None) -> int | None:
    """Distinct hosts of a scheduler's node file, a line a slot."""
    if not path:
        return None
    try:
        return len(set(Path(path).read_text(encoding="utf-8").split())) or None
    except OSError as error:
        logger.warning("the job's node file cannot be read: %s", error)
        return None
