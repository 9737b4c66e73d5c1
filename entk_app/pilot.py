"""The pilot: RADICAL's environment, its resource description, the AppManager's run, and what is left after it.

Everything that RADICAL-EnTK and RADICAL-Pilot write goes below ``RUN/radical``. Import of radical happens inside
:func:`run_on_pilot`, after :func:`prepare_environment`: radical reads its environment when it is imported.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from entk_app import loopback
from entk_app.batch import find_end_unix
from entk_app.campaign import Campaign
from entk_app.errors import (
    CampaignFailed,
    EntkAppError,
    Interrupted,
    LockLost,
    RecordError,
    RunFolderError,
    SettingsError,
    StorageError,
)
from entk_app.guard import Fault, Guard
from entk_app.layout import RunLayout
from entk_app.lock import CampaignLock
from entk_app.processes import end_processes
from entk_app.profiles import read_profile
from entk_app.records import Deadline, PilotRecord, read_lines, write_lines
from entk_app.resources import Resource
from entk_app.settings import ResourceSettings, Settings
from entk_app.storage import explain, is_storage
from entk_app.watchdog import Watchdog
from entk_app.workflow import is_shell_safe

if TYPE_CHECKING:
    from entk_app.workflow import AdaptiveWorkflow

logger = logging.getLogger(__name__)

_DEFAULT_WALLTIME_MIN = 60.0

#: Name of a folder where radical writes while the run folder cannot be it.
_SCRATCH_PREFIX = "entk-app-"

#: Seconds that radical has after an interrupt to come out of its own clean-up, and between two more attempts; after
#: so many seconds altogether the process ends without it.
_PATIENCE_S = 15.0
_ATTEMPT_S = 5.0
_GIVE_UP_S = 60.0


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
    path_entries = [entry for entry in os.environ.get("PATH", os.defpath).split(os.pathsep) if is_shell_safe(entry)]
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
    if resource.nodes == 1 and not resource.submit:
        # All of radical's processes are on this node: nobody else is to talk to them.
        loopback.prepare(layout.radical / "loopback", os.environ)
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


def run_on_pilot(campaign: Campaign, resource: Resource, lock: CampaignLock) -> None:
    """Run a campaign, from its start or from where an earlier pilot left it, on a pilot to its end.

    Raises
    ------
    SettingsError, RunFolderError
        There is no time, budget or room left; no pilot was started.
    Interrupted
        By SIGINT or SIGTERM; tasks were asked to save and end, and no process of the campaign is left.
    StorageError
        The run folder is full, read-only or gone.
    LockLost
        Another launcher has the campaign; nothing is recorded of this one's end.
    CampaignFailed
        The pilot or a decision failed; the message says where the logs are.
    """
    layout = campaign.layout
    log = PilotLog(layout, campaign.settings, resource)
    guard = Guard(layout, lock)
    trouble = guard.find_trouble()
    if trouble is not None:
        raise RunFolderError(f"nothing was started: {trouble}, then {_how_to_resume(layout)}")
    watchdog = Watchdog(layout.root, lock.path)
    try:
        lock.note_watchdog(watchdog.process)
        with _quiet_threads(), guard, _Signals(layout, guard) as signals:
            signals.to_finish += [watchdog.dismiss, lock.release]
            with _shell_safe(layout, campaign.settings.resource.scratch) as (safe, prefix):
                watchdog.watch(safe.radical)
                if safe.root != layout.root:
                    guard.add_folder(safe.radical)
                    signals.to_finish.append(lambda: _bring_home(safe, layout))
                signals.layout = safe
                _run(campaign, resource, safe, prefix, log, signals, guard)
    except OSError as error:
        if not campaign.has_begun or not is_storage(error):
            raise
        raise _storage_error(layout, explain(error, layout.root)) from error
    finally:
        watchdog.dismiss()


def _run(
    campaign: Campaign,
    resource: Resource,
    layout: RunLayout,
    prefix: Path,
    log: PilotLog,
    signals: _Signals,
    guard: Guard,
) -> None:
    manager: Any = None
    workflow: AdaptiveWorkflow | None = None
    cause: BaseException | None = None
    pilot_state: str | None = None
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
        with _watch_pilot(manager, campaign, layout, resource, log, guard, workflow):
            manager.run()
    except (Exception, KeyboardInterrupt) as error:
        # EnTK raises EnTKError for nearly everything, an interrupt included: what it was is told below.
        logger.debug("EnTK ended with %r", error, exc_info=True)
        cause = error
    finally:
        signals.only_note()
        if cause is not None:
            signals.request_stop()
        pilot_state = _pilot_state(manager)
        guard.end_processes(layout)
        if not guard.has_lost_the_lock:
            _note_end(log)
    if not campaign.has_begun:
        _explain_no_begin(campaign, guard.fault, cause, bool(signals.received))
    if workflow is not None and workflow.error is not None:
        cause = workflow.error
    _conclude(campaign, layout, _judge(campaign, log, signals, guard, cause, pilot_state))


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """What kills a thread of radical is logged: its traceback is no answer to a user whose disk is full."""

    def note(args: threading.ExceptHookArgs) -> None:
        name = "a thread" if args.thread is None else args.thread.name
        logger.info("%s ended with %r", name, args.exc_value)

    before, threading.excepthook = threading.excepthook, note
    try:
        yield
    finally:
        threading.excepthook = before


@dataclass(frozen=True)
class _End:
    """How a campaign ended on this pilot where no rule ended it; without a ``stop_reason`` nothing is recorded."""

    stop_reason: str | None
    message: str


def _judge(
    campaign: Campaign,
    log: PilotLog,
    signals: _Signals,
    guard: Guard,
    cause: BaseException | None,
    pilot_state: str | None,
) -> _End | None:
    """Why the campaign has ended; None where a rule, or a failure that it has seen itself, decided it."""
    fault = guard.fault
    if fault is not None and fault.stop_reason is None:
        return _End(None, fault.message)
    if campaign.final_decision is not None:
        return None
    if fault is not None and fault.stop_reason == "disk":
        return _End("disk", fault.message)
    if is_storage(cause):
        # Of several errors that follow one another, the state of the folder tells best.
        told = guard.find_trouble()
        if told is None and isinstance(cause, OSError):
            told = explain(cause, campaign.layout.root)
        return _End("disk", told or f"a file could not be written ({cause}): make space")
    if signals.received and not signals.by_radical:
        return _End("interrupted", f"interrupted by {signals.received[0].name}")
    if campaign.is_over:
        # The batch system was quicker.
        return _End("walltime", "the pilot was ended at its limit")
    if fault is not None:
        return _End(fault.stop_reason, fault.message)
    if pilot_state == "FAILED" and log.was_active:
        return _End("pilot_lost", "the pilot was lost: its agent ended unasked")
    if pilot_state == "FAILED":
        return _End("failed", "the pilot failed to start")
    if cause is None:
        return _End("failed", "EnTK ended the pipeline before the campaign was over")
    return _End("failed", f"{type(cause).__name__}: {cause}")


def _conclude(campaign: Campaign, layout: RunLayout, end: _End | None) -> None:
    """Record an end and raise what the caller is to tell of it."""
    if end is not None and end.stop_reason is None:
        raise LockLost(f"the campaign was ended: {end.message}; nothing was written after that")
    if end is not None and end.stop_reason is not None:
        try:
            campaign.end(end.stop_reason, end.message)
        except OSError as error:
            if not is_storage(error):
                raise
            # It goes on without that line: what is cut off in whatever way is resumed.
            logger.info("the end could not be recorded: %s", error)
            told = end.message if end.stop_reason == "disk" else explain(error, campaign.layout.root)
            raise _storage_error(campaign.layout, told) from None
    final = campaign.final_decision
    reason = "" if final is None else final.stop_reason
    logs = f"logs: {campaign.layout.logs} (tasks) and {campaign.layout.radical} (pilot)"
    if final is None or reason not in ("interrupted", "disk", "pilot_lost", "failed"):
        return
    if reason == "interrupted":
        raise Interrupted("interrupted; what was finished is kept in the run folder, --resume goes on with it")
    if reason == "disk":
        raise _storage_error(campaign.layout, final.reason)
    if reason == "pilot_lost":
        raise CampaignFailed(f"{final.reason}\nwhat was finished is kept, {_how_to_resume(campaign.layout)}; {logs}")
    raise CampaignFailed(f"the campaign failed: {final.reason}\n{_last_words(layout)}{logs}")


def _storage_error(layout: RunLayout, told: str | None) -> StorageError:
    return StorageError(f"{told or 'the run folder cannot be written'}, then {_how_to_resume(layout)}")


def _how_to_resume(layout: RunLayout) -> str:
    return f"go on with --resume {layout.root}"


def _note_end(log: PilotLog) -> None:
    try:
        log.end()
    except OSError as error:
        # It is taken from the agent's files later.
        logger.info("the pilot's end could not be noted: %s", error)


def _explain_no_begin(
    campaign: Campaign, fault: Fault | None, cause: BaseException | None, interrupted: bool
) -> None:
    """Why a campaign neither began nor went on: nothing is recorded of it."""
    if fault is not None and fault.stop_reason is None:
        raise LockLost(f"the campaign was ended before it began: {fault.message}")
    if fault is not None:
        raise _storage_error(campaign.layout, fault.message)
    if isinstance(cause, SettingsError):
        raise cause
    if isinstance(cause, OSError) and is_storage(cause):
        raise _storage_error(campaign.layout, explain(cause, campaign.layout.root)) from None
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

    @property
    def was_active(self) -> bool:
        """Whether the present pilot has run tasks, or could have."""
        return bool(self._records) and self._records[-1].unix_active is not None

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
    manager: Any,
    campaign: Campaign,
    layout: RunLayout,
    resource: Resource,
    log: PilotLog,
    guard: Guard,
    workflow: AdaptiveWorkflow,
) -> Iterator[None]:
    """Note when the pilot becomes active; a queued one's time began when its job did."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            pilot = getattr(getattr(manager, "_rmgr", None), "pilot", None)
            if pilot is None or pilot.state != "PMGR_ACTIVE":
                continue
            guard.watch_pilot(layout, lambda: campaign.final_decision is not None or workflow.error is not None)
            campaign.note_pilot_active()
            try:
                log.update(unix_active=time.time(), session=manager.sid)
                if resource.submit:
                    log.update(unix_began=_find_bootstrap(layout, manager.sid))
                    campaign.limit_time(log.compute_deadline())
            except OSError as error:
                # The guard sees what is wrong with the folder.
                logger.info("the pilot's start could not be noted: %s", error)
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
    if is_shell_safe(layout.root) and is_shell_safe(prefix) and scratch is None:
        yield layout, prefix
        return
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=scratch))
    (folder / "run").symlink_to(layout.root, target_is_directory=True)
    environment = prefix
    if not is_shell_safe(prefix):
        environment = folder / "environment"
        _link_environment(prefix, environment)
    safe = RunLayout(folder / "run", scratch=folder)
    for part in (safe.radical, safe.logs):
        part.mkdir()
    try:
        yield safe, environment
    finally:
        # Not in what is about to be removed; the run folder may have gone.
        os.chdir(layout.root if layout.root.is_dir() else "/")
        try:
            _bring_home(safe, layout)
        except OSError as error:
            # Whoever resumes the campaign finds it there.
            logger.warning("what radical wrote stays in %s: %s", folder, error)


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

    def __init__(self, layout: RunLayout, guard: Guard) -> None:
        self.received: list[signal.Signals] = []
        self.pilot_state: Callable[[], str | None] = lambda: None
        self.by_radical = False
        #: Where radical writes; what is to be done, the last first, when this process ends at once.
        self.layout = layout
        self.to_finish: list[Callable[[], None]] = []
        self._guard = guard
        self._pid = os.getpid()
        self._closing = False
        self._interrupting = False
        self._interrupted: float | None = None
        self._attempts = 0
        self._over = threading.Event()
        guard.on_fault = self._end_for

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

    def request_stop(self) -> None:
        """Ask the tasks to end in order, where the run folder can still be written and is this launcher's."""
        if not self._guard.has_lost_the_lock:
            with suppress(OSError):
                self.layout.stop_request.touch()

    def only_note(self) -> None:
        """From now on the campaign is being closed anyway: a first signal changes nothing."""
        self._closing = True

    def _wait(self) -> None:
        while not self._over.is_set():
            caught = signal.sigtimedwait(self._waited, 0.2) if self._waited else None
            if caught is not None and self._note(signal.Signals(caught.si_signo)):
                self._interrupt()
            elif not self._waited:
                self._over.wait(0.2)
            self._insist()

    def _interrupt(self) -> None:
        # The handler of SIGTERM runs in the main thread and raises there.
        self._interrupting = True
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def _insist(self) -> None:
        """Interrupt again where radical does not come out of its own clean-up: its components may be dead."""
        if self._interrupted is None or self._closing:
            return
        since = time.monotonic() - self._interrupted
        if since > _GIVE_UP_S:
            logger.error("radical does not end: this process does; --resume goes on with the campaign")
            self._quit(1)
        if since > _PATIENCE_S + self._attempts * _ATTEMPT_S:
            self._attempts += 1
            logger.info("radical takes long to end: interrupted again")
            self._interrupt()

    def _end_for(self, fault: Fault) -> None:
        """The guard's word: as a first signal."""
        if self.received or self._closing:
            return
        self.request_stop()
        self._interrupted = time.monotonic()
        self._interrupt()

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
        self.request_stop()
        if len(self.received) > 1 and number == signal.SIGTERM:
            # A batch system, or RADICAL-Pilot after a pilot that the first signal ended: the campaign is closing.
            return False
        if len(self.received) > 1:
            self._quit(130)
        if self._interrupted is None:
            self._interrupted = time.monotonic()
        return not self._closing

    def _quit(self, code: int) -> None:
        """End this process now, and everything that belongs to it."""
        self._guard.end_processes(self.layout, grace_s=0.0)
        for finish in reversed(self.to_finish):
            try:
                finish()
            except Exception:
                logger.info("left as it was", exc_info=True)
        os._exit(code)


def _last_words(layout: RunLayout, n_lines: int = 8) -> str:
    """The last lines that failed tasks wrote, the newest first."""
    errors = sorted(layout.logs.glob("tasks*/*/*.err"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in errors:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if any("ERROR" in line or "Error" in line for line in lines):
            return f"last lines of {path}:\n  " + "\n  ".join(lines[-n_lines:]) + "\n"
    return ""
