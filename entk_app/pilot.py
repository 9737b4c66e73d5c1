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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from entk_app.batch import find_end_unix
from entk_app.campaign import Campaign
from entk_app.errors import CampaignFailed, EntkAppError, Interrupted, RecordError, RunFolderError, SettingsError
from entk_app.layout import RunLayout
from entk_app.profiles import read_profile
from entk_app.records import Deadline, PilotRecord, read_lines, write_lines
from entk_app.resources import Resource
from entk_app.run_folder import LAUNCHER_NAMES
from entk_app.settings import ResourceSettings, Settings

if TYPE_CHECKING:
    from entk_app.workflow import AdaptiveWorkflow

logger = logging.getLogger(__name__)

_DEFAULT_WALLTIME_MIN = 60.0

#: Name of a folder where radical writes while the run folder cannot be it.
_SCRATCH_PREFIX = "entk-app-"

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
    if resource.agent_config is not None:
        shutil.copy(resource.agent_config, configs)
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
    log = PilotLog(campaign.layout, campaign.settings, resource)
    with _shell_safe(campaign.layout, campaign.settings.resource.scratch) as (layout, prefix):
        _run(campaign, resource, layout, prefix, log)


def _run(campaign: Campaign, resource: Resource, layout: RunLayout, prefix: Path, log: PilotLog) -> None:
    manager: Any = None
    workflow: AdaptiveWorkflow | None = None
    cause: BaseException | None = None
    pilot_state: str | None = None
    with _Signals(layout) as signals:
        try:
            log.close_earlier()
            if not signals.received:
                # Asked of an earlier pilot's tasks, maybe while they were ended just now.
                campaign.layout.stop_request.unlink(missing_ok=True)
            log.begin(layout)
            if not resource.submit:
                # A queued pilot's time begins when it is active.
                campaign.limit_time(log.find_deadline())
                campaign.find_deadline = log.compute_deadline
            prepare_environment(layout, resource, prefix)
            stage = campaign.begin()
            if stage is None:
                # Over by a rule: no pilot is asked for.
                log.discard()
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
            signals.pilot_state = lambda: _pilot_state(manager)
            with _watch_pilot(manager, campaign, layout, resource, log):
                manager.run()
        except (Exception, KeyboardInterrupt) as error:
            # EnTK raises EnTKError for nearly everything, an interrupt included: what it was is told below.
            logger.debug("EnTK ended with %r", error, exc_info=True)
            cause = error
        finally:
            signals.only_note()
            if cause is not None:
                layout.stop_request.touch()
            pilot_state = _pilot_state(manager)
            end_processes(layout)
            log.end()
    if not campaign.has_begun:
        _explain_no_begin(campaign, cause, bool(signals.received))
    if workflow is not None and workflow.error is not None:
        cause = workflow.error
    if pilot_state == "FAILED" and cause is None:
        cause = RuntimeError("the pilot failed to start or died")
    if signals.received and not signals.by_radical and campaign.final_decision is None:
        campaign.end("interrupted", f"interrupted by {signals.received[0].name}")
        raise Interrupted("interrupted; what was finished is kept in the run folder, --resume goes on with it")
    if cause is None and campaign.final_decision is None:
        cause = RuntimeError("EnTK ended the pipeline before the campaign was over")
    if cause is not None and campaign.is_over:
        # The batch system was quicker.
        campaign.end("walltime", "the pilot was ended at its limit")
    elif cause is not None:
        if pilot_state == "FAILED":
            cause = RuntimeError("the pilot failed to start or died")
        campaign.end("failed", f"{type(cause).__name__}: {cause}")
    final = campaign.final_decision
    if final is not None and final.stop_reason == "failed":
        raise CampaignFailed(
            f"the campaign failed: {final.reason}\n{_last_words(layout)}"
            f"logs: {campaign.layout.logs} (tasks) and {campaign.layout.radical} (pilot)"
        )


