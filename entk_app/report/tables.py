"""What the report says in words and numbers: the answer, the paper's tables beside this campaign, the decisions."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from entk_app.records import Action, Decision, FrameRef
from entk_app.report import paper
from entk_app.report.data import ReportData
from entk_app.report.figure import Table
from entk_app.report.figures.common import choose_time_unit, describe_limits

NOT_KNOWN = "–"


@dataclass(frozen=True)
class Fact:
    """One answer: a question, the number, and what it stands on."""

    name: str
    question: str
    answer: str
    detail: str


@dataclass(frozen=True)
class TextTable:
    """A table of the page: cells as they are shown; the first row of ``rows`` is this campaign.

    ``numbers`` are its rows for other programs, in full.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: Table
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measures:
    """This campaign's numbers of the paper's tables. ``None``: there is nothing to compute it from.

    Attributes
    ----------
    shortest_us : float or None
        Of the simulations with at least ``steering.min_frames`` frames.
    train_minutes, seconds_per_epoch, inference_ms_per_frame : float or None
        Medians over the models.
    md_ns_per_minute : float or None
        Of one simulation: all simulated time over all time that integrators ran.
    """

    n_simulations: int
    total_time_us: float
    shortest_us: float | None
    longest_us: float | None
    n_iterations: int
    min_rmsd_angstrom: float | None
    best_score: float | None
    train_minutes: float | None
    epochs: float | None
    seconds_per_epoch: float | None
    inference_ms_per_frame: float | None
    md_ns_per_minute: float | None


def measure(data: ReportData) -> Measures:
    """The numbers, from the records of finished segments and models."""
    segments, lives = data.run.segments, data.lives
    past = [life.time_ps for life in lives if life.n_frames >= data.run.settings.steering.min_frames]
    records = [training.record for training in data.trainings]
    seconds_md = sum(segment.seconds_md for segment in segments)
    time_ps = sum(segment.time_ps for segment in segments)
    lowest = [s.min_rmsd_angstrom for s in segments if s.min_rmsd_angstrom is not None]
    return Measures(
        n_simulations=len(lives),
        total_time_us=time_ps * 1e-6,
        shortest_us=min(past) * 1e-6 if past else None,
        longest_us=max((life.time_ps for life in lives), default=0.0) * 1e-6 if lives else None,
        n_iterations=data.status.n_iterations,
        min_rmsd_angstrom=min(lowest, default=None),
        best_score=data.status.best_score,
        train_minutes=_median(record.seconds_train / 60.0 for record in records),
        epochs=_median(record.epochs for record in records),
        seconds_per_epoch=_median(record.seconds_per_epoch for record in records),
        inference_ms_per_frame=_median(
            r.inference_ms_per_frame for r in records if r.inference_ms_per_frame is not None
        ),
        md_ns_per_minute=time_ps * 1e-3 / (seconds_md / 60.0) if seconds_md > 0 else None,
    )


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return float(statistics.median(known)) if known else None


# The answer.


def list_facts(data: ReportData, measures: Measures) -> list[Fact]:
    """Did it fold, how low, when, how long, at what cost."""
    return [_fold(data), _lowest(data), _when(data), _how_long(data, measures), _cost(data)]


def _fold(data: ReportData) -> Fact:
    question, limits = "Did it fold?", data.limits
    if data.rmsd is None:
        reason = "no native structure" if not data.system.has_native else "no RMSD is known"
        return Fact("folded", question, NOT_KNOWN, f"Cannot be told: {reason}.")
    n_folded = int((data.rmsd <= limits.folded).sum())
    if n_folded:
        share = 100.0 * n_folded / len(data.rmsd)
        said = f"{n_folded:,} frames ({share:.2g} %) are at {limits.folded:.3g} Å or less."
        return Fact("folded", question, "Yes", said)
    partial = bool((data.rmsd <= limits.partial).any())
    reached = f"partially (≤ {limits.partial:.3g} Å)" if partial else "not partially either"
    still = " so far" if data.status.state in ("starting", "running") else ""
    return Fact("folded", question, f"No{still}", f"No frame is at {limits.folded:.3g} Å or less; {reached}.")


