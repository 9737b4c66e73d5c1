"""Contact maps, RMSD, radius of gyration and native contacts: numpy in, numpy out, ångström throughout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from entk_app.errors import DataError

FloatArray = NDArray[np.floating]

#: Residues nearer than this along the chain do not count as native contacts (|i - j| > 3).
NATIVE_SEPARATION = 3


def count_pairs(n_residues: int) -> int:
    """Pairs i < j, the entries of the strict upper triangle."""
    return n_residues * (n_residues - 1) // 2


def count_bytes(n_residues: int) -> int:
    """Bytes of one packed contact map (27 for the 21 residues of Fs-peptide)."""
    return (count_pairs(n_residues) + 7) // 8


def compute_distances(positions: FloatArray) -> FloatArray:
    """Distances of all pairs i < j, row by row of the upper triangle.

    Parameters
    ----------
    positions : array, shape (n_residues, 3) or (n_frames, n_residues, 3), ångström

    Returns
    -------
    array, shape (..., n_pairs), float64, ångström
    """
    positions = _as_positions(positions)
    first, second = np.triu_indices(positions.shape[-2], k=1)
    difference = positions[..., first, :] - positions[..., second, :]
    return np.sqrt(np.einsum("...i,...i->...", difference, difference))


def compute_contacts(positions: FloatArray, cutoff_angstrom: float = 8.0) -> NDArray[np.bool_]:
    """Which pairs i < j are nearer than the cutoff.

    Parameters
    ----------
    positions : array, shape (..., n_residues, 3), ångström
    cutoff_angstrom : float
        A pair at exactly this distance is not in contact.

    Returns
    -------
    array of bool, shape (..., n_pairs)
    """
    return compute_distances(positions) < cutoff_angstrom


def pack_contacts(contacts: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Bits of the upper triangle, most significant first, padded with zeros: shape (..., n_bytes)."""
    return np.packbits(contacts, axis=-1)


def unpack_contacts(packed: NDArray[np.uint8], n_residues: int) -> NDArray[np.uint8]:
    """Full symmetric maps with ones on the diagonal.

    Parameters
    ----------
    packed : array of uint8, shape (n_frames, n_bytes)
    n_residues : int

    Returns
    -------
    array of uint8 (0 or 1), shape (n_frames, n_residues, n_residues)

    Raises
    ------
    DataError
        The number of bytes is not that of maps of this size.
    """
    packed = np.asarray(packed, dtype=np.uint8)
    if packed.ndim != 2 or packed.shape[1] != count_bytes(n_residues):
        raise DataError(
            f"packed contact maps of shape {packed.shape} are not (frames, {count_bytes(n_residues)}), "
            f"the size for {n_residues} residues"
        )
    bits = np.unpackbits(packed, axis=1, count=count_pairs(n_residues))
    first, second = np.triu_indices(n_residues, k=1)
    maps = np.zeros((len(packed), n_residues, n_residues), dtype=np.uint8)
    maps[:, first, second] = bits
    maps[:, second, first] = bits
    diagonal = np.arange(n_residues)
    maps[:, diagonal, diagonal] = 1
    return maps


def compute_rmsd(positions: FloatArray, reference: FloatArray) -> FloatArray:
    """Least-squares RMSD after superposition (Kabsch 1976, doi:10.1107/S0567739476001873), equal weights.

    Parameters
    ----------
    positions : array, shape (n_residues, 3) or (n_frames, n_residues, 3), ångström
    reference : array, shape (n_residues, 3), ångström

    Returns
    -------
    float or array, shape (n_frames,), ångström

    Raises
    ------
    DataError
        The two have another number of atoms.
    """
    positions, reference = _as_positions(positions), _as_positions(reference)
    if positions.shape[-2:] != reference.shape:
        raise DataError(f"{positions.shape[-2]} atoms cannot be superposed on {reference.shape[-2]}")
    mobile = positions - positions.mean(axis=-2, keepdims=True)
    fixed = reference - reference.mean(axis=0)
    u, singular, vt = np.linalg.svd(np.swapaxes(mobile, -1, -2) @ fixed)
    # A reflection is not a rotation: the smallest singular value changes sign instead.
    singular[..., -1] *= np.sign(np.linalg.det(u) * np.linalg.det(vt))
    squared = np.sum(mobile**2, axis=(-1, -2)) + np.sum(fixed**2) - 2.0 * singular.sum(axis=-1)
    return np.sqrt(np.maximum(squared, 0.0) / reference.shape[0])


def compute_radius_of_gyration(positions: FloatArray) -> FloatArray:
    """Radius of gyration with equal weights, ångström; positions of shape (..., n_residues, 3)."""
    positions = _as_positions(positions)
    centred = positions - positions.mean(axis=-2, keepdims=True)
    return np.sqrt(np.sum(centred**2, axis=(-1, -2)) / positions.shape[-2])


def find_native_pairs(reference: FloatArray, cutoff_angstrom: float = 8.0) -> NDArray[np.bool_]:
    """Native contacts among the pairs i < j: nearer than the cutoff and |i - j| > 3.

    Parameters
    ----------
    reference : array, shape (n_residues, 3), ångström

    Returns
    -------
    array of bool, shape (n_pairs,)
    """
    first, second = np.triu_indices(len(reference), k=1)
    return compute_contacts(reference, cutoff_angstrom) & (second - first > NATIVE_SEPARATION)


