"""A status report on a terminal: one screen, as wide and as high as there is room for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from entk_app.launcher import describe_age
from entk_app.records import FrameRef
from entk_app.run_reader import RunReader
from entk_app.status import ModelStatus, SlotStatus, StatusReport, read_status

#: Seconds between two looks.
_REDRAW_S = 2.0
#: Simulations that are listed at least, however low the terminal.
_MIN_ROWS = 3
_BARS = "▁▂▃▄▅▆▇█"
_STYLES = {"starting": "cyan", "running": "bold green", "ending": "cyan", "ended": "bold", "dead": "bold red"}


@dataclass(frozen=True)
class _Column:
    """A column of a table; the least important goes first where the terminal is narrow."""

    title: str
    importance: int
    show: Callable[..., str]


def show_status(console: Console, reader: RunReader) -> None:
    """Print one look; all simulations off a terminal."""
    height = console.height if console.is_terminal else None
    console.print(render_status(read_status(reader), console.width, height))


def watch_status(console: Console, reader: RunReader, seconds: float = _REDRAW_S) -> None:
    """Redraw until the campaign has ended or nobody looks any more; off a terminal, a line for every change."""
    if not console.is_terminal:
        _print_changes(console, reader, seconds)
        return
    report = read_status(reader)
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while not is_at_rest(report):
                live.update(render_status(report, console.width, console.height - 1), refresh=True)
                time.sleep(seconds)
                report = read_status(reader)
    except KeyboardInterrupt:
        # Enough seen: the campaign goes on.
        pass
    console.print(render_status(report, console.width, console.height))


def is_at_rest(report: StatusReport) -> bool:
    """Whether nothing more is to come unless the campaign is taken up again."""
    return report.state in ("ended", "dead")


def _print_changes(console: Console, reader: RunReader, seconds: float) -> None:
    last = ""
    try:
        while True:
            report = read_status(reader)
            line = describe_in_a_line(report)
            if line != last:
                console.print(f"{_clock(report.unix)} {line}", markup=False, highlight=False, soft_wrap=True)
            if is_at_rest(report):
                return
            last = line
            time.sleep(seconds)
    except KeyboardInterrupt:
        return


def describe_in_a_line(report: StatusReport) -> str:
    """The campaign in one line: it changes when a task has published, not with every frame."""
    lowest = [row.min_rmsd_so_far_angstrom for row in report.iterations if row.min_rmsd_so_far_angstrom is not None]
    rmsd = f", lowest RMSD {lowest[-1]:.2f} Å" if lowest else ""
    what = report.message or report.activity
    return f"{report.state}: iteration {report.n_iterations}, {what} ({report.n_frames} frames{rmsd})"


def render_status(report: StatusReport, width: int, height: int | None = None) -> RenderableType:
    """One screen.

    Parameters
    ----------
    report : StatusReport
    width : int
        Columns of the terminal.
    height : int or None
        Its lines: simulations beyond them are counted, not listed. None: all are listed.
    """
    head, models, foot = _render_head(report, width), _render_models(report, width), _render_foot(report, width)
    # An empty line and a heading before the simulations; a line for the prompt.
    taken = sum(_count_lines(part) for part in (*head, *models, *foot)) + 3
    n_rows = len(report.slots) if height is None else height - taken
    return Group(*head, *_render_slots(report, width, n_rows), *models, *foot)


def _count_lines(part: RenderableType) -> int:
    return part.row_count + 1 if isinstance(part, Table) else 1


def _wrap(texts: Iterable[Text], width: int) -> list[Text]:
    """Lines that fit the terminal."""
    console = Console(width=width)
    return [line for text in texts for line in (text.wrap(console, width) if text else [text])]


# What it is, how it stands.


def _render_head(report: StatusReport, width: int) -> list[Text]:
    sizes = [f"{n} {unit}" for n, unit in ((report.cores, "cores"), (report.gpus, "GPUs")) if n]
    title = Text()
    title.append(report.system, style="bold")
    residues = "" if report.n_residues is None else f", {report.n_residues} residues"
    title.append(f" · {report.model}{residues} · {report.resource}")
    title.append(f": {', '.join(sizes)}" if sizes else "")
    title.append(f" · seed {report.seed}")
    lines = [title, Text(report.run, style="dim"), *_render_state(report)]
    frames = f"{report.n_frames + report.n_frames_running:,} frames"
    frames += f" ({report.n_frames_running:,} in work)" if report.n_frames_running else ""
    parts = [frames, _describe_time(report.time_ns), f"{report.n_simulations} simulations"]
    parts += [f"{n} {what}" for n, what in ((report.n_restarts, "from outliers"), (report.n_purged, "purged")) if n]
    lines.append(Text(" · ".join(parts)))
    lines += _render_rmsd(report, width)
    if report.best_score is not None:
        lines.append(_render_score(report))
    return _wrap(lines, width)


def _render_state(report: StatusReport) -> list[Text]:
    first = Text()
    first.append(report.state, style=_STYLES[report.state])
    if report.stop_reason:
        first.append(f" by {report.stop_reason}")
    first.append(f" · iteration {report.n_iterations} of {report.max_iterations}")
    if report.activity:
        first.append(f" · {report.activity}")
    pilots = f", {report.n_pilots} pilots" if report.n_pilots > 1 else ""
    first.append(f" · {_duration(report.elapsed_s)} elapsed{pilots}")
    lines = [first]
    if report.message:
        lines.append(Text(report.message))
    if report.can_resume:
        lines.append(Text(f"entk-app run --resume {report.run} goes on with it", style="cyan"))
    if report.ends:
        first_end, *others = report.ends
        text = f"ends about {_when(first_end.unix, report.unix)}, in {describe_age(first_end.unix - report.unix)}"
        text += f" ({first_end.limit})"
        text += "".join(f", else {_when(end.unix, report.unix)} ({end.limit})" for end in others)
        text += "" if report.target_rmsd_angstrom is None else ", or when it folds"
        lines.append(Text(text + ("" if report.target_score is None else ", or when the score is reached")))
    return lines


def _render_score(report: StatusReport) -> Text:
    line = Text(f"best {report.score} ")
    line.append(f"{report.best_score:.6g}", style="bold")
    if report.target_score is not None:
        line.append(f", target {report.target_score:g}")
    return line.append(f" · {report.best_score_frame}")


def _render_rmsd(report: StatusReport, width: int) -> list[Text]:
    if report.min_rmsd_angstrom is None:
        return [] if report.has_native or not report.n_frames else [Text("no native structure: no RMSD")]
    line = Text("lowest RMSD ")
    line.append(f"{report.min_rmsd_angstrom:.2f} Å", style="bold")
    if report.target_rmsd_angstrom is not None:
        line.append(f", target {report.target_rmsd_angstrom:g} Å")
    if report.min_rmsd_frame is not None:
        line.append(f" · {report.min_rmsd_frame}")
    lows = [row.min_rmsd_angstrom for row in report.iterations if row.min_rmsd_angstrom is not None]
    lines = [line]
    if len(lows) > 1:
        words = ("by iteration ", f"{lows[0]:.2f} ", f" {lows[-1]:.2f} Å")
        bars = draw_sparkline(lows, max(8, min(60, width - sum(map(len, words)))))
        lines.append(Text.assemble(words[0], words[1], (bars, "green"), words[2]))
    return lines


def draw_sparkline(values: Sequence[float], width: int) -> str:
    """Values as bars between their lowest and highest; the lowest of each piece where there are more than ``width``."""
    n_pieces = min(width, len(values))
    edges = [round(piece * len(values) / n_pieces) for piece in range(n_pieces + 1)]
    pieces = [min(values[first:last]) for first, last in pairwise(edges)]
    low, high = min(pieces), max(pieces)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in pieces)


# Simulations.


def _render_slots(report: StatusReport, width: int, n_rows: int) -> list[RenderableType]:
    if not report.slots:
        return []
    shown, left = list(report.slots), []
    if len(shown) > n_rows:
        left = _describe_left(report, width, len(shown) - n_rows)
        n_rows = max(_MIN_ROWS, n_rows - len(left))
        left = _describe_left(report, width, len(shown) - n_rows)
        shown = sorted(shown, key=lambda slot: (_or_inf(slot.min_rmsd_angstrom), slot.simulation))[:n_rows]
    columns = [
        _Column("sim", 9, lambda slot: str(slot.simulation)),
        _Column("from", 6, lambda slot: _describe_origin(slot.origin)),
        _Column("ns", 8, lambda slot: f"{slot.time_ns:.4g}"),
        _Column("ns/day", 5, lambda slot: _speed(slot.ns_per_day)),
        _Column("frames", 1, lambda slot: f"{slot.n_frames}"),
        _Column("last Å", 4, lambda slot: _number(slot.last_rmsd_angstrom, ".2f")),
        _Column("low Å", 7, lambda slot: _number(slot.min_rmsd_angstrom, ".2f")),
        _Column("outlier", 2, lambda slot: _ago(slot.frames_since_outlier)),
        _Column("purge", 3, lambda slot: _due(slot.frames_to_purge)),
    ]
    if not report.has_native:
        columns = [column for column in columns if "Å" not in column.title]
    if report.analysis is None:
        columns = [column for column in columns if column.title not in ("outlier", "purge")]
    if not is_at_rest(report):
        columns.append(_Column("now", 8, _describe_activity))
    return [Text(""), _tabulate(columns, shown, width), *left]


def _describe_left(report: StatusReport, width: int, n_left: int) -> list[Text]:
    which = "the nearest to native are listed" if report.has_native else "the first are listed"
    return _wrap([Text(f"… {n_left} more simulations: {which}, --json has all", style="dim")], width)


def _describe_origin(origin: FrameRef | None) -> str:
    return "start" if origin is None else f"{origin.simulation}/{origin.segment}/{origin.frame}"


def _describe_activity(slot: SlotStatus) -> str:
    if slot.activity != "simulates":
        return {"waits": "waits", "done": "done", "idle": "-"}[slot.activity]
    expected = slot.task_frames_expected
    return f"{slot.task_frames}/{expected}" if expected else f"{slot.task_frames} frames"


def _ago(frames: int | None) -> str:
    return "none" if frames is None else f"{frames} ago"


def _due(frames: int | None) -> str:
    return "-" if frames is None else "due" if frames == 0 else f"in {frames}"


# Models.


def _render_models(report: StatusReport, width: int) -> list[RenderableType]:
    if not report.models:
        return []
    columns = [
        _Column("latent size", 9, lambda model: f"{model.latent_dim}{' (best)' if model.is_best else ''}"),
        _Column("iteration", 5, lambda model: str(model.iteration)),
        _Column("held-out error", 8, lambda model: f"{model.held_out_reconstruction:.4g}"),
        _Column("loss", 6, lambda model: f"{model.held_out_loss:.4g}"),
        _Column("epochs", 2, lambda model: str(model.epochs)),
        _Column("trained", 1, lambda model: _duration(model.seconds_train)),
        _Column("eps", 3, lambda model: _number(model.eps, ".3g")),
        _Column("outliers", 4, lambda model: "-" if model.n_outliers is None else str(model.n_outliers)),
    ]
    table = _tabulate(columns, report.models, width)
    found = report.analysis
    if found is None:
        return [Text(""), table]
    text = f"analysis of iteration {found.iteration}: {found.n_outliers} outliers in {found.n_frames:,} frames"
    return [Text(""), table, *_wrap([Text(text)], width)]


def _render_foot(report: StatusReport, width: int) -> list[RenderableType]:
    lines = [] if report.models else [Text("")]
    if report.n_failed_tasks:
        names = ", ".join(task.name for task in reversed(report.failed_tasks[-3:]))
        lines.append(Text(f"{report.n_failed_tasks} tasks failed: {names}", style="red"))
    lines += [Text(note, style="yellow") for note in report.notes]
    lines.append(Text(f"logs: {_relative(report)}"))
    return list(_wrap(lines, width))


def _relative(report: StatusReport) -> str:
    return report.logs.replace(report.run, "RUN", 1) if report.logs.startswith(report.run) else report.logs


# Tables, numbers and times.


def _tabulate(columns: Sequence[_Column], rows: Sequence[SlotStatus] | Sequence[ModelStatus], width: int) -> Table:
    """The columns that fit, the important ones first."""
    cells = {column.title: [column.show(row) for row in rows] for column in columns}
    widths = {title: max(len(title), *map(len, shown)) + 2 for title, shown in cells.items()}
    kept = list(columns)
    while sum(widths[column.title] for column in kept) - 2 > width and len(kept) > 1:
        kept.remove(min(kept, key=lambda column: column.importance))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in kept:
        left = column.title in ("from", "now")
        table.add_column(column.title, justify="left" if left else "right", no_wrap=True)
    for row in zip(*(cells[column.title] for column in kept), strict=True):
        table.add_row(*(Text(cell) for cell in row))
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _speed(ns_per_day: float | None) -> str:
    return _number(ns_per_day, ",.0f" if ns_per_day is not None and ns_per_day >= 100 else ".3g")


def _or_inf(value: float | None) -> float:
    return float("inf") if value is None else value


def _describe_time(ns: float) -> str:
    return f"{ns:.3g} ns" if ns < 1000 else f"{ns / 1000:.4g} µs"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours}:{minutes:02d} h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _clock(unix: float) -> str:
    return datetime.fromtimestamp(unix).strftime("%H:%M:%S")


def _when(unix: float, now: float) -> str:
    """A moment by the clock, with its day where that is another."""
    moment, day = datetime.fromtimestamp(unix), datetime.fromtimestamp(now).date()
    return moment.strftime("%H:%M" if moment.date() == day else "%a %d %b %H:%M")
