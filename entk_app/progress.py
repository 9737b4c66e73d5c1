"""What a running campaign prints: one live line on a terminal, a line a decision elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from entk_app.campaign import Campaign, StageSpec, TaskSpec
from entk_app.errors import RecordError
from entk_app.records import Decision, SegmentProgress, SegmentRecord, read_record

#: Redraws a second: each reads one small file a running simulation.
_REDRAWS_S = 1.0


class Progress:
    """Shows a campaign while its ``with`` block runs.

    Parameters
    ----------
    console : rich.console.Console
    campaign : Campaign
    """

    def __init__(self, console: Console, campaign: Campaign) -> None:
        self._console = console
        self._campaign = campaign
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Live | None = None
        self._pilot_is_up = False

    def __enter__(self) -> Progress:
        self._campaign.on_decision = self.show_decision
        if self._console.is_terminal:
            self._live = Live(self._line(), console=self._console, auto_refresh=False, transient=True)
            self._live.start()
            self._thread = threading.Thread(target=self._redraw, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._live is not None:
            self._live.stop()

    def show_decision(self, decision: Decision) -> None:
        """One plain line: iteration, what is next and why, frames and lowest RMSD."""
        rmsd = "" if decision.min_rmsd_angstrom is None else f", lowest RMSD {decision.min_rmsd_angstrom:.2f} Å"
        outliers = "" if decision.n_outliers is None else f", {decision.n_outliers} outliers"
        self._console.print(
            f"{_clock(time.monotonic() - self._began)} iteration {decision.iteration}: {decision.next}: "
            f"{decision.reason} ({decision.n_frames} frames{outliers}{rmsd})",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def _redraw(self) -> None:
        while not self._ended.wait(_REDRAWS_S):
            if self._live is not None:
                self._live.update(self._line(), refresh=True)

    def _line(self) -> Text:
        clock = _clock(time.monotonic() - self._began)
        stages = self._campaign.stages
        if not stages:
            return Text(f"{clock} {'closing' if self._campaign.decisions else 'starting'} the pilot")
        self._pilot_is_up = self._pilot_is_up or any(
            _has_begun(task) for stage in stages for task in stage.tasks
        )
        if not self._pilot_is_up:
            return Text(f"{clock} starting the pilot")
        shot = self._campaign.snapshot()
        n_frames, lowest = shot.n_frames, shot.min_rmsd_angstrom
        for running in self._running(stages):
            n_frames += running.n_frames
            if running.min_rmsd_angstrom is not None:
                lowest = min(lowest or running.min_rmsd_angstrom, running.min_rmsd_angstrom)
        rmsd = "" if lowest is None else f" · lowest RMSD {lowest:.2f} Å"
        # Within 80 columns.
        return Text(
            f"{clock} iteration {shot.iteration} {shot.stage} · {n_frames} frames{rmsd} · "
            f"{shot.n_alive} alive, {shot.n_purged} purged"
        )

    def _running(self, stages: Iterable[StageSpec]) -> list[SegmentProgress | SegmentRecord]:
        """What the tasks of simulate stages have so far: whole segments and those being written."""
        found: list[SegmentProgress | SegmentRecord] = []
        layout = self._campaign.layout
        for task in (task for stage in stages if stage.kind == "simulate" for task in stage.tasks):
            place = layout.find_segment(task.output)
            if place is None:
                continue
            simulation, first = place
            whole = [number for number in layout.segment_numbers(simulation) if number >= first]
            try:
                found += [read_record(SegmentRecord, layout.segment(simulation, number).record) for number in whole]
                running = layout.segment(simulation, max(whole, default=first - 1) + 1).in_work()
                found.append(read_record(SegmentProgress, running.progress))
            except RecordError:
                # Not begun, or published between the two looks: the next redraw sees it.
                continue
        return found


def _has_begun(task: TaskSpec) -> bool:
    output = task.output
    return output.exists() or output.with_name(output.name + ".partial").exists()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
