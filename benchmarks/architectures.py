"""Throughput and held-out loss of the CVAE architectures, on the same maps in the same run.

``python benchmarks/architectures.py`` simulates villin (CA model) for the maps, then trains ``paper`` and ``fast`` in
turn, several times, on one thread each, and prints medians and the ratio. Nothing is asserted: machines differ.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--latent-dim", type=int, default=4)
    options = parser.parse_args()
    packed, lengths, n_residues = simulate_maps(options.frames)

    from entk_app import cvae
    from entk_app.settings import TrainSettings

    cvae.configure(1, seed=1)
    results: dict[str, list[tuple[float, float, float]]] = {"paper": [], "fast": []}
    for repeat in range(options.repeats):
        for name, rows in results.items():
            cvae.configure(1, seed=repeat)
            settings = TrainSettings(architecture=name, epochs=options.epochs, patience=None)
            train, held_out = cvae.split_blocks(lengths, settings, np.random.default_rng(repeat))
            began = time.monotonic()
            training = cvae.train_model(packed, n_residues, train, held_out, settings, options.latent_dim)
            seconds = statistics.median(epoch.seconds for epoch in training.history)
            rows.append((len(train) / seconds, training.best.held_out_loss, time.monotonic() - began))
            print(
                f"repeat {repeat} {name:6} {rows[-1][0]:8.0f} frames/s, held-out loss {rows[-1][1]:7.2f} "
                f"(reconstruction {training.best.held_out_reconstruction:.2f}) after {options.epochs} epochs, "
                f"{rows[-1][2]:.0f} s",
                flush=True,
            )
    speed = {name: statistics.median(row[0] for row in rows) for name, rows in results.items()}
    loss = {name: statistics.median(row[1] for row in rows) for name, rows in results.items()}
    print(f"\n| architecture | frames/s | held-out loss after {options.epochs} epochs |\n|---|---|---|")
    for name in results:
        print(f"| {name} | {speed[name]:.0f} | {loss[name]:.1f} |")
    print(f"\nfast / paper: {speed['fast'] / speed['paper']:.1f} x frames/s, {loss['fast'] / loss['paper']:.2f} x loss")


if __name__ == "__main__":
    main()
