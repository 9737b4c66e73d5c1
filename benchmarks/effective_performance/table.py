"""The table and the figure of what ``run.py`` measured.

``python benchmarks/effective_performance/table.py`` prints the table and draws docs/images/effective-performance.svg.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from run import COMMON, N_SLOTS, RESULTS, TEMPERATURES, read_rows

from entk_app.compare_figure import plot_survival
from entk_app.effective import Arm, EffectivePerformance, compute_effective_performance, summarise_arm
from entk_app.report import style

FIGURE = Path(__file__).parents[2] / "docs" / "images" / "effective-performance.svg"
CONTROL = "none"
_SIGN = {"exact": "", "at least": "≥ ", "at most": "≤ ", "truncated": "≈ "}
_NS_PER_US = 1000.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    arms = read_arms(options.results)
    print(
        f"calpha, {N_SLOTS} simulations at a time, friction {COMMON['simulate']['friction_per_ps']}/ps, target "
        f"{COMMON['stop']['target_rmsd_angstrom']} Å, at most {COMMON['stop']['max_time_us'] * _NS_PER_US:g} ns each\n"
    )
    titles = ("system", "T*", "arm", "reached", "median, ns", "mean by rate, ns", "effective performance", "rates", "p")
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
    for system, of_system in arms.items():
        control = of_system[CONTROL]
        for name, arm in of_system.items():
            found = summarise_arm(arm)
            cells = [
                system, f"{TEMPERATURES[system]:g}", name, f"{arm.n_reached} of {len(arm)}",
                "-" if found.median is None else f"{found.median:.2f}",
                "-" if found.mean_by_rate is None else f"{found.mean_by_rate:.2f}",
                *(describe(compare(control, arm)) if name != CONTROL else ("1", "1", "")),
            ]  # fmt: skip
            print("| " + " | ".join(cells) + " |")
    draw(arms, options.figure)


def read_arms(path: Path) -> dict[str, dict[str, Arm]]:
    """Arms by system, the control first; times in ns."""
    rows = read_rows(path)
    arms: dict[str, dict[str, Arm]] = {}
    for system in dict.fromkeys(row.system for row in rows):
        names = sorted({row.arm for row in rows if row.system == system}, key=lambda name: (name != CONTROL, name))
        for name in names:
            own = sorted((r for r in rows if (r.system, r.arm) == (system, name)), key=lambda r: r.seed)
            times = np.array([_NS_PER_US * row.time_us for row in own])
            arms.setdefault(system, {})[name] = Arm(name, times, np.array([bool(row.reached) for row in own]))
    return arms


def compare(control: Arm, arm: Arm) -> EffectivePerformance:
    return compute_effective_performance(control.times, control.reached, arm.times, arm.reached)


def describe(found: EffectivePerformance) -> tuple[str, str, str]:
    """Ratio, ratio of rates, each with its 95 % interval, and p."""
    ratio = "unknown" if found.ratio is None else f"{_SIGN[found.qualifier]}{found.ratio:.2f}"
    rates = "unknown" if found.rate_ratio is None else say(found.rate_ratio)
    return (
        ratio + say_range(found.interval),
        rates + say_range(found.rate_interval),
        "" if found.logrank_p is None else f"{found.logrank_p:.2g}",
    )


def say(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.3g}"


def say_range(interval: tuple[float, float] | None) -> str:
    return f" ({say(interval[0])} to {say(interval[1])})" if interval else ""


def draw(arms: dict[str, dict[str, Arm]], path: Path) -> None:
    with style.print_style():
        figure = style.new_figure(style.DOUBLE_MM, 85)
        axes = figure.subplots(1, len(arms), squeeze=False)[0]
        for ax, (system, of_system) in zip(axes, arms.items(), strict=True):
            plot_survival(list(of_system.values()), ax, unit="ns")
            # Beside the legend, which stands above the curves.
            ax.set_title(f"{system}, T* = {TEMPERATURES[system]:g}", loc="right")
        figure.savefig(path)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
