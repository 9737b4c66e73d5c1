"""Figures of a comparison: curves of Kaplan and Meier, and states seen against frames. Only matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from entk_app.effective import Arm, estimate_survival
from entk_app.report import style
from entk_app.report.figure import Figure, Table, draw_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

    from entk_app.compare import Comparison

#: Colours repeat after so many arms, dashes then tell them apart. The first, a control, is grey.
_COLOURS = (style.GREY, *style.CYCLE)
_DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1)))


@dataclass(frozen=True)
class Discoveries:
    """One run's curve: after ``frames`` frames it had seen 1, 2 ... states; it has ``n_frames`` in all."""

    arm: str
    frames: NDArray[np.intp]
    n_frames: int


def style_arms(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and dashes of each arm by its label, in the order of first appearance; the first, a control, is grey."""
    distinct = list(dict.fromkeys(labels))
    n = len(_COLOURS)
    return {
        label: {"color": _COLOURS[i % n], "linestyle": _DASHES[(i // n) % len(_DASHES)]}
        for i, label in enumerate(distinct)
    }


def plot_survival(arms: Sequence[Arm], ax: Axes, unit: str = "µs", event: str = "the target") -> Axes:
    """The share of runs of each arm that have not reached it, by time; ticks for censored runs, numbers at risk below.

    Parameters
    ----------
    arms : sequence of Arm
        Those of the control first.
    ax : matplotlib axes
    unit : str
        Of their times.
    event : str
        What is reached.
    """
    styles = style_arms([arm.label for arm in arms])
    end = max(float(arm.times.max()) for arm in arms)
    for arm in arms:
        curve = estimate_survival(arm.times, arm.reached)
        look = styles[arm.label]
        x = np.concatenate([[0.0], curve.times])
        label = f"{arm.label} ({arm.n_reached} of {len(arm)})"
        ax.step(x, np.concatenate([[1.0], curve.survival]), where="post", label=label, **look)
        censored = np.unique(arm.times[~arm.reached])
        shares = [curve.find_share(time) for time in censored]
        ax.plot(censored, shares, "|", color=look["color"], markersize=6, markeredgewidth=1.0)
    ax.set(
        xlabel=f"aggregate simulated time ({unit})",
        ylabel=f"share of runs not yet at\n{event}",
        xlim=(0.0, 1.03 * end),
        ylim=(-0.02, 1.05),
    )
    # Above: there is no corner that no curve may pass.
    ax.legend(
        title="arm (runs that reached it)", loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2,
        alignment="left",
    )  # fmt: skip
    _write_at_risk(arms, ax, end, styles)
    return ax


def _write_at_risk(arms: Sequence[Arm], ax: Axes, end: float, styles: dict[str, dict[str, Any]]) -> None:
    """Under the axis, at each of its ticks: how many runs had neither reached it nor been censored."""
    ticks = [tick for tick in ax.get_xticks() if 0.0 <= tick <= 1.03 * end]
    ax.set_xticks(ticks)
    placed: dict[str, Any] = {"textcoords": "offset points", "annotation_clip": False, "fontsize": 6.0}
    ax.annotate("runs at risk", (0.0, 0.0), (0, -31), xycoords="axes fraction", ha="left", va="top", **placed)
    for line, arm in enumerate(arms):
        height = -40 - 8 * line
        # Its method: the whole label stands in the legend.
        ax.annotate(
            arm.label.split(" (")[0], (0.0, 0.0), (-8, height), xycoords="axes fraction", ha="right", va="top",
            color=styles[arm.label]["color"], **placed,
        )  # fmt: skip
        for tick in ticks:
            n_at_risk = int((arm.times >= tick).sum())
            ax.annotate(
                str(n_at_risk), (tick, 0.0), (0, height), xycoords=ax.get_xaxis_transform(), ha="center", va="top",
                color=styles[arm.label]["color"], **placed,
            )  # fmt: skip


def plot_states(curves: Sequence[Discoveries], ax: Axes, n_target: int | None = None) -> Axes:
    """States seen by the first frames, a line a run in the colour of its arm.

    Parameters
    ----------
    curves : sequence of Discoveries
        Those of the control first.
    ax : matplotlib axes
    n_target : int or None
        Draw a line at as many states.
    """
    styles = style_arms([curve.arm for curve in curves])
    named = set()
    for curve in curves:
        x = np.concatenate([curve.frames, [curve.n_frames]])
        y = np.concatenate([np.arange(1, len(curve.frames) + 1), [len(curve.frames)]])
        label = None if curve.arm in named else curve.arm
        named.add(curve.arm)
        ax.step(x, y, where="post", label=label, **styles[curve.arm])
    if n_target is not None:
        ax.axhline(n_target, color=style.VERMILLION, linewidth=0.6, linestyle=(0, (4, 2)), zorder=1.5)
        ax.annotate(
            f"{n_target}: seen by every run of the control", (0.0, n_target), (3, 2), va="bottom", fontsize=6.0,
            xycoords=ax.get_yaxis_transform(), textcoords="offset points", color=style.VERMILLION,
        )  # fmt: skip
    ax.set(xlabel="frames, in the order of time", ylabel="distinct states seen", xlim=(0, None), ylim=(0, None))
    ax.legend(title="arm", loc="lower right")
    return ax


def draw_survival(comparison: Comparison, paths: Sequence[Path]) -> None:
    """Write the curves of Kaplan and Meier in each format.

    Raises
    ------
    OSError
        A file cannot be written.
    """
    measure = comparison.folding
    assert measure is not None
    unit, per_us = _choose_unit(max(float(arm.times.max()) for arm in measure.arms))
    arms = [Arm(arm.label, arm.times * per_us, arm.reached) for arm in measure.arms]

    def draw() -> Drawing:
        figure = style.new_figure(style.SINGLE_MM, 66.0 + 6.5 * len(arms))
        plot_survival(arms, figure.subplots(), unit, measure.event)
        return figure

    draw_files(Figure("survival", "Kaplan-Meier curves", "", Table({}), draw), paths)


def _choose_unit(longest_us: float) -> tuple[str, float]:
    """A unit in which this reads well, and how many of it are a microsecond."""
    return ("µs", 1.0) if longest_us >= 1.0 else ("ns", 1e3)


def draw_states(comparison: Comparison, paths: Sequence[Path]) -> None:
    """Write the states' curves in each format.

    Raises
    ------
    OSError
        A file cannot be written.
    """
    states = comparison.states
    assert states is not None
    found = zip(comparison.runs, states.discoveries, strict=True)
    curves = [Discoveries(run.arm, seen, len(run.frames)) for run, seen in found]
    # Without a control there is nothing that the others are to catch up with.
    n_target = states.n_target if states.measure.gains else None

    def draw() -> Drawing:
        figure = style.new_figure(style.SINGLE_MM, 66.0)
        plot_states(curves, figure.subplots(), n_target)
        return figure

    draw_files(Figure("states", "States seen", "", Table({}), draw), paths)
