"""A comparison on the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from entk_app.compare import Comparison, Gain, Measure
from entk_app.effective import Qualifier, summarise_arm

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: How a ratio of restricted means is written.
SIGNS: dict[Qualifier, str] = {"exact": "", "at least": "≥ ", "at most": "≤ ", "truncated": ""}

#: More runs than this are in the file only.
_MAX_RUNS = 40


def list_facts(comparison: Comparison) -> list[str]:
    """What all runs have in common: a line each."""
    first = comparison.runs[0]
    simulate = first.settings.simulate
    slots = sorted({run.slots for run in comparison.runs})
    seeds = sorted({run.settings.seed for run in comparison.runs})
    target = "" if comparison.target_angstrom is None else f"; target {comparison.target_angstrom:g} Å"
    return [
        f"{first.system.name}, {first.system.model}, {first.system.n_residues} residues; {simulate.temperature_k:g} K, "
        f"friction {simulate.friction_per_ps:g}/ps, steps of {simulate.time_step_fs:g} fs{target}",
        f"{len(comparison.runs)} runs with {_join(slots)} simulations at a time; seeds {_join(seeds)}",
    ]


def _join(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def build_tables(comparison: Comparison, console: Console) -> list[Table]:
    """The comparison as tables that fit 80 columns with short names; without lines off a terminal."""
    tables = [_table_runs(comparison, console)] if len(comparison.runs) <= _MAX_RUNS else []
    for measure in list_measures(comparison):
        tables.append(_table_arms(measure, console))
        if measure.gains:
            tables.append(_table_gains(measure, console))
    return tables


def list_measures(comparison: Comparison) -> list[Measure]:
    found = [comparison.folding, None if comparison.states is None else comparison.states.measure]
    return [measure for measure in found if measure is not None]


def tell_gains(comparison: Comparison) -> list[str]:
    """The ratios in sentences."""
    lines = []
    for measure in list_measures(comparison):
        lines += [f"{describe_gain(gain, measure.unit)} ({measure.event})" for gain in measure.gains]
    return lines


def _new_table(title: str, columns: Sequence[str], console: Console, n_left: int = 1) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD if console.is_terminal else None
    )
    for number, column in enumerate(columns):
        is_left = number < n_left
        # Names may be long, numbers are not to be broken.
        table.add_column(column, justify="left" if is_left else "right", no_wrap=not is_left, overflow="fold")
    return table


def _table_runs(comparison: Comparison, console: Console) -> Table:
    folding, states = comparison.folding, comparison.states
    columns = ["run", "arm", "seed", "slots", "frames", "simulated"]
    columns += ["reached after", "lowest Å"] if folding is not None else []
    columns += ["states"] if states is not None else []
    table = _new_table("Runs", columns, console, n_left=2)
    for place, run in enumerate(comparison.runs):
        cells = [run.name + ("" if run.is_over else " *"), run.arm, str(run.settings.seed), str(run.slots)]
        cells += [f"{len(run.frames):,}", format_time(run.total_us, "µs")]
        if folding is not None and run.frames.rmsd_angstrom is not None:
            passage = folding.passages[place]
            cells += [format_time(passage.time, "µs") if passage.reached else "not yet" if not run.is_over else "never"]
            cells += [f"{run.frames.rmsd_angstrom.min():.2f}"]
        cells += [str(len(states.discoveries[place]))] if states is not None else []
        table.add_row(*cells)
    if not all(run.is_over for run in comparison.runs):
        table.caption, table.caption_justify = "* runs, or was cut off", "left"
    return table


def _table_arms(measure: Measure, console: Console) -> Table:
    columns = ("arm", "runs", "reached", "median", "mean up to", "is", "time / reached")
    table = _new_table(f"Arms: {_name(measure)} until {measure.event}", columns, console)
    for arm in map(summarise_arm, measure.arms):
        table.add_row(
            arm.label,
            str(arm.n_runs),
            str(arm.n_reached),
            "not reached" if arm.median is None else format_time(arm.median, measure.unit),
            format_time(arm.horizon, measure.unit),
            format_time(arm.restricted_mean, measure.unit),
            "-" if arm.mean_by_rate is None else format_time(arm.mean_by_rate, measure.unit),
        )
    return table


def _table_gains(measure: Measure, console: Console) -> Table:
    confidence = f"{measure.gains[0].performance.confidence:.0%}".replace("%", " %")
    columns = ("arm / control", "ratio", confidence, "up to", "of rates", confidence, "p")
    table = _new_table(f"Effective performance: {_name(measure)}, control over arm", columns, console)
    for gain in measure.gains:
        found = gain.performance
        table.add_row(
            f"{gain.steered} / {gain.control}",
            "-" if found.ratio is None else f"{SIGNS[found.qualifier]}{_number(found.ratio)}",
            _range(found.interval),
            format_time(found.horizon, measure.unit),
            _number(found.rate_ratio),
            _range(found.rate_interval),
            "-" if found.logrank_p is None else f"{found.logrank_p:.2g}",
        )
    return table


def _name(measure: Measure) -> str:
    return "frames" if measure.unit == "frames" else "aggregate time"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return "infinite" if math.isinf(value) else f"{value:.3g}"


def _range(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return "-"
    low, high = interval
    return f"> {_number(low)}" if math.isinf(high) else f"{_number(low)} to {_number(high)}"


def format_time(value: float, unit: str) -> str:
    """With its unit: frames as they are, short times in ns."""
    if unit == "frames":
        return f"{value:,.0f}"
    return f"{value:.4g} µs" if value >= 1.0 else f"{1000.0 * value:.4g} ns"


def describe_gain(gain: Gain, unit: str) -> str:
    """A sentence with the ratio and what it is worth."""
    found = gain.performance
    if found.ratio is None:
        return f"{gain.steered} over {gain.control}: unknown, as no run of either reached it in the time that both had"
    interval = (
        f", {found.confidence:.0%} interval {found.interval[0]:.3g} to {found.interval[1]:.3g}".replace("%", " %")
        if found.interval is not None
        else " (no interval: an arm has a single run)"
    )
    up_to = format_time(found.horizon, unit)
    bound = {
        "exact": "",
        "at least": "; at least, as not every run of the control reached it",
        "at most": f"; at most, as not every run of {gain.steered} reached it",
        "truncated": f"; of the times up to {up_to} only, as not every run of either reached it",
    }[found.qualifier]
    return f"{gain.steered} over {gain.control}: {SIGNS[found.qualifier]}{found.ratio:.3g}{interval}{bound}"