def compute_native_fraction(contacts: NDArray[np.bool_], native: NDArray[np.bool_]) -> FloatArray:
    """Share of the native contacts that are made: a hard cutoff, equal weights.

    Parameters
    ----------
    contacts : array of bool, shape (..., n_pairs)
    native : array of bool, shape (n_pairs,)
        From :func:`find_native_pairs`; with none the fraction is NaN.

    Returns
    -------
    float or array, shape (...), 0 to 1
    """
    n_native = int(native.sum())
    if n_native == 0:
        return np.full(contacts.shape[:-1], np.nan)
    return contacts[..., native].sum(axis=-1) / n_native


def find_nearest_images(differences: FloatArray, box: FloatArray) -> FloatArray:
    """Differences of positions, moved by vectors of the box to their shortest.

    Parameters
    ----------
    differences : array, shape (..., 3), ångström
    box : array, shape (3, 3), ångström
        Vectors by row, in the reduced form of OpenMM (lower triangular). What is nearer than half the box's least
        width is found for any such box.

    Returns
    -------
    array, shape (..., 3), ångström
    """
    nearest = np.array(differences, dtype=np.float64)
    for axis in (2, 1, 0):
        nearest -= np.round(nearest[..., axis, None] / box[axis, axis]) * box[axis]
    return nearest


def make_whole(positions: FloatArray, box: FloatArray, chains: NDArray[np.integer]) -> FloatArray:
    """CA positions of a periodic system with no chain broken, and each chain next to the first.

    Parameters
    ----------
    positions : array, shape (n_residues, 3), ångström
        In the order of the chains.
    box : array, shape (3, 3), ångström
    chains : array of int, shape (n_residues,)
        Number of each one's chain.

    Returns
    -------
    array, shape (n_residues, 3), ångström
        Each moved by whole vectors of the box; the first stays where it is.
    """
    whole = np.array(positions, dtype=np.float64)
    centre = None
    for chain in np.unique(chains):
        rows = chains == chain
        # Neighbours are 3.8 Å apart, far less than half a box.
        steps = find_nearest_images(np.diff(whole[rows], axis=0), box)
        joined = whole[rows][0] + np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)])
        if centre is None:
            centre = joined.mean(axis=0)
        away = joined.mean(axis=0) - centre
        whole[rows] = joined + (find_nearest_images(away, box) - away)
    return whole


def number_chains(atoms: NDArray[np.integer], chains: Sequence[tuple[int, int]]) -> NDArray[np.intp]:
    """The chain, from 0, of each of some atoms.

    Parameters
    ----------
    atoms : array of int, shape (n,)
    chains : sequence of (int, int)
        First atom of each chain and the one after its last, in order.

    Returns
    -------
    array of int, shape (n,)
    """
    return np.searchsorted([first for first, _ in chains], atoms, side="right") - 1


def join_chains(
    positions: NDArray[np.float64], box: FloatArray, ca_indices: NDArray[np.integer], chains: Sequence[tuple[int, int]]
) -> NDArray[np.float64]:
    """Positions of all atoms with each chain of the protein where its CA atoms are by :func:`make_whole`.

    Parameters
    ----------
    positions : array, shape (n_atoms, 3), ångström
        Molecules are whole.
    box : array, shape (3, 3), ångström
    ca_indices : array of int, shape (n_residues,)
    chains : sequence of (int, int)
        First atom of each chain and the one after its last.

    Returns
    -------
    array, shape (n_atoms, 3), ångström
        Water and ions stay where they are.
    """
    numbers = number_chains(ca_indices, chains)
    moves = make_whole(positions[ca_indices], box, numbers) - positions[ca_indices]
    joined = positions.copy()
    for number, (first, end) in enumerate(chains):
        of_chain = moves[numbers == number]
        if len(of_chain):
            joined[first:end] += of_chain[0]
    return joined


def join_bonded(
    positions: NDArray[np.float64], box: FloatArray, bonds: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Positions with every molecule in one piece.

    Parameters
    ----------
    positions : array, shape (n_atoms, 3), ångström
    box : array, shape (3, 3), ångström
    bonds : array of int, shape (n_bonds, 2)

    Returns
    -------
    array, shape (n_atoms, 3), ångström
        The first atom of each molecule stays where it is; the positions as they are if nothing is broken.
    """
    steps = positions[bonds[:, 1]] - positions[bonds[:, 0]]
    nearest = find_nearest_images(steps, box)
    if np.allclose(steps, nearest):
        return positions
    whole = np.array(positions, dtype=np.float64)
    bonded: dict[int, list[tuple[int, FloatArray]]] = {}
    for (one, other), step in zip(bonds.tolist(), nearest, strict=True):
        bonded.setdefault(one, []).append((other, step))
        bonded.setdefault(other, []).append((one, -step))
    placed: set[int] = set()
    for first in sorted(bonded):
        if first in placed:
            continue
        placed.add(first)
        waiting = [first]
        while waiting:
            atom = waiting.pop()
            for other, step in bonded[atom]:
                if other not in placed:
                    placed.add(other)
                    whole[other] = whole[atom] + step
                    waiting.append(other)
    return whole


def _as_positions(positions: FloatArray) -> FloatArray:
    array = np.asarray(positions, dtype=np.float64)
    if array.ndim not in (2, 3) or array.shape[-1] != 3 or array.shape[-2] < 1:
        raise DataError(f"positions of shape {array.shape} are not (atoms, 3) or (frames, atoms, 3)")
    return array
