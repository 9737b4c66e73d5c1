"""Structures: chains built from a sequence, PDB files read and checked, native structures found."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openmm import app, unit
from scipy.spatial import cKDTree

from entk_app import geometry
from entk_app.errors import StructureError
from entk_app.systems.catalogue import KnownSystem
from entk_app.systems.pdb_text import read_pdb_text
from entk_app.systems.sequences import CAPS, IONS, WATERS, Sequence, parse_sequence, to_one_letter

#: Backbone angles (phi, psi) in degrees.
EXTENDED = (-120.0, 140.0)
ALPHA_HELIX = (-57.0, -47.0)

#: Neighbouring CA atoms are 3.8 Å apart in a trans and 2.9 Å in a cis peptide.
_CA_STEP_ANGSTROM = (2.3, 4.8)

#: No bond is as short as this, those of hydrogens included.
_OVERLAP_ANGSTROM = 0.5


@dataclass(frozen=True)
class Structure:
    """A protein structure.

    Attributes
    ----------
    topology : openmm.app.Topology
    positions : array, shape (n_atoms, 3), ångström
    source : str
        Where it comes from, for messages.
    """

    topology: Any
    positions: NDArray[np.float64]
    source: str

    def ca_indices(self) -> list[int]:
        return [
            atom.index
            for atom in self.topology.atoms()
            if atom.name == "CA" and to_one_letter(atom.residue.name) is not None
        ]

    def box(self) -> NDArray[np.float64] | None:
        """Vectors of the periodic box by row, shape (3, 3), ångström; None where there is none."""
        vectors = self.topology.getPeriodicBoxVectors()
        return None if vectors is None else np.asarray(vectors.value_in_unit(unit.angstrom), dtype=np.float64)

    def ca_positions(self) -> NDArray[np.float64]:
        return self.positions[self.ca_indices()]

    def sequence(self) -> str:
        atoms = list(self.topology.atoms())
        return "".join(to_one_letter(atoms[index].residue.name) or "" for index in self.ca_indices())


def build_chain(sequence: Sequence, angles: tuple[float, float]) -> Structure:
    """Build the heavy atoms of a chain with the same backbone angles everywhere.

    Parameters
    ----------
    sequence : Sequence
    angles : (phi, psi), degrees
    """
    import PeptideBuilder
    from Bio.PDB import PDBIO

    # A cap is cut out of a glycine: ACE is its CA, C, O; NME is its N, CA.
    letters = ("G" if sequence.ace else "") + sequence.residues + ("G" if sequence.nme else "")
    phi, psi = angles
    chain = PeptideBuilder.make_structure(letters, [phi] * (len(letters) - 1), [psi] * (len(letters) - 1))
    if not sequence.nme:
        PeptideBuilder.add_terminal_OXT(chain)
    writer, text = PDBIO(), io.StringIO()
    writer.set_structure(chain)
    writer.save(text)
    lines = []
    for line in text.getvalue().splitlines():
        number = int(line[22:26]) if line.startswith("ATOM") else None
        if sequence.ace and number == 1:
            lines += _cut_cap(line, "ACE", {"CA": "CH3", "C": "C", "O": "O"})
        elif sequence.nme and number == len(letters):
            lines += _cut_cap(line, "NME", {"N": "N", "CA": "C"})
        else:
            lines.append(line)
    pdb = app.PDBFile(io.StringIO("\n".join(lines)))
    return Structure(pdb.topology, _positions(pdb), f"chain built from the sequence {sequence.residues}")


def read_protein(path: Path, what: str, first_model: bool = False, keep_solvent: bool = False) -> Structure:
    """Read the protein of a PDB file; water and ions are dropped, or kept.

    Parameters
    ----------
    path : Path
    what : str
        Setting that named the file, for messages.
    first_model : bool
        Take the first of several models in place of refusing them.
    keep_solvent : bool
        Keep water, ions and the periodic box, in which molecules are made whole.

    Raises
    ------
    StructureError
        The file cannot be read, holds no protein, or holds residues that are neither protein, cap, water nor ion;
        a chain is broken, or atoms overlap.
    """
    text = read_pdb_text(path, what, first_model, keep_solvent)
    try:
        pdb = app.PDBFile(io.StringIO(text))
    except Exception as error:
        # OpenMM's reader raises whatever its parsing meets: to the user all of it is one thing, a bad file.
        reason = f": {error}" if isinstance(error, ValueError) else ""
        raise StructureError(f"{what}: {path} is not a PDB file that can be read{reason}") from None
    modeller = app.Modeller(pdb.topology, pdb.positions)
    if not keep_solvent:
        modeller.delete([residue for residue in modeller.topology.residues() if is_solvent(residue)])
    n_protein = 0
    for residue in modeller.topology.residues():
        if to_one_letter(residue.name) is not None:
            n_protein += 1
        elif residue.name not in CAPS and not is_solvent(residue):
            raise StructureError(
                f"{what}: {name_residue(residue)} in {path} is unknown to the force field: take it out, or rename it "
                "to the amino acid that it is"
            )
    if not n_protein:
        raise StructureError(f"{what}: {path} holds no protein residue")
    structure = make_whole(Structure(modeller.topology, _positions(modeller), str(path)))
    if structure.box() is None and any(residue.name in WATERS for residue in structure.topology.residues()):
        raise StructureError(
            f"{what}: {path} has water but no periodic box (CRYST1): give its box, or take the water out to have the "
            "protein solvated"
        )
    check_protein(structure, what)
    return structure


def is_solvent(residue: Any) -> bool:
    """Whether a residue is a water or an ion."""
    return residue.name in WATERS or (residue.name.upper() in IONS and len(list(residue.atoms())) == 1)


def check_protein(structure: Structure, what: str) -> None:
    """Refuse residues without CA atom, broken chains and atoms that overlap.

    Raises
    ------
    StructureError
    """
    for residue in structure.topology.residues():
        if to_one_letter(residue.name) is not None and all(atom.name != "CA" for atom in residue.atoms()):
            raise StructureError(f"{what}: {name_residue(residue)} in {structure.source} has no CA atom")
    _check_chain(structure, what)
    _check_overlap(structure, what)


def make_whole(structure: Structure) -> Structure:
    """With every molecule in one piece, where a file has put its atoms on both sides of a periodic box."""
    box = structure.box()
    if box is None:
        return structure
    bonds = np.array([(one.index, other.index) for one, other in structure.topology.bonds()]).reshape(-1, 2)
    positions = geometry.join_bonded(structure.positions, box, bonds)
    return Structure(structure.topology, positions, structure.source)


def name_residue(residue: Any) -> str:
    """A residue as its file has it: with its number, insertion code and chain."""
    chain = f" of chain {residue.chain.id}" if residue.chain.id.strip() else ""
    return f"residue {residue.name} {residue.id}{residue.insertionCode.strip()}{chain}"


def _check_chain(structure: Structure, what: str) -> None:
    """Refuse neighbours that cannot be bonded: a loop is missing between them."""
    atoms = list(structure.topology.atoms())
    for one, other in pairwise(structure.ca_indices()):
        left, right = atoms[one].residue, atoms[other].residue
        apart = float(np.linalg.norm(structure.positions[one] - structure.positions[other]))
        if _is_same_chain(left, right) and not _CA_STEP_ANGSTROM[0] < apart < _CA_STEP_ANGSTROM[1]:
            raise StructureError(
                f"{what}: the CA atoms of {left.name} {left.id} and {right.name} {right.id} of chain {left.chain.id} "
                f"in {structure.source} are {apart:.1f} Å apart: the chain is broken or its coordinates are wrong; "
                "model the missing residues, or give what are two chains two letters"
            )


def _is_same_chain(left: Any, right: Any) -> bool:
    """Whether two residues that follow one another belong to one chain, a TER inside its numbering or not."""
    if left.chain == right.chain:
        return True
    return left.chain.id == right.chain.id and int(right.id) > int(left.id)


def _check_overlap(structure: Structure, what: str) -> None:
    """Refuse two atoms in one place: their energy is no number."""
    atoms = list(structure.topology.atoms())
    # Not the massless sites of some waters, which lie within them.
    real = np.array([atom.index for atom in atoms if atom.element is not None or not is_solvent(atom.residue)])
    pairs = real[cKDTree(structure.positions[real]).query_pairs(_OVERLAP_ANGSTROM, output_type="ndarray")]
    for one, other in sorted(map(tuple, pairs.tolist())):
        apart = float(np.linalg.norm(structure.positions[one] - structure.positions[other]))
        raise StructureError(
            f"{what}: atom {atoms[one].name} of {name_residue(atoms[one].residue)} and {atoms[other].name} of "
            f"{name_residue(atoms[other].residue)} in {structure.source} overlap, they are {apart:.2f} Å apart: "
            "correct the coordinates"
        )


def find_native(known: KnownSystem | None, reference: Path | None, cache: Path) -> Structure | None:
    """The native structure: the user's reference, or the one of a system known by name.

    Raises
    ------
    StructureError
        It cannot be read or fetched.
    """
    if reference is not None:
        return read_protein(reference, "system.reference")
    if known is None:
        return None
    if known.native == "ideal-helix":
        helix = build_chain(parse_sequence(known.sequence), ALPHA_HELIX)
        return Structure(helix.topology, helix.positions, "ideal alpha helix")
    if known.native == "openmm-villin":
        return read_protein(Path(app.__file__).parent / "data" / "test.pdb", "native structure of villin")
    # 34 models of NMR; the first is the deposited representative.
    return read_protein(_fetch("1FME", cache), "native structure of bba", first_model=True)


def check_reference(native: Structure, sequence: str) -> None:
    """Refuse a native structure of another protein.

    Raises
    ------
    StructureError
        Its residues are not those of the system; the first that differs is named.
    """
    other = native.sequence()
    if len(other) != len(sequence):
        raise StructureError(
            f"system.reference: {native.source} has {len(other)} residues, the system has {len(sequence)} "
            f"({other} against {sequence})"
        )
    for place, (theirs, ours) in enumerate(zip(other, sequence, strict=True), 1):
        if theirs != ours:
            raise StructureError(
                f"system.reference: residue {place} of {native.source} is {theirs}, the system has {ours} there"
            )


def only_ca(structure: Structure) -> Structure:
    """The CA atoms alone, one a residue, without bonds."""
    topology = app.Topology()
    chain = topology.addChain("A")
    atoms = list(structure.topology.atoms())
    for number, index in enumerate(structure.ca_indices(), 1):
        residue = topology.addResidue(atoms[index].residue.name, chain, str(number))
        topology.addAtom("CA", app.Element.getBySymbol("C"), residue)
    beads = list(topology.atoms())
    for one, other in pairwise(beads):
        topology.addBond(one, other)
    return Structure(topology, structure.ca_positions(), structure.source)


def _fetch(identifier: str, cache: Path) -> Path:
    cached = cache / f"{identifier}.pdb"
    if cached.exists():
        return cached
    try:
        from MDAnalysis.fetch import from_PDB

        cache.mkdir(parents=True, exist_ok=True)
        return Path(str(from_PDB(identifier, cache_path=str(cache), file_format="pdb")))
    except Exception as error:
        # Whatever the download met, the way out is the same.
        raise StructureError(
            f"PDB {identifier} could not be fetched ({type(error).__name__}: {error}); "
            "download it elsewhere and give it with --reference FILE (system.reference)"
        ) from None


def _positions(pdb: Any) -> NDArray[np.float64]:
    return np.asarray(pdb.positions.value_in_unit(unit.angstrom), dtype=np.float64).reshape(-1, 3)


def _cut_cap(line: str, residue: str, names: dict[str, str]) -> list[str]:
    """A PDB line of a glycine as that of a cap; none where the cap has no such atom."""
    atom = names.get(line[12:16].strip())
    return [] if atom is None else [f"{line[:12]} {atom:<3s}{line[16]}{residue}{line[20:]}"]