def _lowest(data: ReportData) -> Fact:
    if data.best_row is None or data.rmsd is None:
        return Fact("lowest", "How low?", NOT_KNOWN, "No RMSD is known.")
    ref = data.frames.ref(data.best_row)
    return Fact("lowest", "How low?", f"{data.rmsd[data.best_row]:.2f} Å", f"{_name_frame(ref)}.")


def _when(data: ReportData) -> Fact:
    row, question = data.first_folded_row, "When?"
    if row is None:
        if data.best_row is None:
            return Fact("when", question, NOT_KNOWN, "No RMSD is known.")
        row, question = data.best_row, "Lowest when?"
    frames = data.frames
    after = format_time_ps(float(frames.aggregate_ps[row]))
    clock = format_seconds(3600.0 * float(data.to_working_hours(float(frames.unix[row]))))
    what = "First folded frame" if row == data.first_folded_row else "Lowest RMSD"
    return Fact(
        "when", question, f"after {after}",
        f"{what}: {_name_frame(frames.ref(row))}, iteration {int(frames.iteration[row])}, {clock} after the beginning.",
    )  # fmt: skip


def _how_long(data: ReportData, measures: Measures) -> Fact:
    simulated = format_time_ps(measures.total_time_us * 1e6)
    n_frames = sum(life.n_frames for life in data.lives)
    return Fact(
        "long", "How long?", format_seconds(data.status.elapsed_s),
        f"{simulated} in {n_frames:,} frames of {measures.n_simulations} simulations, "
        f"{measures.n_iterations} iterations.",
    )  # fmt: skip


def _cost(data: ReportData) -> Fact:
    question = "At what cost?"
    if data.account is None:
        return Fact("cost", question, NOT_KNOWN, "No pilot has left a trace that can be read.")
    cores, gpus = data.account.core_hours, data.account.gpu_hours
    main, unit = (gpus, "GPU-hours") if gpus.whole else (cores, "core-hours")
    used = f"{100.0 * main.in_use / main.whole:.0f} % of it in use" if main.whole else "none in use"
    beside = f"{cores.whole:.3g} core-hours; " if gpus.whole else ""
    n = len(data.account.pilots)
    return Fact("cost", question, f"{main.whole:.3g} {unit}", f"{beside}{used}; {n} pilot{'s' if n != 1 else ''}.")


def describe_state(data: ReportData) -> tuple[str, str]:
    """A word for how the campaign stands, and why."""
    status = data.status
    word = status.stop_reason or status.state if status.state == "ended" else status.state
    return word, status.message or status.activity


# The paper's tables.


def build_table_1(data: ReportData, ours: Measures) -> TextTable:
    """The paper's table 1: summary statistics of simulations."""
    rows = [(
        f"{data.system.name}, this campaign", str(ours.n_simulations), format_us(ours.total_time_us),
        f"{format_us(ours.shortest_us)}, {format_us(ours.longest_us)}", str(ours.n_iterations),
        NOT_KNOWN if ours.min_rmsd_angstrom is None else f"{ours.min_rmsd_angstrom:.2f}",
        describe_platform(data), f"{data.run.settings.simulate.friction_per_ps:g}",
    )]  # fmt: skip
    rows += [
        (f"{row.title}, the paper", str(row.n_simulations), f"{row.total_time_us:g}",
         f"{row.shortest_us:g}, {row.longest_us:g}", str(row.n_iterations), f"{row.min_rmsd_angstrom:g}",
         paper.PLATFORM, f"{paper.FRICTION_PER_PS:g}")
        for row in paper.ROWS
    ]  # fmt: skip
    notes = [
        f"Shortest: of simulations past the initial threshold, here steering.min_frames = "
        f"{data.run.settings.steering.min_frames:,} frames"
        + ("." if ours.shortest_us is not None else "; none has so many yet."),
    ]
    if ours.min_rmsd_angstrom is None:
        notes.append("No lowest RMSD: there is no native structure, or no segment is whole.")
    if data.status.best_score is not None:
        notes.append(
            f"Best {data.status.score} ({data.run.settings.steering.goal}d): {data.status.best_score:.6g}, "
            f"{data.status.best_score_frame}."
        )
    return TextTable(
        "table-1",
        "Simulations (the paper's table 1)",
        ("system", "simulations", "total time (µs)", "shortest, longest (µs)", "iterations", "min. RMSD (Å)",
         "platform", "friction (1/ps)"),
        tuple(rows),
        _gather(data, ours, "n_simulations", "total_time_us", "shortest_us", "longest_us", "n_iterations",
                "min_rmsd_angstrom", *(["best_score"] if data.status.score else [])),
        (*notes, *_note_physics(data)),
    )  # fmt: skip


