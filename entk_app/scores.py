"""Scores of frames beside the RMSD: known ones, and a function of the user's own.

The user's function is the only code that is run out of a run folder: its file is copied to ``system/score.py`` when
the campaign begins, and every simulate task runs that copy. ``docs/scores.md`` shows what one looks like.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entk_app import geometry
from entk_app.errors import ScoreError, SettingsError
from entk_app.records import ScoreRecord
from entk_app.settings import KNOWN_SCORES, Settings, read_bounded

#: A function of the user's is short; this is no data file.
_MAX_SOURCE_BYTES = 1_000_000


@dataclass(frozen=True)
class Molecule:
    """What a score may know beside the positions. Atoms, residues and indices are counted from 0.

    Attributes
    ----------
    atom_names : tuple of str, n_atoms
    residue_names : tuple of str, n_residues
        Of all residues, caps included.
    residue_indices : array of int, shape (n_atoms,)
        The residue of each atom.
    ca_indices : array of int, shape (n_ca,)
        The CA atoms, in the order of the chain.
    native_ca : array, shape (n_ca, 3), ångström, or None
        CA positions of the native structure, where one is known.
    """

    atom_names: tuple[str, ...]
    residue_names: tuple[str, ...]
    residue_indices: NDArray[np.int64]
    ca_indices: NDArray[np.int64]
    native_ca: NDArray[np.float64] | None


#: Positions of one frame, shape (n_atoms, 3), ångström, and whose they are -> its score.
ScoreFunction = Callable[[NDArray[np.float64], Molecule], float]


@dataclass(frozen=True)
class Scorer:
    """A score that can be computed: its record, its function and the molecule that it is asked about."""

    record: ScoreRecord
    function: ScoreFunction
    molecule: Molecule

    def __call__(self, positions: NDArray[np.float64]) -> float:
        """Score of a frame; positions of shape (n_atoms, 3), ångström.

        Raises
        ------
        ScoreError
            The function raises, or returns something else than a finite number.
        """
        name = self.record.name
        try:
            # A copy: what the user's function does to it is its own affair.
            value = self.function(positions.copy(), self.molecule)
            array = np.asarray(value)
        except (Exception, SystemExit) as error:
            # Of what was called from here; a function that is not Python's has no line.
            places = traceback.extract_tb(error.__traceback__)[1:]
            where = f" ({Path(places[-1].filename).name} line {places[-1].lineno})" if places else ""
            raise ScoreError(f"the score '{name}' raised {type(error).__name__}: {error}{where}") from error
        if array.shape != () or array.dtype.kind not in "iuf":
            what = f"an array of shape {array.shape}" if array.shape else f"a {type(value).__name__}"
            raise ScoreError(f"the score '{name}' returned {what}: it must return one number for a frame")
        if not np.isfinite(array):
            raise ScoreError(f"the score '{name}' returned {value}: it must return a finite number for every frame")
        return float(array)


def describe_molecule(
    topology: Any, ca_indices: tuple[int, ...], native_ca: NDArray[np.float64] | None
) -> Molecule:
    """The molecule of an OpenMM topology."""
    atoms, residues = list(topology.atoms()), list(topology.residues())
    return Molecule(
        atom_names=tuple(atom.name for atom in atoms),
        residue_names=tuple(residue.name for residue in residues),
        residue_indices=np.array([atom.residue.index for atom in atoms], dtype=np.int64),
        ca_indices=np.array(ca_indices, dtype=np.int64),
        native_ca=native_ca,
    )


@dataclass(frozen=True)
class ChosenScore:
    """The score that the settings ask for, and the text of the user's file; None where there is no file."""

    record: ScoreRecord
    source: str | None


def choose_score(settings: Settings, molecule: Molecule, positions: NDArray[np.float64]) -> ChosenScore | None:
    """The score of a campaign, tried on its start structure; None where it has none beside the RMSD.

    Parameters
    ----------
    settings : Settings
    molecule : Molecule
    positions : array, shape (n_atoms, 3), ångström

    Raises
    ------
    SettingsError
        The file or function is not there, or the score of the start structure is no number.
    """
    steering = settings.steering
    if not steering.has_score:
        return None
    place, _, name = steering.score.rpartition(":")
    source, file = None, Path(place)
    record = ScoreRecord(name=name, goal=steering.goal, is_known=steering.score in KNOWN_SCORES)
    if place.endswith(".py"):
        source = _read_source(file)
    elif place:
        record = record.model_copy(update={"module": place})
    try:
        if record.module is not None:
            record = record.model_copy(update={"sha256": _digest_module(_import(record.module))})
        load_score(record, file, molecule, settings.simulate.contact_cutoff_angstrom)(positions)
    except ScoreError as error:
        raise SettingsError(f"steering.score = {steering.score!r}, tried on the start structure: {error}") from error
    return ChosenScore(record, source)