def _explain_no_begin(campaign: Campaign, cause: BaseException | None, interrupted: bool) -> None:
    """Why a campaign neither began nor went on: nothing is recorded of it."""
    if isinstance(cause, SettingsError):
        raise cause
    if isinstance(cause, EntkAppError):
        raise RunFolderError(f"the campaign in {campaign.layout.root} cannot go on: {cause}") from None
    if interrupted or isinstance(cause, KeyboardInterrupt):
        raise Interrupted("interrupted before the campaign began")
    raise CampaignFailed(f"the campaign did not begin: {type(cause).__name__}: {cause}") from cause


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
    log.add(layout)
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
        try:
            self._records = [self._close(record) for record in read_lines(PilotRecord, layout.pilots)]
        except RecordError as error:
            raise RunFolderError(f"the campaign in {layout.root} cannot go on: {error}") from None

    @property
    def number(self) -> int:
        """Of the present pilot, from 0."""
        return len(self._records) - 1

    def close_earlier(self) -> None:
        """End what is left of earlier pilots whose launcher was killed, and bring home what they wrote elsewhere."""
        own = self._layout.radical
        for folder in {Path(record.radical) for record in self._records if record.radical} | {own}:
            there = RunLayout(self._layout.root, scratch=folder.parent)
            end_processes(there)
            if folder.is_dir() and folder.resolve() != own.resolve():
                _bring_home(there, self._layout)

    def begin(self, layout: RunLayout) -> None:
        """Note a pilot that is about to be asked for; ``layout`` is where radical is to write."""
        self.add(layout)
        self._write()

    def add(self, layout: RunLayout) -> None:
        now = time.time()
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
                radical=str(layout.radical),
                unix_submitted=now,
                unix_began=None if self._resource.submit else now,
            )
        )

    def discard(self) -> None:
        """Forget the present pilot: it was not asked for."""
        self._records.pop()
        self._write()

    def update(self, **changes: Any) -> None:
        self._records[-1] = self._records[-1].model_copy(update=changes)
        self._write()

    def end(self) -> None:
        """Note the end of the present pilot, if there is one."""
        if self._records and self._records[-1].unix_end is None:
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
        closing = _closing_seconds(60.0 * minutes)
        began = record.unix_submitted if record.unix_began is None else record.unix_began
        limits = [Deadline(end_by_unix=began + 60.0 * minutes - closing, limit="walltime")]
        job_end = None if record.queued else find_end_unix(os.environ)
        if job_end is not None:
            limits.append(Deadline(end_by_unix=job_end - closing, limit="walltime"))
        budget = self._settings.stop.budget_gpu_hours
        if budget is not None:
            left = budget - sum(earlier.gpu_hours for earlier in self._records[:-1])
            seconds = 3600.0 * left / record.gpus
            limits.append(Deadline(end_by_unix=began + seconds - _closing_seconds(seconds), limit="budget"))
        return min(limits, key=lambda deadline: deadline.end_by_unix)

    def _close(self, record: PilotRecord) -> PilotRecord:
        """A pilot whose end nobody noted ended with the last sign of life of its agent."""
        if record.unix_end is not None:
            return record
        folders = {Path(record.radical or self._layout.radical), self._layout.radical}
        session = Path("radical.pilot.sandbox") / (record.session or "none")
        signs = [path.stat().st_mtime for folder in folders for path in (folder / session).rglob("*.prof")]
        return record.model_copy(update={"unix_end": max(signs, default=record.unix_submitted)})

    def _write(self) -> None:
        write_lines(self._layout.pilots, self._records)


@contextmanager
def _watch_pilot(
    manager: Any, campaign: Campaign, layout: RunLayout, resource: Resource, log: PilotLog
) -> Iterator[None]:
    """Note when the pilot becomes active; a queued one's time began when its job did."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            pilot = getattr(getattr(manager, "_rmgr", None), "pilot", None)
            if pilot is None or pilot.state != "PMGR_ACTIVE":
                continue
            log.update(unix_active=time.time(), session=manager.sid)
            campaign.note_pilot_active()
            if resource.submit:
                log.update(unix_began=_find_bootstrap(layout, manager.sid))
                campaign.limit_time(log.compute_deadline())
            return

    thread = threading.Thread(target=watch, name="pilot", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _find_bootstrap(layout: RunLayout, session: str) -> float:
    """When a queued pilot's job began: the first event of its bootstrapper, else now."""
    starts = [
        event.unix
        for path in layout.radical.glob(f"radical.pilot.sandbox/{session}/pilot.*/bootstrap_0*.prof")
        for event in read_profile(path)
        if event.name == "bootstrap_0_start"
    ]
    return min(starts, default=time.time())