def build_table_2(data: ReportData, ours: Measures) -> TextTable:
    """The paper's table 2: time taken by the components."""
    friction = f"{data.run.settings.simulate.friction_per_ps:g}"
    rows = [(
        f"{data.system.name}, this campaign", _number(ours.train_minutes), _number(ours.epochs),
        _number(ours.seconds_per_epoch), _number(ours.inference_ms_per_frame), _number(ours.md_ns_per_minute),
        describe_platform(data), friction,
    )]  # fmt: skip
    rows += [
        (f"{row.title}, the paper", f"{row.train_minutes:g}", str(row.epochs), f"{row.seconds_per_epoch:g}",
         f"{row.inference_ms_per_frame:g}", f"{row.md_ns_per_minute:g}", paper.PLATFORM, f"{paper.FRICTION_PER_PS:g}")
        for row in paper.ROWS
    ]  # fmt: skip
    notes = [
        f"Training, epochs, epoch and inference: medians of {len(data.trainings):,} models; MD: of one simulation, "
        "all simulated time over the time that integrators ran."
    ]
    if not data.trainings:
        notes = ["No model has been published yet: training and inference are left out."]
    return TextTable(
        "table-2",
        "Time taken by the parts (the paper's table 2)",
        ("system", "training (min)", "epochs", "an epoch (s)", "inference (ms a frame)", "MD (ns a minute)", "platform",
         "friction (1/ps)"),
        tuple(rows),
        _gather(data, ours, "train_minutes", "epochs", "seconds_per_epoch", "inference_ms_per_frame",
                "md_ns_per_minute"),
        (*notes, *_note_physics(data)),
    )  # fmt: skip


def _gather(data: ReportData, ours: Measures, *names: str) -> Table:
    """These numbers of this campaign and of the paper's."""
    rows: list[Any] = [ours, *paper.ROWS]
    return Table({
        "system": [data.system.name, *(row.system for row in paper.ROWS)],
        "source": ["campaign", *("paper" for _ in paper.ROWS)],
        # The paper has no score beside the RMSD.
        **{name: [getattr(row, name, None) for row in rows] for name in names},
        "platform": [describe_platform(data), *(paper.PLATFORM for _ in paper.ROWS)],
        "friction_per_ps": [data.run.settings.simulate.friction_per_ps, *(paper.FRICTION_PER_PS for _ in paper.ROWS)],
    })  # fmt: skip


def _note_physics(data: ReportData) -> tuple[str, ...]:
    if data.system.model != "calpha":
        return ()
    return (
        "The CA model has no physical time scale: its times are the integrator's and are not to be compared with the "
        "paper's all-atom times.",
    )


def describe_platform(data: ReportData) -> str:
    """Where this campaign ran: the pilot, the machine's devices, OpenMM and its platform, the model."""
    segments, info, pilots = data.run.segments, data.info, data.run.pilots
    platforms = sorted({segment.platform for segment in segments})
    version = (info.packages.get("openmm") or "") if info else ""
    devices = "" if not pilots else f"{pilots[-1].cores} cores, {pilots[-1].gpus} GPUs"
    where = data.run.settings.resource.label
    # The reader of many records leaves placements as they stand in the file.
    placements: list[Any] = [segment.placement for segment in segments[-1:]]
    is_emulated = any(placement and placement["emulated"] for placement in placements)
    parts = [
        f"{where}{' (emulated devices)' if is_emulated else ''}{': ' + devices if devices else ''}",
        f"OpenMM {version} {'/'.join(platforms)}".replace("  ", " ").strip(),
        data.system.model,
    ]
    return "; ".join(part for part in parts if part)


