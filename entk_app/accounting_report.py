"""An account on disk and on the terminal: ``RUN/accounting/`` and its tables."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from entk_app.accounting import KINDS, CampaignAccount, Gaps, Parts, Pilot, PilotAccount, Task, Usage, account
from entk_app.errors import RunFolderError
from entk_app.gantt import write_figure
from entk_app.layout import RunLayout
from entk_app.records import write_record, write_text
from entk_app.usage import read_usage

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Columns of tasks.csv; times are unix seconds.
COLUMNS = (
    "pilot", "uid", "name", "stage", "kind", "iteration", "simulation", "segment", "latent_dim", "node", "cores",
    "gpus", "core_ids", "device_ids", "unix_submitted", "unix_scheduled", "unix_started", "unix_stopped",
    "unix_released", "seconds", "seconds_recorded", "core_hours", "gpu_hours", "exit_code", "state",
)  # fmt: skip

_STATES = {
    "cut off": "; was cut off: counted until its last trace",
    "running": "; is running: counted until now",
    "never started": "; has not started",
}

#: More stages than this are counted on the terminal, not listed.
_MAX_STAGES = 24


def account_run(layout: RunLayout, now: float | None = None) -> tuple[CampaignAccount, list[Path]]:
    """Account for a campaign and write ``RUN/accounting``.

    Parameters
    ----------
    layout : RunLayout
    now : float or None
        Unix time until which a running campaign is counted; None: this moment.

    Returns
    -------
    account : CampaignAccount
    paths : list of Path
        What was written.

    Raises
    ------
    RunFolderError
        It is no run folder, no pilot has left a trace, or the files cannot be written.
    """
    now = time.time() if now is None else now
    usage = read_usage(layout, now)
    result = account(usage, now)
    folder = layout.accounting
    paths = [folder / name for name in ("pilot.json", "tasks.csv", "gantt.svg", "gantt.png")]
    try:
        write_record(paths[0], result)
        write_text(paths[1], render_tasks(usage))
        write_figure(usage, f"{layout.root.resolve().name}: {_describe(result)}", paths[2:])
    except OSError as error:
        raise RunFolderError(f"cannot write {folder}: {error.strerror}") from None
    return result, paths


def render_tasks(usage: Usage) -> str:
    """``tasks.csv``: one row a task, in the order of pilots and starts."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for pilot in usage.pilots:
        for task in sorted(usage.tasks_of[pilot.number], key=lambda t: (t.started or float("inf"), t.uid)):
            writer.writerow(_row(task, pilot))
    return stream.getvalue()


def _row(task: Task, pilot: Pilot) -> tuple[object, ...]:
    seconds = task.seconds(pilot)
    times = (task.submitted, task.scheduled, task.started, task.stopped, task.released, seconds, task.recorded_s)
    hours = (task.cores * seconds / 3600.0, task.gpus * seconds / 3600.0)
    return (
        task.pilot, task.uid, task.name, task.stage, task.kind, task.iteration, task.simulation, task.segment,
        task.latent_dim, task.node, f"{task.cores:g}", f"{task.gpus:g}", " ".join(map(str, task.core_ids)),
        " ".join(map(str, task.gpu_ids)), *("" if unix is None else f"{unix:.3f}" for unix in times),
        *(f"{value:.9f}" for value in hours), task.exit_code, task.state,
    )  # fmt: skip


def build_tables(result: CampaignAccount, console: Console) -> list[Table]:
    """The account as tables that fit 80 columns; without lines off a terminal."""
    tables = [_table_pilots(result, console), _table_parts(result, console)]
    if 0 < len(result.stages) <= _MAX_STAGES:
        tables.append(_table_stages(result, console))
    return tables


def _new_table(title: str, columns: Iterable[str], console: Console) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD if console.is_terminal else None
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _table_pilots(result: CampaignAccount, console: Console) -> Table:
    columns = ("pilot", "nodes", "cores", "GPUs", "queued", "active", "1st task", "lived", "in use")
    table = _new_table("Pilots (active, 1st task: after the pilot's start)", columns, console)
    for pilot in result.pilots:
        table.add_row(
            str(pilot.number),
            str(pilot.nodes),
            str(pilot.cores),
            str(pilot.gpus),
            _duration(pilot.seconds_queued),
            _duration(pilot.seconds_to_active),
            _duration(pilot.seconds_to_first_task),
            _duration(pilot.seconds),
            _percent(pilot.gpu_hours if pilot.gpus else pilot.core_hours),
        )
    return table


