"""Steps a second of OpenMM's CPU platforms for a CA model and an all-atom peptide, one thread, in turn in one run.

``python benchmarks/platforms.py`` prints medians. Nothing is asserted: machines differ.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

CASES = (("villin-quick", 2000), ("fs-peptide-quick", 200))


def main() -> None:
    from entk_app import md
    from entk_app.settings import build_settings, read_preset
    from entk_app.systems import build_system

    print("| system | particles | CPU, steps/s | Reference, steps/s | Reference / CPU |\n|---|---|---|---|---|")
    for preset, steps in CASES:
        speeds: dict[str, list[float]] = {"CPU": [], "Reference": []}
        for _ in range(5):
            for platform, found in speeds.items():
                settings = build_settings(read_preset(preset)[1], assignments=[f"simulate.platform={platform}"])
                built = build_system(settings, cache=Path(tempfile.gettempdir()))
                simulation, _ = md.create_context(built.start.topology, built.system, settings.simulate, 1, 1)
                simulation.context.setPositions(built.start.positions * 0.1)
                simulation.minimizeEnergy(maxIterations=20)
                simulation.step(20)
                began = time.monotonic()
                simulation.step(steps)
                found.append(steps / (time.monotonic() - began))
        cpu, reference = (statistics.median(speeds[name]) for name in ("CPU", "Reference"))
        print(
            f"| {preset} | {built.record.n_atoms} | {cpu:.0f} | {reference:.0f} | {reference / cpu:.1f} |", flush=True
        )


if __name__ == "__main__":
    main()
