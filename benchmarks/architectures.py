"""Throughput of the CVAE architectures, and the seconds to one held-out loss, on the same maps in the same run.

``python benchmarks/architectures.py`` simulates villin (CA model) for the maps, then trains ``paper`` and ``fast`` in
turn, several times, on one thread each. In every repeat the loss to reach is the lowest held-out loss that ``paper``
had within ``--epochs``, on the same split; medians of all repeats and of their ratios are printed as a table. Nothing
is asserted: machines differ.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: ``fast`` may take so many times the epochs of ``paper`` to its loss.
_EPOCHS_RATIO = 4


def simulate_maps(n_frames: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Packed maps of four villin simulations, the frames of each, and the number of residues."""
    from entk_app import geometry, md
    from entk_app.settings import build_settings, read_preset
    from entk_app.systems import build_system

    settings = build_settings(read_preset("villin-quick")[1])
    built = build_system(settings, cache=Path(tempfile.gettempdir()))
    lengths = np.full(4, n_frames // 4)
    positions = []
    for seed, length in enumerate(lengths, 1):
        simulation, _ = md.create_context(built.start.topology, built.system, settings.simulate, seed, 1)
        simulation.context.setPositions(built.start.positions * 0.1)
        simulation.minimizeEnergy(maxIterations=100)
        simulation.context.setVelocitiesToTemperature(settings.simulate.temperature_k, seed)
        for _ in range(length):
            simulation.step(settings.steps_per_frame)
            positions.append(simulation.context.getState(positions=True).getPositions(asNumpy=True)._value * 10.0)
    packed = geometry.pack_contacts(geometry.compute_contacts(np.array(positions)))
    return packed, lengths, built.record.n_residues


@dataclass(frozen=True)
class Trained:
    """One training: frames/s of the median epoch, and held-out loss and seconds since the start by epoch."""

    frames_per_second: float
    losses: tuple[float, ...]
    seconds: tuple[float, ...]

    def find_epoch(self, loss: float) -> int | None:
        """The first epoch, from 0, that is as good."""
        return next((epoch for epoch, own in enumerate(self.losses) if own <= loss), None)


def train(name: str, packed: np.ndarray, lengths: np.ndarray, n_residues: int, epochs: int, seed: int) -> Trained:
    """Train one architecture; the split follows from the seed alone."""
    from entk_app import cvae
    from entk_app.records import SegmentKey
    from entk_app.settings import TrainSettings
    from entk_app.training_set import choose_training_set

    cvae.configure(1, seed=seed)
    settings = TrainSettings(architecture=name, epochs=epochs, patience=None)
    segments = [SegmentKey(simulation=i, segment=0, n_frames=int(length)) for i, length in enumerate(lengths)]
    chosen = choose_training_set(segments, settings, seed, np.random.default_rng(seed))
    rows, held_out = chosen.train, chosen.held_out
    history = cvae.train_model(packed, n_residues, rows, held_out, settings, latent_dim=4).history
    return Trained(
        frames_per_second=len(rows) / statistics.median(epoch.seconds for epoch in history),
        losses=tuple(epoch.held_out_loss for epoch in history),
        seconds=tuple(float(sum_) for sum_ in np.cumsum([epoch.seconds for epoch in history])),
    )


def describe_machine() -> str:
    names = [line.split(":", 1)[1].strip() for line in _read_lines("/proc/cpuinfo") if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores, one thread"


def _read_lines(path: str) -> Sequence[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=10, help="of paper; its lowest loss within them is to be reached")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    packed, lengths, n_residues = simulate_maps(options.frames)
    print(f"{describe_machine()}; {len(packed)} maps of {n_residues} x {n_residues}", flush=True)

    rows: dict[str, list[tuple[float, float, float]]] = {"paper": [], "fast": []}
    for repeat in range(options.repeats):
        paper = train("paper", packed, lengths, n_residues, options.epochs, repeat)
        fast = train("fast", packed, lengths, n_residues, _EPOCHS_RATIO * options.epochs, repeat)
        target = min(paper.losses)
        for name, trained in (("paper", paper), ("fast", fast)):
            epoch = trained.find_epoch(target)
            seconds = math.inf if epoch is None else trained.seconds[epoch]
            loss = min(trained.losses[: options.epochs])
            rows[name].append((trained.frames_per_second, loss, seconds))
            reached = "not reached" if epoch is None else f"in epoch {epoch + 1}, {seconds:.1f} s"
            print(
                f"repeat {repeat} {name:6} {trained.frames_per_second:7.0f} frames/s, held-out loss {loss:.2f} after "
                f"{options.epochs} epochs, {min(trained.losses):.2f} at best; {target:.2f} {reached}",
                flush=True,
            )
    print(f"\n| architecture | frames/s | held-out loss, {options.epochs} epochs | s to paper's loss |")
    print("|---|---|---|---|")
    for name, values in rows.items():
        speed, loss, seconds = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"| {name} | {speed:.0f} | {loss:.1f} | {seconds:.1f} |")
    pairs = list(zip(rows["paper"], rows["fast"], strict=True))
    faster = statistics.median(fast[0] / paper[0] for paper, fast in pairs)
    sooner = statistics.median(paper[2] / fast[2] for paper, fast in pairs)
    print(f"\nfast / paper: {faster:.1f} x frames/s; paper's loss {sooner:.1f} x sooner")


if __name__ == "__main__":
    main()
