"""From settings to a system that OpenMM can run, and its files in the run folder."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from entk_app.errors import StructureError
from entk_app.integrity import check_file, digest_files
from entk_app.layout import RunLayout
from entk_app.records import SystemRecord, read_record, write_record, write_text
from entk_app.scores import Scorer, choose_score, describe_molecule, load_score
from entk_app.settings import Settings, SystemSettings, suggest
from entk_app.systems import allatom, calpha, explicit
from entk_app.systems.catalogue import CATALOGUE, KnownSystem
from entk_app.systems.sequences import MIN_RESIDUES, parse_sequence
from entk_app.systems.structures import (
    EXTENDED,
    Structure,
    build_chain,
    check_reference,
    find_native,
    only_ca,
    read_protein,
)


@dataclass(frozen=True)
class BuiltSystem:
    """A system ready to simulate.

    Attributes
    ----------
    start : Structure
        The initial structure, all atoms that are simulated.
    system : openmm.System
    native : Structure or None
    record : SystemRecord
    score_source : str or None
        Text of the file of the user's own score.
    """

    start: Structure
    system: Any
    native: Structure | None
    record: SystemRecord
    score_source: str | None = None


def build_system(settings: Settings, cache: Path) -> BuiltSystem:
    """Build what the settings ask for.

    Parameters
    ----------
    settings : Settings
    cache : Path
        Folder that fetched structures are kept in.

    Raises
    ------
    StructureError
        An unknown name, a structure that cannot be simulated, or a reference of another protein.
    SettingsError
        The score does not work on the start structure.
    """
    asked = settings.system
    known = CATALOGUE.get(asked.name)
    own = asked.pdb is not None or asked.sequence is not None or asked.prmtop is not None
    if known is None and not own:
        raise StructureError(
            f"system.name = '{asked.name}' is not a system known by name ({', '.join(CATALOGUE)})"
            f"{suggest(asked.name, CATALOGUE)}; for a protein of your own give system.pdb, system.sequence or "
            "system.prmtop too"
        )
    if known is not None and own:
        raise StructureError(
            f"system.name = '{asked.name}' is a built-in system: choose another name for your own pdb, sequence or "
            "prmtop"
        )
    chain, amber = _find_start(asked, known)
    native = find_native(known, asked.reference, cache)
    if native is not None:
        check_reference(native, chain.sequence())
    elif settings.steering.method == "rmsd-only":
        raise StructureError(
            "steering.method = 'rmsd-only' restarts from frames near the native structure: give it with "
            "--reference FILE (system.reference)"
        )

    if asked.model == "calpha":
        if native is None:
            raise StructureError(
                "system.model = 'calpha' is made from the native structure: give it with --reference FILE "
                "(system.reference), or use system.model = 'all-atom'"
            )
        start, native = only_ca(chain), only_ca(native)
        native = _as_written(native)
        epsilon = calpha.compute_epsilon(settings)
        system = calpha.build(native.positions, epsilon, settings.simulate.contact_cutoff_angstrom)
        force_field = f"structure-based CA model, epsilon {epsilon:.6g} kJ/mol"
    elif amber is not None:
        start, system = chain, explicit.build_amber(chain, amber, settings.simulate)
        force_field = f"topology of AMBER ({asked.prmtop.name if asked.prmtop else ''})"
    elif asked.solvent == "explicit":
        start, system = explicit.build(chain, settings)
        force_field = " + ".join(explicit.FORCE_FIELD)
    else:
        start, system = allatom.build(chain, settings.simulate)
        force_field = " + ".join(allatom.FORCE_FIELD)
    ca_indices = tuple(start.ca_indices())
    molecule = describe_molecule(start.topology, ca_indices, None if native is None else native.ca_positions())
    score = choose_score(settings, molecule, start.positions)
    record = SystemRecord(
        name=asked.name,
        model=asked.model,
        sequence=start.sequence(),
        n_atoms=system.getNumParticles(),
        n_residues=len(ca_indices),
        ca_indices=ca_indices,
        has_native=native is not None,
        force_field=force_field,
        solvent=asked.solvent,
        chains=explicit.find_chains(start) if asked.solvent == "explicit" else (),
        score=None if score is None else score.record,
    )
    return BuiltSystem(start, system, native, record, None if score is None else score.source)


def _find_start(asked: SystemSettings, known: KnownSystem | None) -> tuple[Structure, Any]:
    """The structure to start from, and the parameters of AMBER where it comes with them."""
    if asked.prmtop is not None and asked.inpcrd is not None:
        chain, amber = explicit.read_amber(asked.prmtop, asked.inpcrd)
        what, where = "system.prmtop", asked.prmtop
    elif asked.pdb is not None:
        chain, amber = read_protein(asked.pdb, "system.pdb", keep_solvent=asked.solvent == "explicit"), None
        what, where = "system.pdb", asked.pdb
    else:
        sequence = known.sequence if known is not None else asked.sequence
        return build_chain(parse_sequence(sequence or ""), EXTENDED), None
    if len(chain.ca_indices()) < MIN_RESIDUES:
        raise StructureError(
            f"{what}: {len(chain.ca_indices())} residues in {where} are too few, give at least {MIN_RESIDUES}"
        )
    return chain, amber


def write_system(built: BuiltSystem, layout: RunLayout) -> None:
    """Write topology, native structure, OpenMM system and record into the run folder."""
    layout.system.mkdir(parents=True, exist_ok=True)
    write_text(layout.topology, _to_pdb(built.start))
    if built.native is not None:
        write_text(layout.native, _to_pdb(built.native))
    write_text(layout.system_xml, openmm.XmlSerializer.serialize(built.system))
    if built.score_source is not None:
        write_text(layout.score, built.score_source)
    written = (layout.topology, layout.native, layout.system_xml, layout.score)
    files = digest_files(path for path in written if path.exists())
    write_record(layout.system_record, built.record.model_copy(update={"files": files}))


@dataclass(frozen=True)
class LoadedSystem:
    """A system as a task reads it back; positions in ångström."""

    topology: Any
    start: NDArray[np.float64]
    system: Any
    native_ca: NDArray[np.float64] | None
    record: SystemRecord


def load_system(layout: RunLayout) -> LoadedSystem:
    """Read what :func:`write_system` wrote.

    Raises
    ------
    DamagedError
        It is not what was written.
    """
    record = read_record(SystemRecord, layout.system_record)
    for path in (layout.topology, layout.system_xml, *((layout.native,) if record.has_native else ())):
        check_file(path, record.files)
    pdb = app.PDBFile(str(layout.topology))
    native = None
    if record.has_native:
        native = read_protein(layout.native, "native structure").ca_positions()
    return LoadedSystem(
        topology=pdb.topology,
        start=np.asarray(pdb.positions.value_in_unit(unit.angstrom), dtype=np.float64),
        system=openmm.XmlSerializer.deserialize(layout.system_xml.read_text(encoding="utf-8")),
        native_ca=native,
        record=record,
    )


def load_scorer(layout: RunLayout, loaded: LoadedSystem, contact_cutoff_angstrom: float) -> Scorer | None:
    """The campaign's score; None where it has none beside the RMSD.

    Raises
    ------
    DamagedError
        The file of the user's score is not the one that the campaign was begun with.
    ScoreError
        It cannot be loaded here.
    """
    record = loaded.record.score
    if record is None:
        return None
    if layout.score.name in loaded.record.files:
        check_file(layout.score, loaded.record.files)
    molecule = describe_molecule(loaded.topology, loaded.record.ca_indices, loaded.native_ca)
    return load_score(record, layout.score, molecule, contact_cutoff_angstrom)


def write_positions(
    path: Path, topology: Any, positions: NDArray[np.floating], box: NDArray[np.floating] | None = None
) -> None:
    """Write positions (shape (n_atoms, 3), ångström) as a PDB file.

    Parameters
    ----------
    box : array, shape (3, 3), ångström, or None
        Of a periodic system: the file's CRYST1.
    """
    before = topology.getPeriodicBoxVectors()
    if box is not None:
        topology.setPeriodicBoxVectors(box * unit.angstrom)
    try:
        write_text(path, _to_pdb(Structure(topology, np.asarray(positions), "")))
    finally:
        topology.setPeriodicBoxVectors(before)


def _as_written(structure: Structure) -> Structure:
    """With the precision of a PDB file, so that what is computed from it can be recomputed from the file."""
    return Structure(structure.topology, np.round(structure.positions, 3), structure.source)


def _to_pdb(structure: Structure) -> str:

    text = io.StringIO()
    app.PDBFile.writeFile(structure.topology, structure.positions * unit.angstrom, text, keepIds=True)
    # OpenMM's header carries the day, which would make equal systems differ.
    return "".join(line for line in text.getvalue().splitlines(keepends=True) if not line.startswith("REMARK"))
