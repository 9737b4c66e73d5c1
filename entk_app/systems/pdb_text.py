"""The text of a PDB file, before any library reads it: what it must not hold is refused, each with its line.

Readers of PDB files guess: of two models or two alternate locations they take the first, of two equal atoms the last,
and a line that is cut off is a number that is cut off. Here none of it is guessed. Pure but for the reading; imports
nothing heavy.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from entk_app.errors import StructureError
from entk_app.settings import read_bounded
from entk_app.systems.sequences import WATERS

#: A PDB file of one model has at most 99,999 atoms of 81 characters; the rest is its header.
_MAX_BYTES = 64_000_000

#: What a coordinate's eight columns can hold.
_COORDINATE_LIMITS = (-999.999, 9999.999)


@dataclass(frozen=True)
class _AtomLine:
    """An ATOM or HETATM record, as far as it is checked here."""

    number: int
    text: str
    chain_part: int

    @property
    def name(self) -> str:
        return self.text[12:16].strip()

    @property
    def location(self) -> str:
        return self.text[16].strip()

    @property
    def residue_name(self) -> str:
        return self.text[17:21].strip()

    @property
    def is_water(self) -> bool:
        return self.residue_name in WATERS

    @property
    def residue(self) -> str:
        chain = f" of chain {self.text[21]}" if self.text[21].strip() else ""
        return f"{self.residue_name} {self.text[22:27].strip()}{chain}"

    @property
    def key(self) -> tuple[int, str, str]:
        """Chain, residue number with its insertion code, and atom; not the residue's name, which locations may vary."""
        return (self.chain_part, self.text[21:27], self.name)


def read_pdb_text(path: Path, what: str, first_model: bool = False, keep_solvent: bool = False) -> str:
    """The coordinate records of the one model of a PDB file, as text.

    Parameters
    ----------
    path : Path
    what : str
        Setting that named the file, for messages.
    first_model : bool
        Take the first of several models: for a file that the program chose, not the user.
    keep_solvent : bool
        Keep water, and the box.

    Raises
    ------
    StructureError
        The file is missing, empty, not text, or :func:`select_coordinates` refuses it.
    """
    content = read_bounded(path, _MAX_BYTES, what, StructureError)
    if not content.strip():
        raise StructureError(f"{what}: {path} is empty")
    if content.startswith(b"\x1f\x8b"):
        raise StructureError(f"{what}: {path} is compressed: unpack it first (gunzip)")
    if b"\0" in content:
        raise StructureError(f"{what}: {path} is not text: give a file in PDB format")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StructureError(f"{what}: {path} is not UTF-8 text: {error.reason} in line {line}") from None
    if text.lstrip().startswith("data_"):
        raise StructureError(f"{what}: {path} is an mmCIF file: give the PDB format")
    return select_coordinates(text, path, what, first_model, keep_solvent)


def select_coordinates(
    text: str, path: Path, what: str, first_model: bool = False, keep_solvent: bool = False
) -> str:
    """Those lines of a PDB file that say where atoms are; water is dropped, or kept together with the box.

    Raises
    ------
    StructureError
        There is no atom; there are several models, alternate locations or equal atoms; a line is cut off or a
        coordinate is not a number in the format's range.
    """
    where = f"{what}: {path}"
    every = _split_models(text, keep_solvent)
    models = [model for model in every if any(isinstance(part, _AtomLine) for part in model)]
    if not models:
        raise StructureError(f"{where} holds no protein: there is no ATOM record of one in the format of the PDB")
    if len(models) > 1 and not first_model:
        keep = f"sed '/^END/q' {shlex.quote(str(path))} > one.pdb"
        raise StructureError(f"{where} holds {len(models)} models: keep the one to simulate (the first: {keep})")
    lines, atoms = [], []
    for part in models[0]:
        if isinstance(part, _AtomLine):
            _check_columns(part, where)
            atoms.append(part)
            lines.append(part.text)
        elif atoms:
            lines.append(part)
    _check_distinct(atoms, where)
    box = [line for line in text.splitlines() if line.startswith("CRYST1")][:1] if keep_solvent else []
    return "\n".join([*box, *lines, "END", ""])


def _split_models(text: str, keep_solvent: bool) -> Iterator[list[_AtomLine | str]]:
    """Atoms, those of water only where it is kept, and ends of chains, of each model."""
    model: list[_AtomLine | str] = []
    part = 0
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        if line.startswith(("ATOM  ", "HETATM")):
            atom = _AtomLine(number, line, part)
            if keep_solvent or not atom.is_water:
                model.append(atom)
        elif line.split(maxsplit=1)[:1] == ["TER"]:
            model.append("TER")
            part += 1
        elif line.startswith(("MODEL", "END")):
            yield model
            model = []
    yield model


def _check_columns(atom: _AtomLine, where: str) -> None:
    place = f"{where}: line {atom.number}"
    if not atom.text.isascii():
        raise StructureError(f"{place} holds letters that a PDB file cannot: {atom.text[:54]!r}")
    if len(atom.text) < 54:
        raise StructureError(f"{place} is cut off or not in the columns of a PDB file: {atom.text!r}")
    for axis, start in zip("xyz", (30, 38, 46), strict=True):
        field = atom.text[start : start + 8]
        try:
            value = float(field)
        except ValueError:
            raise StructureError(
                f"{place} cannot be read: its {axis}, columns {start + 1} to {start + 8}, is {field!r}, not a number"
            ) from None
        low, high = _COORDINATE_LIMITS
        if not low <= value <= high:
            # NaN is not within them either.
            raise StructureError(
                f"{place} ({atom.name} of {atom.residue}): its {axis} is {field.strip()}: coordinates that are not "
                f"numbers from {low} to {high} Å cannot be simulated"
            )


def _check_distinct(atoms: list[_AtomLine], where: str) -> None:
    by_key: dict[tuple[int, str, str], list[_AtomLine]] = {}
    for atom in atoms:
        # Numbers of waters start anew after 9,999: two in one place are found by their distance.
        if atom.is_water and not atom.location:
            continue
        by_key.setdefault(atom.key, []).append(atom)
    doubled = [same for same in by_key.values() if len(same) > 1]
    for same in doubled:
        first, second = same[:2]
        if len({atom.location for atom in same}) < len(same):
            raise StructureError(
                f"{where}: atom {first.name} of residue {first.residue} is there twice, in lines {first.number} and "
                f"{second.number}: take one out"
            )
    if doubled:
        first = doubled[0][0]
        letters = ", ".join(repr(atom.location) if atom.location else "blank" for atom in doubled[0])
        others = f" (and {len(doubled) - 1} other atoms have some)" if len(doubled) > 1 else ""
        raise StructureError(
            f"{where}: atom {first.name} of residue {first.residue} has the alternate locations {letters}{others}: "
            "keep one of them, the lines with the same letter in column 17"
        )
