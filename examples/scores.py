"""Scores of one's own, to copy and change: ``--set steering.score=examples/scores.py:end_to_end`` (docs/scores.md).

Each is a function of one frame: positions of all atoms, shape (n_atoms, 3) in ångström, and the molecule.
"""

import numpy as np


def end_to_end(positions, molecule):
    """Distance of the first and the last CA atom, ångström."""
    ca = positions[molecule.ca_indices]
    return np.linalg.norm(ca[-1] - ca[0])


def hydrophobic_radius(positions, molecule):
    """Radius of gyration of the hydrophobic residues' CA atoms, ångström: minimise it for a core."""
    greasy = {"ALA", "VAL", "LEU", "ILE", "MET", "PHE", "TRP"}
    names = [molecule.residue_names[residue] for residue in molecule.residue_indices[molecule.ca_indices]]
    core = positions[molecule.ca_indices[[name in greasy for name in names]]]
    return np.sqrt(((core - core.mean(axis=0)) ** 2).sum(axis=1).mean())


def native_distance_error(positions, molecule):
    """Root mean square difference of all CA distances from the native ones, ångström (dRMS)."""
    ca, native = positions[molecule.ca_indices], molecule.native_ca
    first, second = np.triu_indices(len(ca), 1)
    now = np.linalg.norm(ca[first] - ca[second], axis=1)
    then = np.linalg.norm(native[first] - native[second], axis=1)
    return np.sqrt(((now - then) ** 2).mean())


def helical_fraction(positions, molecule):
    """Share of the dihedrals of four CA atoms in a row that are a right-handed helix' (50 ± 20 degrees)."""
    steps = np.diff(positions[molecule.ca_indices], axis=0)
    before, axis, after = steps[:-2], steps[1:-1], steps[2:]
    sine = np.linalg.norm(axis, axis=1) * (before * np.cross(axis, after)).sum(axis=1)
    cosine = (np.cross(before, axis) * np.cross(axis, after)).sum(axis=1)
    degrees = np.degrees(np.arctan2(sine, cosine))
    return (np.abs(degrees - 50.0) <= 20.0).mean()
