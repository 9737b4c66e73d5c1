"""How far frames stay from the bounds at which a structure counts as broken.

``python benchmarks/sanity_margins.py --preset fs-peptide-quick --set KEY=VALUE`` simulates one segment and looks at
every frame of it; ``python benchmarks/sanity_margins.py --run RUN`` looks at those of a campaign.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from entk_app import sanity
from entk_app.concurrent import make_campaign
from entk_app.layout import RunLayout
from entk_app.machine import divide_machine
from entk_app.records import FrameRef, SegmentRecord, read_record
from entk_app.run_folder import create_run_folder
from entk_app.settings import build_settings, read_preset
from entk_app.systems import build_system, write_system
from entk_app.systems.anatomy import describe_anatomy
from entk_app.systems.build import load_system
from entk_app.tasks import run_task
from entk_app.trajectory import read_positions

#: Pairs farther apart than this are no candidates for the nearest.
_SEARCH_ANGSTROM = 4.5


def find_nearest(positions: np.ndarray, anatomy: sanity.Anatomy) -> float:
    """Smallest distance of two atoms that count for clashes, ångström."""
    pairs = anatomy.bulky[cKDTree(positions[anatomy.bulky]).query_pairs(_SEARCH_ANGSTROM, output_type="ndarray")]
    near = sanity.find_near_neighbours(anatomy.bonds, anatomy.bulky, anatomy.n_bonds_apart)
    counted = np.array([(a, b) for a, b in pairs.reshape(-1, 2).tolist() if b not in near[a]], dtype=int)
    counted = counted.reshape(-1, 2)
    distances = np.linalg.norm(positions[counted[:, 0]] - positions[counted[:, 1]], axis=1)
    return float(distances.min(initial=_SEARCH_ANGSTROM))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="run folder")
    parser.add_argument("--preset", default="villin-quick", help="or the preset of one segment to simulate")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    if options.run is not None:
        print_margins(RunLayout(options.run))
        return
    with tempfile.TemporaryDirectory() as folder:
        print_margins(simulate(RunLayout(Path(folder) / "run"), options.preset, options.assignments))


def simulate(layout: RunLayout, preset: str, assignments: list[str]) -> RunLayout:
    """One segment of one simulation, in this process."""
    settings = build_settings(read_preset(preset)[1], assignments=assignments)
    built = build_system(settings, cache=layout.root.parent)
    create_run_folder(layout, settings, ["sanity_margins"]).release()
    write_system(built, layout)
    stage = make_campaign(layout, settings, divide_machine(settings, 1, 0, allow_cpu=True)).start()
    run_task("simulate", layout.root, stage.tasks[0].order)
    return layout


def print_margins(layout: RunLayout) -> None:
    loaded = load_system(layout)
    anatomy = describe_anatomy(loaded)
    paths = sorted(layout.simulations.glob("*/segment-????/segment.json"))
    records = [read_record(SegmentRecord, path) for path in paths]
    refs = [
        FrameRef(simulation=record.simulation, segment=record.segment, frame=frame)
        for record in records
        for frame in range(record.n_frames)
    ]
    nearest, stretch, hand, n_broken = np.inf, 0.0, np.inf, 0
    for _, positions in read_positions(layout, refs):
        nearest = min(nearest, find_nearest(positions, anatomy))
        ends = positions[anatomy.bonds]
        lengths = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
        stretch = max(stretch, float(np.abs(lengths / anatomy.bond_lengths - 1.0).max()))
        hands = sanity.compute_handedness(positions, anatomy.centres) * anatomy.handedness
        hand = min(hand, float(hands.min(initial=np.inf)))
        n_broken += bool(sanity.find_problems(positions, anatomy))
    temperature = records[0].temperature_k
    print(f"{loaded.record.name}, {loaded.record.model}, {temperature:g} K, {len(refs)} frames: {n_broken} broken")
    print(f"nearest pair {nearest:.2f} Å (bound {anatomy.min_distance_angstrom} Å)")
    print(f"bonds off by up to {100 * stretch:.1f} % (bound {100 * sanity.MAX_STRETCH:.0f} %)")
    if len(anatomy.centres):
        print(f"chirality at least {hand:.2f} Å³ (bound 0)")


if __name__ == "__main__":
    main()
