"""The pilot: RADICAL's environment, its resource description, the AppManager's run, and what is left after it.

Everything that RADICAL-EnTK and RADICAL-Pilot write goes below ``RUN/radical``. Import of radical happens inside
:func:`run_on_pilot`, after :func:`prepare_environment`: radical reads its environment when it is imported.
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from entk_app.batch import find_end_unix
from entk_app.campaign import Campaign
from entk_app.errors import CampaignFailed, EntkAppError, Interrupted, SettingsError
from entk_app.layout import RunLayout
from entk_app.records import Deadline, PilotRecord, read_lines, write_lines
from entk_app.resources import Resource
from entk_app.run_folder import LAUNCHER_NAMES
from entk_app.settings import ResourceSettings, Settings

if TYPE_CHECKING:
    from entk_app.workflow import AdaptiveWorkflow

logger = logging.getLogger(__name__)

_DEFAULT_WALLTIME_MIN = 60.0

#: Seconds that a campaign's processes have to end by themselves before they are killed.
_GRACE_S = 8.0


def prepare_environment(layout: RunLayout, resource: Resource, prefix: Path) -> None:
    """Set what radical reads at import, and write the run's own resource files.

    Parameters
    ----------
    layout : RunLayout
    resource : Resource
    prefix : Path
        The Python environment (``sys.prefix``) of launcher, agent and tasks.

    Notes
    -----
    ``HOME`` is redirected for the launcher and the agent (PSI/J would write to it); tasks get the user's own back.
    ``RADICAL_UTILS_NTPHOST=.`` stops the profilers from looking a time server up.
    """
    home = Path.home()
    private = layout.radical / "home"
    configs = layout.radical / ".radical" / "pilot" / "configs"
    temporary = layout.radical / "tmp"
    for folder in (private, configs, temporary):
        folder.mkdir(parents=True, exist_ok=True)
    own = Path(os.environ.get("ENTK_APP_HOME", home)) / ".radical" / "pilot" / "configs"
    if own.is_dir():
        shutil.copytree(own, configs, dirs_exist_ok=True)
    path = configs / f"resource_{resource.site}.json"
    # The agent of a queued pilot does not have this process' environment: its folder is written out.
    entry = {**resource.entry, "default_remote_workdir": str(layout.radical)}
    path.write_text(json.dumps({resource.key: entry}, indent=2), encoding="utf-8")
    # The agent's scripts do not quote PATH either.
    path_entries = [entry for entry in os.environ.get("PATH", os.defpath).split(os.pathsep) if _is_shell_safe(entry)]
    os.environ.setdefault("ENTK_APP_HOME", str(home))
    os.environ.update(
        {
            "HOME": str(private),
            "PATH": os.pathsep.join([str(prefix / "bin"), *path_entries]),
            "VIRTUAL_ENV": str(prefix),
            "TMPDIR": str(temporary),
            "RADICAL_BASE": str(layout.radical),
            "RADICAL_CONFIG_USER_DIR": str(layout.radical),
            "RADICAL_UTILS_NTPHOST": ".",
            "RADICAL_REPORT": "FALSE",
            "RADICAL_DEFAULT_REPORT": "FALSE",
            "RADICAL_PROFILE": "TRUE",
        }
    )
    os.environ.setdefault("RADICAL_LOG_LVL", "WARNING")
    if resource.submit and resource.scheduler == "slurm" and resource.node_gpus:
        # RADICAL-Pilot asks Slurm for nodes only; without this its steps have no device.
        os.environ.setdefault("SBATCH_GRES", f"gpu:{resource.node_gpus}")
    # radical asks PWD, not getcwd(), where its session folder goes.
    os.chdir(layout.radical)
    os.environ["PWD"] = str(layout.radical)


def describe_resource(settings: ResourceSettings, resource: Resource) -> dict[str, Any]:
    """EnTK's resource description: walltime in whole minutes, cores and GPUs of the pilot."""
    description: dict[str, Any] = {
        "resource": resource.label,
        "walltime": math.ceil(find_walltime(settings)),
        "cpus": resource.cores,
        "gpus": resource.gpus,
    }
    for key, value in (
        ("queue", settings.queue),
        ("project", settings.project),
        ("access_schema", resource.schema),
    ):
        if value is not None:
            description[key] = value
    return description


def find_walltime(settings: ResourceSettings) -> float:
    """Minutes that a pilot may run: as asked for, else what is left of the batch job around it, else an hour."""
    if settings.walltime_min is not None:
        return settings.walltime_min
    end = None if settings.submit else find_end_unix(os.environ)
    return _DEFAULT_WALLTIME_MIN if end is None else max(1.0, (end - time.time()) / 60.0)


