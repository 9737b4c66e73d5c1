"""The proteins that are known by name. A new one is a row here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class KnownSystem:
    """A protein known by name.

    Attributes
    ----------
    sequence : str
        One-letter residues, with ``ACE-`` and ``-NME`` where the chain is capped.
    native : str
        Where its native structure comes from.
    """

    name: str
    title: str
    sequence: str
    native: Literal["ideal-helix", "openmm-villin", "pdb-1fme"]


CATALOGUE = {
    known.name: known
    for known in (
        KnownSystem(
            name="fs-peptide",
            title="Fs-peptide, 21 residues; native: the ideal alpha helix",
            sequence="ACE-AAAAAAAARAAAARAAAARAA-NME",
            native="ideal-helix",
        ),
        KnownSystem(
            name="villin",
            title="villin headpiece HP35 N68H, 35 residues; native: the folded structure inside the OpenMM package",
            sequence="LSDEDFKAVFGMTRSAFANLPLWKQQHLKKEKGLF",
            native="openmm-villin",
        ),
        KnownSystem(
            name="bba",
            title="BBA (FSD-EY), 28 residues; native: PDB 1FME, fetched once, or --reference FILE",
            sequence="EQYTAKYKGRTFRNEKELRDFIEKFKGR",
            native="pdb-1fme",
        ),
    )
}
