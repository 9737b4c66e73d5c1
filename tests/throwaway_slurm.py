"""A throw-away Slurm for tests: munged, slurmctld and a slurmd for each node, all in one temporary folder.

    with ThrowawaySlurm.started() as slurm:
        job = slurm.submit(script)
        slurm.wait_for(job)

The nodes claim a shape that the machine need not have (by default a DGX-2: 2 x 24 cores, 2 threads a core, 16 GPUs; the
GPUs are character devices that behave as ``/dev/null``). Nothing of a Slurm or munge that the machine may have is
touched: keys, sockets, ports and states are this cluster's own, and everything listens on loopback.

``python tests/throwaway_slurm.py`` starts one and a shell in its environment.

Notes
-----
The daemons are children of a supervisor (this file again), a child subreaper: whatever they start stays below it, jobs
that call setsid included. The supervisor ends all of that when its standard input closes, which happens also when the
process that holds the other end is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
#: Debian keeps daemons where the PATH of a user does not look.
_DAEMON_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


class SlurmUnavailable(Exception):
    """No cluster can be had here; the message is the reason."""


class SlurmError(Exception):
    """The cluster, or a job, did not do what was asked; the message holds the logs."""


@dataclass(frozen=True)
class NodeShape:
    """What every node claims to have."""

    sockets: int = 2
    cores_per_socket: int = 24
    threads_per_core: int = 2
    gpus: int = 16

    @property
    def threads(self) -> int:
        return self.sockets * self.cores_per_socket * self.threads_per_core


@dataclass(frozen=True)
class ThrowawaySlurm:
    """A running cluster.

    Attributes
    ----------
    folder : Path
        Configuration, keys, sockets, spools, device nodes, logs.
    environment : dict
        What a client of this cluster needs beside its own environment.
    nodes : tuple of str
    shape : NodeShape
    """

    folder: Path
    environment: dict[str, str]
    nodes: tuple[str, ...]
    shape: NodeShape

    @classmethod
    @contextlib.contextmanager
    def started(
        cls, n_nodes: int = 1, shape: NodeShape | None = None, timeout_s: float = 60.0
    ) -> Iterator[ThrowawaySlurm]:
        """Start a cluster, yield it when its nodes are idle, end it and its jobs.

        Raises
        ------
        SlurmUnavailable
            Programs or rights are missing.
        SlurmError
            The nodes did not become idle in time.
        """
        shape = shape or NodeShape()
        check_available()
        # A short path: a Unix socket's name has 107 bytes at most.
        folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        supervisor = None
        try:
            nodes = tuple(f"node{number}" for number in range(1, n_nodes + 1))
            _write_cluster(folder, nodes, shape)
            cluster = cls(folder, {"SLURM_CONF": str(folder / "slurm.conf")}, nodes, shape)
            supervisor = _start_supervisor(folder, nodes)
            cluster._wait_until_idle(supervisor, timeout_s)
            yield cluster
        finally:
            if supervisor is not None:
                _end_supervisor(supervisor)
            shutil.rmtree(folder, ignore_errors=True)

    def client_environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """An environment for clients: `base` (default: this process's) with this cluster in place of any other."""
        base = os.environ if base is None else base
        kept = {name: value for name, value in base.items() if not re.match(r"(SLURM|SBATCH|SRUN|SQUEUE)_", name)}
        return kept | self.environment

    def run(
        self,
        *command: str,
        timeout_s: float = 30.0,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> str:
        """Run a client command and return its output.

        Raises
        ------
        SlurmError
            It failed.
        """
        done = subprocess.run(
            command,
            cwd=folder,
            env=self.client_environment(environment),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise SlurmError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr}\n{self.logs()}")
        return done.stdout

    def submit(self, *arguments: str, environment: Mapping[str, str] | None = None, folder: Path | None = None) -> int:
        """``sbatch`` with these arguments, called in `folder`; returns the job's number."""
        printed = self.run("sbatch", "--parsable", *arguments, environment=environment, folder=folder)
        return int(printed.split(";")[0])

    def queue(self) -> str:
        """``squeue`` of all jobs, for people."""
        return self.run("squeue", "--all", "--format=%i %j %T %M %l %r %E")

    def jobs(self, ended: bool = False) -> list[int]:
        """Numbers of the jobs that wait or run, and of those that have ended if they are asked for."""
        which = ["--states=all"] if ended else []
        return [int(line) for line in self.run("squeue", "--noheader", "--format=%A", *which).split()]

    def job(self, number: int) -> dict[str, str]:
        """Slurm's record of a job (``JobState``, ``Reason`` ...), for an hour after its end."""
        printed = self.run("scontrol", "--oneliner", "show", "job", str(number))
        return dict(re.findall(r"(\S+?)=(\S*)", printed))

    def wait_for(self, number: int, states: tuple[str, ...] = (), timeout_s: float = 120.0) -> dict[str, str]:
        """Wait until a job has ended, or is in one of `states`; returns its record.

        Raises
        ------
        SlurmError
            It does not happen in time.
        """
        ended = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
        deadline = time.monotonic() + timeout_s
        while True:
            record = self.job(number)
            if record["JobState"] in (states or ended):
                return record
            if record["JobState"] in ended or time.monotonic() > deadline:
                raise SlurmError(
                    f"job {number} is {record['JobState']} ({record['Reason']}) and not {' or '.join(states or ended)} "
                    f"within {timeout_s:.0f} s\n"
                    f"{self.queue()}\n{self.logs()}"
                )
            time.sleep(0.25)

    def wait_until(self, holds: Callable[[], object], timeout_s: float = 60.0) -> None:
        """Wait until something holds.

        Raises
        ------
        SlurmError
            It does not happen in time.
        """
        deadline = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > deadline:
                raise SlurmError(f"not within {timeout_s:.0f} s\n{self.queue()}\n{self.logs()}")
            time.sleep(0.2)

    def end_in(self, number: int, seconds: float) -> None:
        """Move the end of a running job's time limit: Slurm's own limits are whole minutes.

        The controller looks at limits every 30 s.
        """
        end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds))
        self.run("scontrol", "update", f"JobId={number}", f"EndTime={end}")

    def logs(self, n_lines: int = 12) -> str:
        """The last lines of the daemons' logs, for the message of a failed test."""
        return collect_logs(self.folder, n_lines)

    def _wait_until_idle(self, supervisor: subprocess.Popen[bytes], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            done = subprocess.run(
                ["sinfo", "--noheader", "--Node", "--format=%N %T"],
                env=self.client_environment(),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            if sorted(done.stdout.split()) == sorted([*self.nodes, *["idle"] * len(self.nodes)]):
                return
            if supervisor.poll() is not None:
                raise SlurmError(f"a daemon ended at once\n{self.logs()}")
            if time.monotonic() > deadline:
                raise SlurmError(f"no idle node after {timeout_s:.0f} s: {done.stdout} {done.stderr}\n{self.logs()}")
            time.sleep(0.2)


def check_available() -> None:
    """Say why there can be no cluster here.

    Raises
    ------
    SlurmUnavailable
    """
    missing = [name for name in PROGRAMS if shutil.which(name, path=_DAEMON_PATH) is None]
    if missing:
        raise SlurmUnavailable(f"not installed: {', '.join(missing)} (Debian: apt-get install slurm-wlm munge)")
    if os.geteuid() != 0:
        raise SlurmUnavailable("slurmd and the device nodes of the GPUs need root")
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        try:
            _make_device(Path(folder) / "null")
        except OSError as error:
            raise SlurmUnavailable(f"no device nodes can be made here: {error}") from None


def collect_logs(folder: Path, n_lines: int) -> str:
    shown = []
    for path in sorted((folder / "log").glob("*")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if lines:
            shown.append(f"== {path.name}\n" + "\n".join(lines[-n_lines:]))
    return "\n".join(shown)


def _make_device(path: Path) -> None:
    # Character device 1:3 is the null device: harmless, and a device to Slurm. Count-only GPUs make the node INVAL.
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _write_cluster(folder: Path, nodes: tuple[str, ...], shape: NodeShape) -> None:
    for name in ("dev", "log", "state", *(f"spool-{node}" for node in nodes)):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o400)
    key.write_bytes(os.urandom(1024))
    for number in range(shape.gpus):
        _make_device(folder / "dev" / f"nvidia{number}")
    devices = f"{folder}/dev/nvidia[0-{shape.gpus - 1}]" if shape.gpus > 1 else f"{folder}/dev/nvidia0"
    gres = f"AutoDetect=off\nName=gpu File={devices}\n" if shape.gpus else "AutoDetect=off\n"
    (folder / "gres.conf").write_text(gres, encoding="utf-8")
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n", encoding="utf-8")
    (folder / "slurm.conf").write_text(_render_configuration(folder, nodes, shape), encoding="utf-8")


def _render_configuration(folder: Path, nodes: tuple[str, ...], shape: NodeShape) -> str:
    host = socket.gethostname().split(".")[0]
    controller_port, *node_ports = _free_ports(1 + len(nodes))
    gpus = f" Gres=gpu:{shape.gpus}" if shape.gpus else ""
    lines = [
        "ClusterName=throwaway",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={controller_port}",
        "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={folder}/munge.socket",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool-%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/log/slurmctld.log",
        f"SlurmdLogFile={folder}/log/slurmd-%n.log",
        # No cgroups: a container has none to give.
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "AccountingStorageType=accounting_storage/none",
        "MpiDefault=none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        # The node has what is written here, whatever the machine has.
        "SlurmdParameters=config_overrides",
        "ReturnToService=2",
        "GresTypes=gpu",
        # A limit is enforced as soon as the controller looks, and what resists is killed soon.
        "OverTimeLimit=0",
        "KillWait=5",
        "SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=2",
        "MinJobAge=3600",
        # A busy test machine must not make a node 'down'.
        "SlurmdTimeout=600",
        "MessageTimeout=60",
        "BatchStartTimeout=60",
    ]
    lines += [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} Sockets={shape.sockets} "
        f"CoresPerSocket={shape.cores_per_socket} ThreadsPerCore={shape.threads_per_core} RealMemory=16000{gpus}"
        for node, port in zip(nodes, node_ports, strict=True)
    ]
    lines.append(f"PartitionName=all Nodes={','.join(nodes)} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO")
    return "\n".join(lines) + "\n"


def _start_supervisor(folder: Path, nodes: tuple[str, ...]) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
    with (folder / "log" / "supervisor.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, __file__, "--supervise", str(folder), *nodes],
            env={**environment, "PATH": _DAEMON_PATH, "SLURM_CONF": str(folder / "slurm.conf")},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Out of reach of a Ctrl-C at the terminal: the cluster goes when the test session says so.
            start_new_session=True,
        )


def _end_supervisor(supervisor: subprocess.Popen[bytes]) -> None:
    assert supervisor.stdin is not None
    supervisor.stdin.close()
    try:
        supervisor.wait(timeout=30)
    except subprocess.TimeoutExpired:
        for pid in [*_descendants(supervisor.pid), supervisor.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        supervisor.wait(timeout=30)


def _supervise(folder: Path, nodes: list[str]) -> int:
    """Run the daemons until standard input closes or one of them ends; leave no descendant."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    munged = [
        "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key",
        f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed", f"--log-file={folder}/log/munged.log",
    ]  # fmt: skip
    daemons = [_start_daemon(munged)]
    try:
        deadline = time.monotonic() + 20
        while not (folder / "munge.socket").exists() and daemons[0].poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        daemons.append(_start_daemon(["slurmctld", "-D"]))
        daemons += [_start_daemon(["slurmd", "-D", "-N", node]) for node in nodes]
        os.set_blocking(0, False)
        while all(daemon.poll() is None for daemon in daemons):
            with contextlib.suppress(BlockingIOError):
                if os.read(0, 1) == b"":
                    _end_descendants(daemons)
                    # Who started the cluster may have been killed: nobody else removes its folder then.
                    shutil.rmtree(folder, ignore_errors=True)
                    return 0
            time.sleep(0.1)
        print("ended by itself:", *(daemon.args for daemon in daemons if daemon.poll() is not None))
        return 1
    finally:
        _end_descendants(daemons)


def _start_daemon(command: list[str]) -> subprocess.Popen[bytes]:
    library = ctypes.CDLL(None)
    # Should the supervisor itself be killed, the daemons go with it.
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) and None,
    )


def _end_descendants(daemons: list[subprocess.Popen[bytes]]) -> None:
    # The daemons first and hard: an orderly slurmd would wait for its steps.
    for daemon in reversed(daemons):
        daemon.kill()
    deadline = time.monotonic() + 20
    while (left := _descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.05)


def _descendants(root: int) -> list[int]:
    """Living processes below `root`, zombies included: they are still to be reaped."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found: list[int] = []
    level = [root]
    while level:
        level = [pid for pid, parent in parents.items() if parent in level]
        found += level
    return found


def _open_shell() -> int:
    with ThrowawaySlurm.started(n_nodes=int(os.environ.get("N_NODES", "1"))) as slurm:
        print(f"a throw-away Slurm in {slurm.folder}; it ends with this shell", flush=True)
        return subprocess.call([os.environ.get("SHELL", "/bin/bash")], env=slurm.client_environment())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--supervise"]:
        sys.exit(_supervise(Path(sys.argv[2]), sys.argv[3:]))
    sys.exit(_open_shell())