def run_on_pilot(campaign: Campaign, resource: Resource) -> None:
    """Run a campaign, from its start or from where an earlier pilot left it, on a pilot to its end.

    Raises
    ------
    SettingsError
        There is no time or budget left; no pilot was started.
    Interrupted
        By SIGINT or SIGTERM; tasks were asked to save and end, and no process of the campaign is left.
    CampaignFailed
        The pilot or a decision failed; the message says where the logs are.
    """
    # Of a pilot whose launcher was killed.
    end_processes(campaign.layout)
    log = PilotLog(campaign.layout, campaign.settings, resource)
    log.begin()
    if not resource.submit:
        # A queued pilot's time begins when it is active.
        campaign.limit_time(log.find_deadline())
        campaign.find_deadline = log.compute_deadline
    with _shell_safe(campaign.layout, campaign.settings.resource.scratch) as (layout, prefix):
        try:
            _run(campaign, resource, layout, prefix, log)
        finally:
            log.end()


def _run(campaign: Campaign, resource: Resource, layout: RunLayout, prefix: Path, log: PilotLog) -> None:
    manager: Any = None
    workflow: AdaptiveWorkflow | None = None
    cause: BaseException | None = None
    pilot_state: str | None = None
    with _Signals(layout) as signals:
        try:
            prepare_environment(layout, resource, prefix)
            stage = campaign.resume() if campaign.layout.decisions.exists() else campaign.start()
            if stage is None:
                return
            from radical import entk

            from entk_app.entk_pauses import apply_pauses
            from entk_app.workflow import AdaptiveWorkflow

            apply_pauses()
            manager = entk.AppManager(reattempts=1)
            manager.resource_desc = describe_resource(campaign.settings.resource, resource)
            python = prefix / "bin" / Path(sys.executable).name
            workflow = AdaptiveWorkflow(campaign, layout, python, resource, stage, log.number)
            manager.workflow = [workflow.pipeline]
            with _watch_pilot(manager, campaign, resource, log):
                manager.run()
        except (Exception, KeyboardInterrupt) as error:
            # EnTK raises EnTKError for nearly everything, an interrupt included: what it was is told below.
            logger.debug("EnTK ended with %r", error, exc_info=True)
            cause = error
        signals.only_note()
        if cause is not None:
            layout.stop_request.touch()
        pilot_state = _pilot_state(manager)
        end_processes(layout)
    if workflow is not None and workflow.error is not None:
        cause = workflow.error
    interrupted = cause is not None and signals.received
    if pilot_state == "FAILED":
        # RADICAL-Pilot sends itself a SIGTERM when its pilot fails: that was not the user.
        interrupted = False
        cause = RuntimeError("the pilot failed to start or died")
    if interrupted:
        campaign.end("interrupted", f"interrupted by {signals.received[0].name}")
        raise Interrupted("interrupted; what was finished is kept in the run folder, --resume goes on with it")
    if cause is None and campaign.final_decision is None:
        cause = RuntimeError("EnTK ended the pipeline before the campaign was over")
    if cause is not None:
        campaign.end("failed", f"{type(cause).__name__}: {cause}")
    final = campaign.final_decision
    if final is not None and final.stop_reason == "failed":
        raise CampaignFailed(
            f"the campaign failed: {final.reason}\n{_last_words(layout)}"
            f"logs: {campaign.layout.logs} (tasks) and {campaign.layout.radical} (pilot)"
        )


def check_time_left(layout: RunLayout, settings: Settings, resource: Resource) -> None:
    """Refuse a pilot for which no walltime or budget is left.

    Raises
    ------
    SettingsError
    """
    if settings.stop.budget_gpu_hours is not None and not resource.gpus:
        raise SettingsError(
            f"stop.budget_gpu_hours = {settings.stop.budget_gpu_hours:g}: {resource.label} has no GPU, it would "
            "never be spent"
        )
    log = PilotLog(layout, settings, resource)
    log.add()
    log.find_deadline()