def _closing_seconds(seconds: float) -> float:
    """Time kept at the end of so many seconds for tasks to notice, close their files, and the pilot to go.

    A pilot takes 10 to 20 s to go, whatever its walltime; of a short one at most a half is kept.
    """
    return min(60.0, max(20.0, 0.1 * seconds), 0.5 * seconds)


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
    folder = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=scratch))
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
        _bring_home(safe, layout)


def _bring_home(away: RunLayout, layout: RunLayout) -> None:
    """Move what radical wrote elsewhere into the run folder, where an earlier pilot's is already."""
    for source, target in ((away.radical, layout.radical), (away.logs, layout.logs)):
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True)
    if away.scratch is not None and away.scratch.name.startswith(_SCRATCH_PREFIX):
        shutil.rmtree(away.scratch)


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
    """First SIGINT, SIGTERM or SIGHUP: ask the tasks to end and interrupt the main thread. Second Ctrl-C: end at once.

    A Ctrl-C reaches every process of the terminal's foreground group. SIGINT and SIGHUP are therefore blocked here,
    which agent and tasks inherit; a thread of this process waits for them and interrupts the main thread, as SIGTERM
    does.
    """

    _BLOCKED = (signal.SIGINT, signal.SIGHUP)

    def __init__(self, layout: RunLayout) -> None:
        self.received: list[signal.Signals] = []
        self.pilot_state: Callable[[], str | None] = lambda: None
        self.by_radical = False
        self._layout = layout
        self._pid = os.getpid()
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
        if os.getpid() != self._pid:
            # A fork of the launcher inherits this handler, not its task.
            os._exit(128 + number)
        if self._interrupting or self._note(signal.Signals(number)):
            self._interrupting = False
            raise KeyboardInterrupt

    def _note(self, number: signal.Signals) -> bool:
        """Take a signal in; True where the main thread is to be interrupted."""
        if not self.received:
            # RADICAL-Pilot sends itself a SIGTERM when its pilot fails: that was not the user.
            self.by_radical = number == signal.SIGTERM and self.pilot_state() == "FAILED"
        self.received.append(number)
        self._layout.stop_request.touch()
        if len(self.received) > 1 and number == signal.SIGTERM:
            # A batch system, or RADICAL-Pilot after a pilot that the first signal ended: the campaign is closing.
            return False
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
    radical = layout.radical.resolve()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            belongs = _works_for(entry, radical) or _is_orphan(entry, radical)
        except (OSError, IndexError):
            # Gone in the meantime, or another user's.
            continue
        if state != "Z" and belongs:
            found.append(int(entry.name))
    return found


def _works_for(entry: Path, radical: Path) -> bool:
    """Whether a process' environment says that it belongs to the pilot of this folder, by whatever name of it."""
    for variable in (entry / "environ").read_bytes().split(b"\0"):
        name, _, value = variable.partition(b"=")
        if name == b"RADICAL_BASE":
            return Path(os.fsdecode(value)).resolve().is_relative_to(radical)
    return False


def _is_orphan(entry: Path, radical: Path) -> bool:
    """Whether a process is a fork of a launcher that was killed: the launcher's Python, working where that did.

    Such a process' environment is the launcher's as it was started, before ``RADICAL_BASE`` was set. The forks of a
    living launcher are left to it.
    """
    if (entry / "cwd").readlink() != radical:
        return False
    program, *arguments = [os.fsdecode(part) for part in (entry / "cmdline").read_bytes().split(b"\0")]
    parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    is_forked = parent > 1 and (Path("/proc") / str(parent) / "cwd").readlink() == radical
    is_launcher = Path(program).name.startswith("python") and any(
        Path(argument).name in LAUNCHER_NAMES for argument in arguments[:3]
    )
    return is_launcher and not is_forked


def _last_words(layout: RunLayout, n_lines: int = 8) -> str:
    """The last lines that failed tasks wrote, the newest first."""
    errors = sorted(layout.logs.glob("tasks*/*/*.err"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in errors:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if any("ERROR" in line or "Error" in line for line in lines):
            return f"last lines of {path}:\n  " + "\n  ".join(lines[-n_lines:]) + "\n"
    return ""
