"""The pilots of a campaign as its launcher keeps them, and the time that is left to the present one."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from entk_app.batch import find_end_unix
from entk_app.errors import RecordError, RunFolderError, SettingsError
from entk_app.layout import RunLayout
from entk_app.processes import end_processes
from entk_app.profiles import read_profile
from entk_app.records import Deadline, PilotRecord, read_lines, write_lines
from entk_app.resources import Resource
from entk_app.settings import ResourceSettings, Settings
from entk_app.shell_safe import bring_home

_DEFAULT_WALLTIME_MIN = 60.0


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
                bring_home(there, self._layout)

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
        closing = find_closing_seconds(60.0 * minutes)
        began = record.unix_submitted if record.unix_began is None else record.unix_began
        limits = [Deadline(end_by_unix=began + 60.0 * minutes - closing, limit="walltime")]
        job_end = None if record.queued else find_end_unix(os.environ)
        if job_end is not None:
            limits.append(Deadline(end_by_unix=job_end - closing, limit="walltime"))
        budget = self._settings.stop.budget_gpu_hours
        if budget is not None:
            left = budget - sum(earlier.gpu_hours for earlier in self._records[:-1])
            seconds = 3600.0 * left / record.gpus
            limits.append(Deadline(end_by_unix=began + seconds - find_closing_seconds(seconds), limit="budget"))
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


def find_walltime(settings: ResourceSettings) -> float:
    """Minutes that a pilot may run: as asked for, else what is left of the batch job around it, else an hour."""
    if settings.walltime_min is not None:
        return settings.walltime_min
    end = None if settings.submit else find_end_unix(os.environ)
    return _DEFAULT_WALLTIME_MIN if end is None else max(1.0, (end - time.time()) / 60.0)


def find_bootstrap(layout: RunLayout, session: str) -> float:
    """When a queued pilot's job began: the first event of its bootstrapper, else now."""
    starts = [
        event.unix
        for path in layout.radical.glob(f"radical.pilot.sandbox/{session}/pilot.*/bootstrap_0*.prof")
        for event in read_profile(path)
        if event.name == "bootstrap_0_start"
    ]
    return min(starts, default=time.time())


def find_closing_seconds(seconds: float) -> float:
    """Time kept at the end of so many seconds for tasks to notice, close their files, and the pilot to go.

    A pilot takes 10 to 20 s to go, whatever its walltime; of a short one at most a half is kept.
    """
    return min(60.0, max(20.0, 0.1 * seconds), 0.5 * seconds)