class PilotLog:
    """The pilots of a campaign in ``pilots.jsonl``: what was asked for, when each began and ended.

    Parameters
    ----------
    layout : RunLayout
    settings : Settings
    resource : Resource
    """

    def __init__(self, layout: RunLayout, settings: Settings, resource: Resource) -> None:
        self._layout = layout
        self._settings = settings
        self._resource = resource
        self._records = [self._close(record) for record in read_lines(PilotRecord, layout.pilots)]

    @property
    def number(self) -> int:
        """Of the present pilot, from 0."""
        return len(self._records) - 1

    def begin(self) -> None:
        """Note a pilot that is about to be asked for."""
        self.add()
        self._write()

    def add(self) -> None:
        self._records.append(
            PilotRecord(
                number=len(self._records),
                session=None,
                resource=self._resource.label,
                nodes=self._resource.nodes,
                cores=self._resource.cores,
                gpus=self._resource.gpus,
                walltime_min=find_walltime(self._settings.resource),
                queued=self._resource.submit,
                unix_submitted=time.time(),
            )
        )

    def update(self, **changes: Any) -> None:
        self._records[-1] = self._records[-1].model_copy(update=changes)
        self._write()

    def end(self) -> None:
        """Note the end of the present pilot."""
        self.update(unix_end=time.time())

    def find_deadline(self) -> Deadline:
        """As :meth:`compute_deadline`, for a pilot that is to be started.

        Raises
        ------
        SettingsError
            Nothing is left of the walltime or the budget.
        """
        first = self.compute_deadline()
        if first.end_by_unix <= time.time():
            raise SettingsError(f"no {first.limit} is left for another pilot: nothing was started")
        return first

    def compute_deadline(self) -> Deadline:
        """When tasks end in order, for the pilot to be closed within its walltime, the job's and the budget."""
        record = self._records[-1]
        minutes = record.walltime_min
        closing = _closing_seconds(minutes)
        began = record.unix_submitted if record.unix_began is None else record.unix_began
        limits = [Deadline(end_by_unix=began + 60.0 * minutes - closing, limit="walltime")]
        job_end = None if record.queued else find_end_unix(os.environ)
        if job_end is not None:
            limits.append(Deadline(end_by_unix=job_end - closing, limit="walltime"))
        budget = self._settings.stop.budget_gpu_hours
        if budget is not None:
            left = budget - sum(earlier.gpu_hours for earlier in self._records[:-1])
            seconds = 3600.0 * left / record.gpus
            limits.append(Deadline(end_by_unix=began + seconds - min(closing, 0.1 * seconds), limit="budget"))
        return min(limits, key=lambda deadline: deadline.end_by_unix)

    def _close(self, record: PilotRecord) -> PilotRecord:
        """A pilot whose end nobody noted ended with the last sign of life of its agent."""
        if record.unix_end is not None:
            return record
        folder = self._layout.radical / "radical.pilot.sandbox" / (record.session or "none")
        signs = [path.stat().st_mtime for path in folder.rglob("*.prof")]
        return record.model_copy(update={"unix_end": max(signs, default=record.unix_submitted)})

    def _write(self) -> None:
        write_lines(self._layout.pilots, self._records)


