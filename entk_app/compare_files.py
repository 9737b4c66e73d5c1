"""A comparison as files: a table, its statistics, figures."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from entk_app import __version__
from entk_app.compare import Comparison, Measure
from entk_app.compared_runs import PHYSICS, get_setting
from entk_app.effective import summarise_arm
from entk_app.errors import CompareError
from entk_app.report.figure import Table

#: Files of a comparison.
_FILES = ("compare.csv", "compare.json", "survival.svg", "survival.png", "states.csv", "states.svg", "states.png")


def choose_folder(parent: Path) -> Path:
    """``compare-001``, or the next number that is free."""
    number = 1
    while (folder := parent / f"compare-{number:03d}").exists():
        number += 1
    return folder


def check_folder(folder: Path, force: bool) -> None:
    """Refuse what cannot be written to, before the runs are read.

    Raises
    ------
    CompareError
        It is no folder, or holds a comparison already.
    """
    if folder.exists() and not folder.is_dir():
        raise CompareError(f"{folder} is not a folder: choose another name")
    if not folder.parent.is_dir():
        raise CompareError(f"{folder}: there is no folder {folder.parent}")
    there = [name for name in _FILES if (folder / name).exists()]
    if there and not force:
        raise CompareError(f"{folder / there[0]} is there already: choose another folder, or overwrite it with --force")


def write_comparison(comparison: Comparison, folder: Path, force: bool = False) -> list[Path]:
    """Write the table, the statistics and the figures; files of an earlier comparison there go.

    Parameters
    ----------
    comparison : Comparison
    folder : Path
        Made where it is not there.
    force : bool
        Overwrite what is there.

    Raises
    ------
    CompareError
        There is a comparison already, or it cannot be written.
    """
    from entk_app.compare_figure import draw_states, draw_survival

    check_folder(folder, force)
    try:
        work = Path(tempfile.mkdtemp(prefix=".compare-", dir=folder.parent))
        try:
            (work / "compare.csv").write_text(build_table(comparison).to_csv(), encoding="utf-8")
            (work / "compare.json").write_text(render_json(comparison), encoding="utf-8")
            if comparison.folding is not None:
                draw_survival(comparison, [work / "survival.svg", work / "survival.png"])
            if comparison.states is not None:
                (work / "states.csv").write_text(build_states_table(comparison).to_csv(), encoding="utf-8")
                draw_states(comparison, [work / "states.svg", work / "states.png"])
            return _publish(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise CompareError(f"{folder} cannot be written: {error.strerror or error}") from None


def _publish(work: Path, folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name in _FILES:
        if (work / name).exists():
            os.replace(work / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name in _FILES if (folder / name).exists()]


def build_table(comparison: Comparison) -> Table:
    """``compare.csv``: a row a run."""
    runs = comparison.runs
    columns: dict[str, Any] = {
        "run": [run.name for run in runs],
        "arm": [run.arm for run in runs],
        "method": [run.method for run in runs],
        "seed": [run.settings.seed for run in runs],
        "slots": [run.slots for run in runs],
        "over": [int(run.is_over) for run in runs],
        "simulations": [run.n_simulations for run in runs],
        "frames": [len(run.frames) for run in runs],
        "aggregate_us": [run.total_us for run in runs],
        "lowest_rmsd_angstrom": [
            None if run.frames.rmsd_angstrom is None else float(run.frames.rmsd_angstrom.min()) for run in runs
        ],
    }
    if comparison.folding is not None:
        passages = comparison.folding.passages
        columns |= {
            "target_angstrom": [comparison.target_angstrom] * len(runs),
            "reached": [int(p.reached) for p in passages],
            "time_us": [p.time for p in passages],
            **{
                name: [None if p.frame is None else getattr(p.frame, name) for p in passages]
                for name in ("simulation", "segment", "frame")
            },
        }
    if comparison.states is not None:
        states = comparison.states
        columns |= {
            "states": [len(seen) for seen in states.discoveries],
            "states_target": [states.n_target] * len(runs),
            "states_reached": [int(p.reached) for p in states.measure.passages],
            "states_frames": [int(p.time) for p in states.measure.passages],
        }
    return Table(columns)


def build_states_table(comparison: Comparison) -> Table:
    """``states.csv``: a row for every state that a run had not seen before."""
    assert comparison.states is not None
    found = list(zip(comparison.runs, comparison.states.discoveries, strict=True))
    return Table({
        "run": [run.name for run, seen in found for _ in seen],
        "arm": [run.arm for run, seen in found for _ in seen],
        "frames": [int(n) for _, seen in found for n in seen],
        "states": [i for _, seen in found for i in range(1, len(seen) + 1)],
    })  # fmt: skip


def render_json(comparison: Comparison) -> str:
    """``compare.json``: the statistics; null for what is not known or has no bound."""
    first = comparison.runs[0]
    states = comparison.states
    content = {
        "version": __version__,
        "system": {"name": first.system.name, "model": first.system.model, "n_residues": first.system.n_residues},
        "physics": {key: get_setting(first.settings, key) for key in PHYSICS if key.startswith("simulate.")},
        "target_angstrom": comparison.target_angstrom,
        "seed": comparison.seed,
        "runs": [
            {
                "run": run.name, "path": str(run.layout.root), "arm": run.arm, "seed": run.settings.seed,
                "slots": run.slots,
            }
            for run in comparison.runs
        ],
        "folding": None if comparison.folding is None else _as_plain(comparison.folding),
        "states": None if states is None else {
            "n_states": states.n_states, "explained_variance": states.explained, "n_target": states.n_target,
            **_as_plain(states.measure),
        },
        "notes": comparison.notes,
    }  # fmt: skip
    return json.dumps(_without_infinities(content), indent=2, ensure_ascii=False) + "\n"


def _as_plain(measure: Measure) -> dict[str, Any]:
    return {
        "event": measure.event,
        "unit": measure.unit,
        "arms": [asdict(summarise_arm(arm)) for arm in measure.arms],
        "gains": [
            {"control": gain.control, "steered": gain.steered, **asdict(gain.performance)} for gain in measure.gains
        ],
    }


def _without_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
