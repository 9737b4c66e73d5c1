"""How far the frames of a campaign stay from the bounds at which a structure counts as broken.

``python benchmarks/sanity_margins.py RUN`` reads every frame of every segment, or every K-th with ``--every K``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from entk_app import sanity
from entk_app.layout import RunLayout
from entk_app.records import FrameRef, SegmentRecord, read_record
from entk_app.systems.anatomy import describe_anatomy
from entk_app.systems.build import load_system
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
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--every", type=int, default=1, help="every so many frames of a segment")
    options = parser.parse_args()
    layout = RunLayout(options.run)
    loaded = load_system(layout)
    anatomy = describe_anatomy(loaded)
    paths = sorted(layout.simulations.glob("*/segment-????/segment.json"))
    records = [read_record(SegmentRecord, path) for path in paths]
    refs = [
        FrameRef(simulation=record.simulation, segment=record.segment, frame=frame)
        for record in records
        for frame in range(0, record.n_frames, options.every)
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
    print(f"nearest pair   {nearest:.2f} Å   (bound {anatomy.min_distance_angstrom} Å)")
    print(f"largest strain {100 * stretch:.1f} %   (bound {100 * sanity.MAX_STRETCH:.0f} %)")
    if len(anatomy.centres):
        print(f"chirality      {hand:.2f} Å³   (bound 0)")


if __name__ == "__main__":
    main()