@contextmanager
def _watch_pilot(manager: Any, campaign: Campaign, resource: Resource, log: PilotLog) -> Iterator[None]:
    """Note when the pilot becomes active; a queued one's time begins then."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            pilot = getattr(getattr(manager, "_rmgr", None), "pilot", None)
            if pilot is None or pilot.state != "PMGR_ACTIVE":
                continue
            log.update(unix_active=time.time(), session=manager.sid)
            if resource.submit:
                try:
                    campaign.limit_time(log.find_deadline())
                except EntkAppError:
                    logger.exception("the pilot came too late")
            return

    thread = threading.Thread(target=watch, name="pilot", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _closing_seconds(walltime_min: float) -> float:
    """Time kept at the end of the walltime to close files and the pilot."""
    return min(60.0, 0.1 * walltime_min * 60.0)


@contextmanager
def _shell_safe(layout: RunLayout, scratch: Path | None) -> Iterator[tuple[RunLayout, Path]]:
    """Run folder and Python under names without spaces or quotes, which RADICAL-Pilot's scripts cannot take.

    Where their own names have some, both are reached through links, and what radical writes is moved into the run
    folder at the end; likewise where radical is to write to a scratch folder.
    """
    prefix = Path(sys.prefix)
    if _is_shell_safe(layout.root) and _is_shell_safe(prefix) and scratch is None:
        yield layout, prefix
        return
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="entk-app-", dir=scratch))
    (folder / "run").symlink_to(layout.root, target_is_directory=True)
    environment = prefix
    if not _is_shell_safe(prefix):
        environment = folder / "environment"
        _link_environment(prefix, environment)
    safe = RunLayout(folder / "run", scratch=folder)
    for part in (safe.radical, safe.logs):
        part.mkdir()
    try:
        yield safe, environment
    finally:
        os.chdir(layout.root)
        # An earlier pilot's are there already.
        for source, target in ((safe.radical, layout.radical), (safe.logs, layout.logs)):
            shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(folder)


def _link_environment(prefix: Path, link: Path) -> None:
    """The Python environment once more by links; scripts that name its path are written anew."""
    (link / "bin").mkdir(parents=True)
    for entry in prefix.iterdir():
        if entry.name != "bin":
            (link / entry.name).symlink_to(entry)
    old, new = str(prefix).encode(), str(link).encode()
    for entry in (prefix / "bin").iterdir():
        own = link / "bin" / entry.name
        is_script = entry.name.startswith(("radical", "activate")) and not entry.is_symlink()
        content = entry.read_bytes() if is_script else b""
        if old in content:
            own.write_bytes(content.replace(old, new))
            own.chmod(0o755)
        else:
            own.symlink_to(entry)


def _is_shell_safe(path: Path | str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9._/+@%,=-]+", str(path)) is not None


def _pilot_state(manager: Any) -> str | None:
    resource_manager = getattr(manager, "_rmgr", None)
    return None if resource_manager is None else resource_manager.get_resource_allocation_state()


class _Signals:
    """First SIGINT, SIGTERM or SIGHUP: ask the tasks to end and interrupt the main thread. Second: end at once.

    A Ctrl-C reaches every process of the terminal's foreground group. SIGINT and SIGHUP are therefore blocked here,
    which agent and tasks inherit; a thread of this process waits for them and interrupts the main thread, as SIGTERM
    does.
    """

    _BLOCKED = (signal.SIGINT, signal.SIGHUP)

    def __init__(self, layout: RunLayout) -> None:
        self.received: list[signal.Signals] = []
        self._layout = layout
        self._closing = False
        self._interrupting = False
        self._over = threading.Event()

    def __enter__(self) -> _Signals:
        # A launcher under nohup ignores SIGHUP, and goes on doing so.
        self._waited = {n for n in self._BLOCKED if signal.getsignal(n) != signal.SIG_IGN}
        # A thread that a library started before cannot be made to block: the handler is there for what it gets.
        self._before = {n: signal.signal(n, self._handle) for n in (signal.SIGTERM, *self._waited)}
        signal.pthread_sigmask(signal.SIG_BLOCK, self._waited)
        self._thread = threading.Thread(target=self._wait, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._waited)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def only_note(self) -> None:
        """From now on the campaign is being closed anyway: a first signal changes nothing."""
        self._closing = True

    def _wait(self) -> None:
        while not self._over.is_set():
            caught = signal.sigtimedwait(self._waited, 0.2) if self._waited else None
            if caught is not None and self._note(signal.Signals(caught.si_signo)):
                # The handler of SIGTERM runs in the main thread and raises there.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            elif not self._waited:
                self._over.wait(0.2)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._interrupting or self._note(signal.Signals(number)):
            self._interrupting = False
            raise KeyboardInterrupt

    def _note(self, number: signal.Signals) -> bool:
        """Take a signal in; True where the main thread is to be interrupted."""
        self.received.append(number)
        self._layout.stop_request.touch()
        if len(self.received) > 1:
            end_processes(self._layout, grace_s=0.0)
            os._exit(130)
        self._interrupting = number != signal.SIGTERM and not self._closing
        return not self._closing


def end_processes(layout: RunLayout, grace_s: float = _GRACE_S) -> int:
    """End what is left of this campaign's pilot and tasks; returns how many had to be killed.

    A process belongs to the campaign when its environment's ``RADICAL_BASE`` lies in the run's ``radical`` folder,
    which RADICAL-Pilot's agent and tasks inherit (with the pilot's sandbox below it).
    """
    for sandbox in layout.radical.glob("radical.pilot.sandbox/*/pilot.*"):
        # The bootstrapper watches for this file: it stops its agent even when no launcher is left to ask it.
        (sandbox / "killme.signal").touch()
    deadline = time.monotonic() + grace_s
    while _find_processes(layout) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = _find_processes(layout)
    for child in multiprocessing.active_children():
        child.terminate()
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in _find_processes(layout):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                logger.debug("process %d has gone by itself", pid)
        if _find_processes(layout):
            time.sleep(1.0)
    return len(left)


def _find_processes(layout: RunLayout) -> list[int]:
    mark = f"RADICAL_BASE={layout.radical}/".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            belongs = any((variable + b"/").startswith(mark) for variable in variables)
            belongs = belongs or _is_orphan(entry, layout)
        except (OSError, IndexError):
            # Gone in the meantime, or another user's.
            continue
        if state != "Z" and belongs:
            found.append(int(entry.name))
    return found


def _is_orphan(entry: Path, layout: RunLayout) -> bool:
    """Whether a process is a fork of a launcher that was killed: it works where that did, and has no parent left.

    Such a process' environment is the launcher's as it was started, before ``RADICAL_BASE`` was set.
    """
    if (entry / "cwd").readlink() != layout.radical.resolve():
        return False
    parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    command = (entry / "cmdline").read_bytes()
    works_here = parent > 1 and (Path("/proc") / str(parent) / "cwd").readlink() == layout.radical.resolve()
    return not works_here and any(name in command for name in LAUNCHER_NAMES)


def _last_words(layout: RunLayout, n_lines: int = 8) -> str:
    """The last lines that failed tasks wrote, the newest first."""
    errors = sorted(layout.logs.glob("tasks*/*/*.err"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in errors:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if any("ERROR" in line or "Error" in line for line in lines):
            return f"last lines of {path}:\n  " + "\n  ".join(lines[-n_lines:]) + "\n"
    return ""