def _table_parts(result: CampaignAccount, console: Console) -> Table:
    devices = [("core-hours", result.core_hours)]
    if result.gpu_hours.whole:
        devices.append(("GPU-hours", result.gpu_hours))
    columns = ["", *(column for name, _ in devices for column in (name, "%"))]
    table = _new_table("Where the pilots' time went", columns, console)

    def add(label: str, values: list[float], style: str | None = None) -> None:
        cells = [
            cell for value, (_, parts) in zip(values, devices, strict=True) for cell in _share(value, parts.whole)
        ]
        table.add_row(label, *cells, style=style)

    def of(name: str) -> list[float]:
        return [getattr(parts, name) for _, parts in devices]

    add("start-up", of("start_up"))
    for kind in (kind for kind in KINDS if kind in result.core_hours.use):
        add(kind, [parts.of_kind(kind) for _, parts in devices])
    add("overhead of RADICAL-Pilot", of("overhead"))
    add("idle", of("idle"))
    add("shutdown", of("shutdown"))
    add("sum of the parts", [parts.accounted for _, parts in devices], "bold")
    add("whole", of("whole"), "bold")
    for state in ("failed", "purged"):
        add(f"of it {state} work", [parts.of_state(state) for _, parts in devices], "dim")
    add("of it processes' start, end", of("unrecorded"), "dim")
    if any(value > 0 for value in of("oversubscribed")):
        add("asked of devices in use", of("oversubscribed"), "dim")
    return table


def _table_stages(result: CampaignAccount, console: Console) -> Table:
    table = _new_table("Stages", ("stage", "pilot", "tasks", "lasted", "core-hours", "GPU-hours"), console)
    for stage in result.stages:
        table.add_row(
            stage.name,
            str(stage.pilot),
            str(stage.n_tasks),
            _duration(stage.unix_end - stage.unix_start),
            f"{stage.core_hours:#.3g}",
            f"{stage.gpu_hours:#.3g}" if result.gpu_hours.whole else "-",
        )
    return table


def list_facts(result: CampaignAccount) -> list[str]:
    """What is no table: a line each."""
    states = ", ".join(f"{count} {state}" for state, count in sorted(result.n_tasks.items()))
    first = result.seconds_to_first_task
    facts = [
        f"tasks: {states or 'none'}",
        "first task: " + ("none yet" if first is None else f"{_duration(first)} after the command"),
        f"gaps between stages: {_describe_gaps(result.gaps)}",
        f"simulated: {result.ns:.4g} ns; {_rate(result.ns_per_core_hour, result.ns_per_core_hour_simulating, 'core')}",
    ]
    if result.gpu_hours.whole:
        facts[-1] += f"; {_rate(result.ns_per_gpu_hour, result.ns_per_gpu_hour_simulating, 'GPU')}"
    cost = result.lowest_rmsd
    if cost is not None:
        gpus = f" and {cost.gpu_hours:.3g} GPU-hours" if result.gpu_hours.whole else ""
        facts.append(
            f"lowest RMSD: {cost.rmsd_angstrom:.2f} Å, {cost.frame}, "
            f"after {cost.core_hours:.3g} core-hours{gpus} of the pilots"
        )
    return facts


def list_pilots(result: CampaignAccount) -> list[str]:
    """A line a pilot: what was asked for, and how it stands."""
    return [f"pilot {pilot.number}: {pilot.resource}, {_describe_request(pilot)}" for pilot in result.pilots]


def _describe_request(pilot: PilotAccount) -> str:
    asked = pilot.requested
    known = [f"{count} {name}" for count, name in ((asked.cores, "cores"), (asked.gpus, "GPUs")) if count is not None]
    walltime = "" if asked.walltime_min is None else f" for {_duration(asked.walltime_min * 60.0)}"
    hours = [
        f"{value:.4g} {name}-hours"
        for value, name in ((pilot.requested_core_hours, "core"), (pilot.requested_gpu_hours, "GPU"))
        if value
    ]
    reserved = f" ({', '.join(hours)})" if hours else ""
    return f"asked {', '.join(known) or 'nothing known'}{walltime}{reserved}{_STATES.get(pilot.state, '')}"


def _describe(result: CampaignAccount) -> str:
    parts, name = (
        (result.gpu_hours, "GPU-hours") if result.gpu_hours.whole else (result.core_hours, "core-hours")
    )
    count = f"{len(result.pilots)} pilot{'s' if len(result.pilots) > 1 else ''}"
    return f"{count}, {parts.whole:.3g} {name}, {_percent(parts)} in use"


def _percent(parts: Parts) -> str:
    return f"{100.0 * parts.in_use / parts.whole:.0f} %" if parts.whole else "none"


def _describe_gaps(gaps: Gaps) -> str:
    if not gaps.n:
        return "none"
    return (
        f"{gaps.n}: median {_duration(gaps.median_s)}, longest {_duration(gaps.longest_s)}, "
        f"total {_duration(gaps.total_s)}"
    )


def _share(value: float, whole: float) -> tuple[str, str]:
    """Hours with as many decimals as show four digits of the whole, and the percentage."""
    if whole <= 0:
        return f"{value:.4g}", "-"
    decimals = max(0, 3 - math.floor(math.log10(whole)))
    return f"{value:.{decimals}f}", f"{100.0 * value / whole:.2f}"


def _rate(all_in: float | None, simulating: float | None, device: str) -> str:
    if all_in is None:
        return f"no {device}-hours"
    alone = "" if simulating is None else f" ({simulating:.4g} while simulating)"
    return f"{all_in:.4g} ns a {device}-hour{alone}"


def _duration(seconds: float | None) -> str:
    """Seconds up to two minutes, else hours and minutes."""
    if seconds is None:
        return "-"
    if seconds < 120.0:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
