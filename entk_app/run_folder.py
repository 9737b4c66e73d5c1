"""A run folder is made, taken over, and its settings are read and changed."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
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
_CHANGEABLE = (
    "train", "analyse", "steering", "stop", "faults", "resource", "simulate.platform", "simulate.segment_",
)  # fmt: skip

#: Of these, what may not: every frame has the same score, and an arm of a comparison one method.
_FIXED = ("steering.score", "steering.method")

#: Reasons for which a campaign stops with something left to do.
CUT_OFF = ("walltime", "interrupted", "pilot_lost", "disk")


def create_run_folder(layout: RunLayout, settings: Settings, command: list[str]) -> CampaignLock:
    """Make a new run folder that describes itself: settings as run, versions, seed, command; and take it.

    Raises
    ------
    RunFolderError
        It holds something already, or cannot be made.
    """
    check_new_run_folder(layout)
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
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


def check_new_run_folder(layout: RunLayout) -> None:
    """Refuse a run folder that a new campaign cannot have; makes nothing.

    Raises
    ------
    RunFolderError
        It is a file, holds a campaign or anything else, or cannot be made.
    """
    root = layout.root
    try:
        if not root.exists():
            parent = find_existing(root)
            if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
                what = "may not be written to" if parent.is_dir() else "is a file"
                raise RunFolderError(f"the run folder {root} cannot be made: {parent} {what}; choose another --run-dir")
            return
        if not root.is_dir():
            raise RunFolderError(f"the run folder {root} is a file: choose another with --run-dir")
        check_unlocked(layout.lock)
        if _holds_campaign(layout):
            raise RunFolderError(
                f"the run folder {root} holds a campaign already: go on with it by --resume {shlex.quote(str(root))}, "
                "or choose another with --run-dir"
            )
        if any(root.iterdir()):
            raise RunFolderError(
                f"the run folder {root} is not empty, and what is in it is no campaign: choose another with --run-dir"
            )
        if not os.access(root, os.W_OK | os.X_OK):
            raise RunFolderError(f"the run folder {root} may not be written to: choose another with --run-dir")
    except OSError as error:
        raise RunFolderError(f"cannot use the run folder {str(root)[:200]}: {error.strerror}") from None


def find_existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists() or place.is_symlink())


def _holds_campaign(layout: RunLayout) -> bool:
    return layout.settings.exists() and layout.system_record.exists()


def read_settings(layout: RunLayout) -> Settings:
    """The settings of the campaign in a run folder.

    Raises
    ------
    RunFolderError
        There is no such folder, or no campaign in it.
    """
    try:
        if not layout.root.exists():
            raise RunFolderError(f"there is no run folder {layout.root}")
        if not layout.root.is_dir():
            raise RunFolderError(f"{layout.root} is a file: give the run folder of a campaign")
        if not _holds_campaign(layout):
            raise RunFolderError(
                f"{layout.root} holds no campaign: there is no settings.yaml and no system in it; --run-dir starts a "
                "new one there if it is empty"
            )
    except OSError as error:
        raise RunFolderError(f"cannot read the run folder {str(layout.root)[:200]}: {error.strerror}") from None
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
        if value != before.get(key) and (key.startswith(_FIXED) or not key.startswith(_CHANGEABLE)):
            raise SettingsError(
                f"{key} = {value!r}: the campaign in {layout.root} was begun with {before.get(key)!r}, and one run "
                "has one physics, one seed, one method and one score; start another campaign for it"
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
