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
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entk_app import gpu_sharing, loopback
from entk_app.campaign import Campaign
from entk_app.errors import (
    CampaignFailed,
    EntkAppError,
    Interrupted,
    LockLost,
    RunFolderError,
    SettingsError,
    StorageError,
)
from entk_app.guard import Fault, Guard
from entk_app.hung import HungTasks
from entk_app.layout import RunLayout
from entk_app.lock import CampaignLock
from entk_app.pilot_log import PilotLog, find_bootstrap, find_walltime
from entk_app.resources import Resource
from entk_app.settings import ResourceSettings, Settings
from entk_app.shell_safe import bring_home, make_shell_safe
from entk_app.signals import Signals
from entk_app.storage import explain, is_storage
from entk_app.watchdog import Watchdog
from entk_app.workflow import is_shell_safe

if TYPE_CHECKING:
    from entk_app.workflow import AdaptiveWorkflow

logger = logging.getLogger(__name__)


def prepare_environment(
    layout: RunLayout, resource: Resource, prefix: Path, shares_gpus: bool = False
) -> None:
    """Set what radical reads at import, and write the run's own resource files.

    Parameters
    ----------
    layout : RunLayout
    resource : Resource
    prefix : Path
        The Python environment (``sys.prefix``) of launcher, agent and tasks.
    shares_gpus : bool
        Whether tasks ask for fractions of a GPU.

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
    if shares_gpus:
        # In the entry, not in this environment: a queued pilot's agent needs it too.
        hook = gpu_sharing.write_hook(layout.radical / "gpu-sharing")
        entry["pre_bootstrap_0"] = [*entry.get("pre_bootstrap_0", ()), hook]
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
    if resource.is_this_node:
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
        with _quiet_radical(), guard, Signals(layout, guard) as signals:
            signals.to_finish += [watchdog.dismiss, lock.release]
            with make_shell_safe(layout, campaign.settings.resource.scratch) as (safe, prefix):
                watchdog.watch(safe.radical)
                if safe.root != layout.root:
                    guard.add_folder(safe.radical)
                    signals.to_finish.append(lambda: bring_home(safe, layout))
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
    signals: Signals,
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
        shares_gpus = bool(resource.gpus) and campaign.settings.resource.sims_per_gpu > 1
        prepare_environment(layout, resource, prefix, shares_gpus)
        stages = campaign.begin()
        if not stages:
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
        workflow = AdaptiveWorkflow(campaign, layout, python, resource, stages, log.number)
        manager.workflow = workflow.pipelines
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
def _quiet_radical() -> Iterator[None]:
    """What kills a thread of radical, or keeps its loggers from writing, is no traceback on the user's terminal."""

    def note(args: threading.ExceptHookArgs) -> None:
        name = "a thread" if args.thread is None else args.thread.name
        logger.info("%s ended with %r", name, args.exc_value)

    before = threading.excepthook, logging.raiseExceptions
    threading.excepthook, logging.raiseExceptions = note, False
    try:
        yield
    finally:
        threading.excepthook, logging.raiseExceptions = before


@dataclass(frozen=True)
class _End:
    """How a campaign ended on this pilot where no rule ended it; without a ``stop_reason`` nothing is recorded."""

    stop_reason: str | None
    message: str


def _judge(
    campaign: Campaign,
    log: PilotLog,
    signals: Signals,
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
    trouble = guard.find_trouble()
    if trouble is not None:
        # Seen before the guard has: what else went wrong follows from it.
        return _End("disk", trouble)
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
    raise CampaignFailed(f"the campaign failed: {final.reason}\n{_last_words(campaign, layout)}{logs}")


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
            tasks = HungTasks(layout, campaign.settings.faults.hang_minutes)
            guard.watch_pilot(
                layout, lambda: campaign.final_decision is not None or workflow.error is not None, tasks
            )
            campaign.note_pilot_active()
            try:
                log.update(unix_active=time.time(), session=manager.sid)
                if resource.submit:
                    log.update(unix_began=find_bootstrap(layout, manager.sid))
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


def _pilot_state(manager: Any) -> str | None:
    resource_manager = getattr(manager, "_rmgr", None)
    return None if resource_manager is None else resource_manager.get_resource_allocation_state()


def _last_words(campaign: Campaign, layout: RunLayout, n_lines: int = 8) -> str:
    """The last lines that the task which failed last wrote, on whichever pilot."""
    if campaign.last_failed_task is None:
        return ""
    written = layout.logs.glob(f"tasks*/{campaign.last_failed_task}/*.err")
    for path in sorted(written, key=lambda path: path.stat().st_mtime, reverse=True):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if lines:
            return f"last lines of {path}:\n  " + "\n  ".join(lines[-n_lines:]) + "\n"
    return ""