# Decisions and what it was run with.


@dataclass(frozen=True)
class Told:
    """A decision in words."""

    index: int
    hours: float
    iteration: int
    headline: str
    numbers: str
    actions: tuple[str, ...]


def tell_decisions(data: ReportData) -> list[Told]:
    """Every decision as sentences, oldest first."""
    return [_tell(decision, float(data.to_working_hours(decision.unix))) for decision in data.run.decisions]


def _tell(decision: Decision, hours: float) -> Told:
    verb = {
        "simulate": "Simulate", "learn": "Learn", "simulate+learn": "Simulate and learn at once", "stop": "Stop",
    }[decision.next]  # fmt: skip
    numbers = f"{decision.n_frames:,} frames"
    if decision.n_outliers is not None:
        numbers += f", {decision.n_outliers:,} outliers"
    if decision.min_rmsd_angstrom is not None:
        numbers += f", lowest RMSD {decision.min_rmsd_angstrom:.2f} Å"
    if decision.n_failed_tasks:
        numbers += f", {decision.n_failed_tasks} tasks failed"
    reason = f" ({decision.stop_reason})" if decision.stop_reason else ""
    return Told(
        decision.index, hours, decision.iteration, f"{verb}{reason}: {decision.reason}.", numbers,
        tuple(_tell_action(action) for action in decision.actions),
    )  # fmt: skip


def _tell_action(action: Action) -> str:
    verb = {
        "start": "starts", "continue": "goes on", "restart": "starts", "purge": "is purged", "end": "ends",
    }[action.kind]  # fmt: skip
    return f"Simulation {action.simulation} {verb}: {action.reason}."


def list_settings(data: ReportData) -> list[tuple[str, str]]:
    """With what it was run."""
    settings, system = data.run.settings, data.system
    simulate = settings.simulate
    length = f"{simulate.segment_ns:g} ns" if simulate.segment_ns is not None else f"{simulate.segment_minutes:g} min"
    told = [
        ("System", f"{system.name}, {system.kind}, {system.n_residues} residues, {system.n_atoms} particles"),
        ("Sequence", system.sequence or NOT_KNOWN),
        ("Force field", system.force_field),
        ("Dynamics", f"{simulate.temperature_k:g} K, friction {simulate.friction_per_ps:g}/ps, step "
         f"{simulate.time_step_fs:g} fs, a frame every {simulate.report_interval_ps:g} ps, segments of {length}"),
        ("Models", f"{settings.train.architecture}, latent sizes {', '.join(map(str, settings.train.latent_dims))}"),
        ("Seed", str(settings.seed)),
        ("Limits of the classes", describe_limits(data)),
    ]  # fmt: skip
    if data.info is not None:
        versions = [f"{name} {version}" for name, version in data.info.packages.items() if version]
        told += [
            ("Versions", f"entk-app {data.info.entk_app}, Python {data.info.python}, {', '.join(versions)}"),
            ("Machine", f"{data.info.host}: {data.info.machine}"),
            ("Command", " ".join(data.info.command)),
        ]
    return told


# Numbers as they are read.


def format_us(value: float | None) -> str:
    """Microseconds as the paper prints them, with more decimals where they are few."""
    if value is None:
        return NOT_KNOWN
    return f"{value:.3f}" if value >= 0.1 else np.format_float_positional(value, 3, fractional=False, trim="-")


def format_time_ps(picoseconds: float) -> str:
    unit, size = choose_time_unit(picoseconds)
    return f"{picoseconds / size:.4g} {unit}"


def format_seconds(seconds: float) -> str:
    """As days, hours, minutes or seconds."""
    if seconds < 120.0:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24.0:.1f} days"


def _number(value: float | None) -> str:
    return NOT_KNOWN if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _name_frame(ref: FrameRef) -> str:
    return f"simulation {ref.simulation}, segment {ref.segment}, frame {ref.frame}"


