"""A run folder is made, taken over, and its settings are read and changed."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from entk_app import __version__
from entk_app.errors import RunFolderError, SettingsError
from entk_app.layout import RunLayout
from entk_app.lock import CampaignLock, check_unlocked
from entk_app.records import Decision, RunInfo, write_record, write_text
from entk_app.settings import Settings, build_settings, dump_yaml, read_config

logger = logging.getLogger(__name__)

#: Packages whose versions are kept with a run.
_PACKAGES = (
    "radical.entk", "radical.pilot", "radical.utils", "openmm", "MDAnalysis", "tensorflow", "keras", "scikit-learn",
    "scipy", "numpy", "h5py", "pydantic",
)  # fmt: skip

#: Groups of settings, or single ones, that may differ when a campaign is taken up again: not its physics.
_CHANGEABLE = ("train", "analyse", "steering", "stop", "faults", "resource", "simulate.platform")

#: Reasons for which a campaign stops with something left to do.
CUT_OFF = ("walltime", "interrupted", "pilot_lost", "disk")


def create_run_folder(layout: RunLayout, settings: Settings, command: list[str]) -> CampaignLock:
    """Make a new run folder that describes itself: settings as run, versions, seed, command; and take it.

    Raises
    ------
    RunFolderError
        It holds something already, or cannot be made.
    """
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        if any(layout.root.iterdir()):
            check_unlocked(layout.lock)
            raise RunFolderError(
                f"the run folder {layout.root} is not empty: choose another with --run-dir, remove it, "
                f"or go on with its campaign: --resume {layout.root}"
            )
        # Two launchers that found the same folder empty: the first to make this file has it.
        lock = CampaignLock.create(layout.lock)
        write_text(layout.settings, dump_yaml(settings))
        write_record(
            layout.run_info,
            RunInfo(
                entk_app=__version__,
                python=platform.python_version(),
                executable=sys.executable,
                host=platform.node(),
                machine=f"{platform.machine()}, {os.cpu_count()} cores",
                packages={name: _version(name) for name in _PACKAGES},
                command=tuple(command),
                seed=settings.seed,
                unix=time.time(),
            ),
        )
    except FileExistsError as error:
        raise RunFolderError(f"the run folder {layout.root} is taken: {error.filename} exists already") from None
    except OSError as error:
        raise RunFolderError(f"cannot write the run folder {layout.root}: {error.strerror}") from None
    return lock


def read_settings(layout: RunLayout) -> Settings:
    """The settings of the campaign in a run folder.

    Raises
    ------
    RunFolderError
        There is no campaign in the folder.
    """
    if not layout.settings.exists() or not layout.system_record.exists():
        raise RunFolderError(f"{layout.root} holds no campaign: there is no settings.yaml and no system in it")
    return build_settings(read_config(layout.settings))


def change_settings(layout: RunLayout, settings: Settings) -> None:
    """Let the campaign of a run folder go on with other settings.

    Raises
    ------
    SettingsError
        They would mix two physics, or two streams of random numbers, in one run.
    """
    before, after = (_flatten(s.model_dump(mode="json")) for s in (read_settings(layout), settings))
    for key, value in after.items():
        if value != before.get(key) and not key.startswith(_CHANGEABLE):
            raise SettingsError(
                f"{key} = {value!r}: the campaign in {layout.root} was begun with {before.get(key)!r}, and one run "
                "has one physics and one seed; start another campaign for it"
            )
    write_text(layout.settings, dump_yaml(settings))


def is_finished(decisions: Sequence[Decision]) -> bool:
    """Whether a campaign is over for good: by a rule or a failure, not by its pilot's time, an interrupt or a kill."""
    return bool(decisions) and decisions[-1].next == "stop" and decisions[-1].stop_reason not in CUT_OFF


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def claim_run_folder(layout: RunLayout, tell: Callable[[str], None] = logger.warning) -> CampaignLock:
    """Take over the run folder of a campaign whose launcher has ended.

    Parameters
    ----------
    layout : RunLayout
    tell : callable
        Given a sentence when it takes a while to know whether the launcher lives.

    Raises
    ------
    RunFolderError
        Its launcher lives, or the folder cannot be written.
    """
    lock = CampaignLock.acquire(layout.lock, tell)
    try:
        for path in (layout.stop_request, layout.deadline):
            path.unlink(missing_ok=True)
    except OSError as error:
        lock.release()
        raise RunFolderError(f"cannot write the run folder {layout.root}: {error.strerror}") from None
    return lock


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