def load_score(record: ScoreRecord, file: Path, molecule: Molecule, contact_cutoff_angstrom: float) -> Scorer:
    """The score of a record, ready to be computed.

    Parameters
    ----------
    record : ScoreRecord
    file : Path
        Where the user's function is, unless it is in a module or the score is a known one.
    molecule : Molecule
    contact_cutoff_angstrom : float

    Raises
    ------
    ScoreError
        The function cannot be loaded, or a known score needs a native structure that is not there.
    """
    if record.is_known:
        return Scorer(record, _make_known(record.name, molecule, contact_cutoff_angstrom), molecule)
    module = _run_file(file) if record.module is None else _import(record.module)
    if record.sha256 is not None and _digest_module(module) != record.sha256:
        raise ScoreError(
            f"the module {record.module} of the score is not the one that the campaign was begun with: bring it back, "
            "or give the function as a file, which the run folder keeps"
        )
    function = getattr(module, record.name, None)
    if not callable(function):
        raise ScoreError(f"there is no function '{record.name}' in {record.module or file}")
    return Scorer(record, function, molecule)


def _make_known(name: str, molecule: Molecule, contact_cutoff_angstrom: float) -> ScoreFunction:
    if name == "radius_of_gyration":
        return lambda positions, _: float(geometry.compute_radius_of_gyration(positions[molecule.ca_indices]))
    if molecule.native_ca is None:
        raise ScoreError(f"{name} needs a native structure: give one (--reference FILE), or choose another score")
    pairs = geometry.find_native_pairs(molecule.native_ca, contact_cutoff_angstrom)
    if not pairs.any():
        raise ScoreError(f"the native structure has no contact within {contact_cutoff_angstrom:g} Å to count")

    def compute_native_contacts(positions: NDArray[np.float64], _: Molecule) -> float:
        contacts = geometry.compute_contacts(positions[molecule.ca_indices], contact_cutoff_angstrom)
        return float(geometry.compute_native_fraction(contacts, pairs))

    return compute_native_contacts


class _Uncached(SourceFileLoader):
    """Leaves no compiled copy beside the file: a run folder holds what its records know."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        pass


def _run_file(file: Path) -> Any:
    name = "entk_app_score"
    loader = _Uncached(name, str(file))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))  # type: ignore[arg-type]
    # Where classes of the file look for their module.
    sys.modules[name] = module
    _load(lambda: loader.exec_module(module), f"the file {file}")
    return module


def _import(module: str) -> Any:
    return _load(lambda: importlib.import_module(module), f"the module {module}")


def _load(load: Callable[[], Any], what: str) -> Any:
    try:
        return load()
    except (Exception, SystemExit) as error:
        raise ScoreError(f"{what} of the score cannot be loaded: {type(error).__name__}: {error}") from error


def _digest_module(module: Any) -> str | None:
    """SHA-256 of a module's source; None where it has no file of its own."""
    path = getattr(module, "__file__", None)
    return None if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _read_source(file: Path) -> str:
    try:
        return read_bounded(file, _MAX_SOURCE_BYTES, "steering.score", SettingsError).decode("utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError(f"steering.score: {file} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def explain_unused(settings: Settings) -> str | None:
    """A note on a score that is computed and steers nothing; None where all is well."""
    steering = settings.steering
    ranks = steering.ranking in ("score", "mix") and steering.method in ("cvae", "rmsd-only")
    if not steering.has_score or ranks or settings.stop.target_score is not None:
        return None
    return (
        f"steering.score = {steering.score_name} is computed, but steers nothing (steering.method = {steering.method}, "
        f"steering.ranking = {steering.ranking}): the rankings score and mix take it, and stop.target_score"
    )
