"""One-letter sequences, and residue names as the field writes them."""

from __future__ import annotations

from dataclasses import dataclass

from entk_app.errors import StructureError

ONE_LETTER = {
    "ALA": "A", "ARG": "R", "ASN": "N", "ASP": "D", "CYS": "C", "GLN": "Q", "GLU": "E", "GLY": "G", "HIS": "H",
    "ILE": "I", "LEU": "L", "LYS": "K", "MET": "M", "PHE": "F", "PRO": "P", "SER": "S", "THR": "T", "TRP": "W",
    "TYR": "Y", "VAL": "V",
}  # fmt: skip
THREE_LETTER = {one: three for three, one in ONE_LETTER.items()}

#: Names of protonation states and bridges, and the residue that each is.
VARIANTS = {
    "HID": "HIS", "HIE": "HIS", "HIP": "HIS", "HSD": "HIS", "HSE": "HIS", "HSP": "HIS", "CYX": "CYS", "CYM": "CYS",
    "ASH": "ASP", "GLH": "GLU", "LYN": "LYS",
}  # fmt: skip
CAPS = ("ACE", "NME")
WATERS = ("HOH", "WAT", "SOL", "TIP3", "TP3", "H2O", "DOD")
IONS = ("NA", "CL", "K", "SOD", "CLA", "POT", "MG", "CA", "ZN", "NA+", "CL-", "K+")

#: A shorter chain has neither contacts that could be native nor a map worth learning.
MIN_RESIDUES = 4

#: A longer extended chain does not fit into the columns of a PDB file.
_MAX_RESIDUES = 400


@dataclass(frozen=True)
class Sequence:
    """Residues of one chain and its caps."""

    residues: str
    ace: bool
    nme: bool


def parse_sequence(text: str) -> Sequence:
    """Read ``ACE-AAAR-NME`` or ``AAAR``.

    Raises
    ------
    StructureError
        A letter is not one of the 20 amino acids, or fewer than 4 or more than 400 residues are given.
    """
    body = "".join(text.split()).upper()
    ace, nme = body.startswith("ACE-"), body.endswith("-NME")
    body = body.removeprefix("ACE-").removesuffix("-NME")
    for place, letter in enumerate(body, 1):
        if letter not in THREE_LETTER:
            raise StructureError(
                f"system.sequence: '{letter}' at residue {place} is not one of the 20 amino acids "
                f"({''.join(sorted(THREE_LETTER))}; caps are written ACE-...-NME)"
            )
    if not MIN_RESIDUES <= len(body) <= _MAX_RESIDUES:
        raise StructureError(
            f"system.sequence: {len(body)} residues: an extended chain can be built of at least {MIN_RESIDUES} and at "
            f"most {_MAX_RESIDUES}"
            + ("; give a longer protein's structure with system.pdb" if len(body) > _MAX_RESIDUES else "")
        )
    return Sequence(residues=body, ace=ace, nme=nme)


def to_one_letter(residue_name: str) -> str | None:
    """The one-letter code of a residue name or of one of its variants; None for anything else."""
    return ONE_LETTER.get(VARIANTS.get(residue_name, residue_name))
