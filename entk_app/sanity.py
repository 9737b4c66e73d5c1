"""Whether positions are a structure of the molecule at all: nothing is simulated from what is torn or collapsed.

Each check is a function of positions and gives a sentence, or None where all is well. The bounds are far outside what
dynamics reach at any temperature that can be asked for (docs/scores.md derives them), so that no frame of a healthy
trajectory is refused: these are no measures of quality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

FloatArray = NDArray[np.floating]

#: A bond differs from its equilibrium length by at most this share of it.
MAX_STRETCH = 0.4

#: Heavy atoms more than two bonds apart are never nearer.
CLASH_ANGSTROM = 2.0

#: Nor are beads of the CA model more than three residues apart.
OVERLAP_ANGSTROM = 2.5


@dataclass(frozen=True)
class Anatomy:
    """What a structure of a molecule has to keep.

    Attributes
    ----------
    labels : sequence of str, n_atoms
        What to call an atom in a message.
    bonds : array of int, shape (n_bonds, 2)
    bond_lengths : array, shape (n_bonds,), ångström
        Their equilibrium lengths.
    bulky : array of int
        The atoms that keep a distance: heavy atoms, or beads.
    min_distance_angstrom : float
        That distance.
    n_bonds_apart : int
        Two of them that are linked by at most so many bonds do not count.
    centres : array of int, shape (n_centres, 4)
        CA, N, C and CB of every residue that is chiral there.
    handedness : array, shape (n_centres,)
        Sign of each centre as it has to be; 1 is that of an L amino acid.
    """

    labels: Sequence[str]
    bonds: NDArray[np.int64]
    bond_lengths: FloatArray
    bulky: NDArray[np.int64]
    min_distance_angstrom: float
    n_bonds_apart: int
    centres: NDArray[np.int64]
    handedness: FloatArray


def find_problems(positions: FloatArray, anatomy: Anatomy) -> tuple[str, ...]:
    """What is wrong with a structure, a sentence each; none where it can be simulated.

    Parameters
    ----------
    positions : array, shape (n_atoms, 3), ångström
    anatomy : Anatomy
    """
    not_finite = find_not_finite(positions, anatomy)
    if not_finite is not None:
        return (not_finite,)
    found = (check(positions, anatomy) for check in (find_broken_bonds, find_clashes, find_inverted))
    return tuple(problem for problem in found if problem is not None)


def find_not_finite(positions: FloatArray, anatomy: Anatomy) -> str | None:
    """Coordinates that are no numbers."""
    bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if not len(bad):
        return None
    return f"{_count(len(bad), 'atom')} without finite coordinates, the first {anatomy.labels[bad[0]]}"


def find_broken_bonds(positions: FloatArray, anatomy: Anatomy) -> str | None:
    """Bonds far longer or shorter than they are at rest."""
    first, second = anatomy.bonds.T
    lengths = np.linalg.norm(positions[first] - positions[second], axis=1)
    stretch = np.abs(lengths / anatomy.bond_lengths - 1.0)
    n_broken = int((stretch > MAX_STRETCH).sum())
    if not n_broken:
        return None
    worst = int(np.argmax(stretch))
    a, b = anatomy.bonds[worst]
    return (
        f"{_count(n_broken, 'bond')} broken, the worst {anatomy.labels[a]} to {anatomy.labels[b]}: "
        f"{lengths[worst]:.2f} Å, {anatomy.bond_lengths[worst]:.2f} Å at rest"
    )


def find_clashes(positions: FloatArray, anatomy: Anatomy) -> str | None:
    """Atoms that lie in one another though few bonds do not link them."""
    tree = cKDTree(positions[anatomy.bulky])
    pairs = anatomy.bulky[tree.query_pairs(anatomy.min_distance_angstrom, output_type="ndarray")].reshape(-1, 2)
    near = find_near_neighbours(anatomy.bonds, pairs[:, 0], anatomy.n_bonds_apart)
    clashes = [(a, b) for a, b in pairs.tolist() if b not in near[a]]
    if not clashes:
        return None
    distances = [float(np.linalg.norm(positions[a] - positions[b])) for a, b in clashes]
    nearest = int(np.argmin(distances))
    a, b = clashes[nearest]
    return (
        f"{_count(len(clashes), 'clash', 'clashes')} nearer than {anatomy.min_distance_angstrom:g} Å, the worst "
        f"{anatomy.labels[a]} and {anatomy.labels[b]}: {distances[nearest]:.2f} Å"
    )


def find_inverted(positions: FloatArray, anatomy: Anatomy) -> str | None:
    """Chiral centres of the wrong hand."""
    wrong = np.flatnonzero(compute_handedness(positions, anatomy.centres) * anatomy.handedness <= 0)
    if not len(wrong):
        return None
    first = anatomy.labels[anatomy.centres[wrong[0], 0]]
    return f"{_count(len(wrong), 'chiral centre')} inverted, the first {first}"


def compute_handedness(positions: FloatArray, centres: NDArray[np.int64]) -> FloatArray:
    """Triple product of the vectors from CA to N, C and CB: about 2.6 Å³ at an L centre, -2.6 Å³ at its mirror image,
    0 where all lie in a plane.

    Parameters
    ----------
    positions : array, shape (n_atoms, 3), ångström
    centres : array of int, shape (n_centres, 4)
        CA, N, C, CB.

    Returns
    -------
    array, shape (n_centres,), cubic ångström
    """
    arms = positions[centres[:, 1:]] - positions[centres[:, :1]]
    return np.einsum("ij,ij->i", np.cross(arms[:, 0], arms[:, 1]), arms[:, 2])


def find_near_neighbours(bonds: NDArray[np.int64], atoms: NDArray[np.int64], n_bonds: int) -> dict[int, set[int]]:
    """The atoms that at most so many bonds link to each of these."""
    bonded: dict[int, list[int]] = {}
    for a, b in bonds.tolist():
        bonded.setdefault(a, []).append(b)
        bonded.setdefault(b, []).append(a)
    near = {}
    for atom in set(atoms.tolist()):
        reached = {atom}
        for _ in range(n_bonds):
            reached |= {other for one in reached for other in bonded.get(one, ())}
        near[atom] = reached
    return near


def _count(number: int, what: str, plural: str | None = None) -> str:
    return f"{number} {what if number == 1 else plural or what + 's'}"
