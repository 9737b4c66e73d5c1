"""Per-frame data of a segment and latent coordinates of a model, in HDF5. Only this module imports h5py.

A segment's ``frames.h5`` holds, for every frame, the packed contact map and the frame's numbers. The file
is opened, appended and closed at every flush, so that a killed task leaves a file that can be read.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from entk_app import geometry
from entk_app.errors import DataError
from entk_app.integrity import check_file, read_segment
from entk_app.layout import RunLayout
from entk_app.records import FrameRef, ScoreRecord, SegmentKey

logger = logging.getLogger(__name__)

_LAYOUT = (
    "strict upper triangle (i < j) row by row, one bit a pair, most significant bit first, "
    "zero-padded to whole bytes; diagonal (1) and lower triangle not stored; "
    "read with entk_app.frames.read_contact_maps or numpy.unpackbits + numpy.triu_indices(n_residues, 1)"
)

#: Per-frame numbers beside the map: dataset, type, unit.
_COLUMNS = {
    "step": ("i8", "steps since the start of the simulation"),
    "time_ps": ("f8", "ps since the start of the simulation"),
    "rmsd_angstrom": ("f8", "CA atoms superposed on the native structure"),
    "radius_of_gyration_angstrom": ("f8", "CA atoms, equal weights"),
    "native_contacts": ("f8", "fraction of native CA contacts, |i - j| > 3"),
    "score": ("f8", "the campaign's score; its attributes are name and goal"),
}
_NATIVE_COLUMNS = ("rmsd_angstrom", "native_contacts")


class FrameWriter:
    """Computes every frame's numbers from CA positions and appends them to ``frames.h5``.

    Parameters
    ----------
    path : Path
        File to create.
    native : array, shape (n_residues, 3), ångström, or None
        Without a native structure there is no RMSD and there are no native contacts.
    contact_cutoff_angstrom : float
    start_positions : array, shape (n_atoms, 3), ångström
        Positions of the simulation before this segment's first step, kept as the evidence of its start.
    flush_frames : int
        Frames held in memory at most.
    score : ScoreRecord or None
        What each frame's score is; None: it has none beside the RMSD.
    """

    def __init__(
        self,
        path: Path,
        n_residues: int,
        native: NDArray[np.floating] | None,
        contact_cutoff_angstrom: float,
        start_positions: NDArray[np.floating],
        flush_frames: int = 100,
        score: ScoreRecord | None = None,
    ) -> None:
        self.path = path
        self.n_residues = n_residues
        self.n_frames = 0
        self.min_rmsd: float | None = None
        self.min_rmsd_frame: int | None = None
        self.last_rmsd: float | None = None
        self.best_score: float | None = None
        self.best_score_frame: int | None = None
        self._score = score
        self._sign = -1.0 if score is not None and score.goal == "maximise" else 1.0
        self._native = native
        self._cutoff = contact_cutoff_angstrom
        self._native_pairs = None if native is None else geometry.find_native_pairs(native, contact_cutoff_angstrom)
        self._flush_frames = flush_frames
        self._pending: list[tuple[int, float, NDArray[np.floating], float | None]] = []
        absent = () if native is not None else _NATIVE_COLUMNS
        absent = absent if score is not None else (*absent, "score")
        with h5py.File(path, "w") as file:
            file.attrs["n_residues"] = n_residues
            file.attrs["contact_cutoff_angstrom"] = contact_cutoff_angstrom
            file.attrs["contacts_layout"] = _LAYOUT
            n_bytes = geometry.count_bytes(n_residues)
            file.create_dataset("contacts", (0, n_bytes), "u1", maxshape=(None, n_bytes), chunks=(1024, n_bytes))
            for name, (kind, meaning) in _COLUMNS.items():
                if name not in absent:
                    file.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(1024,))
                    file[name].attrs["meaning"] = meaning
            if score is not None:
                file["score"].attrs.update({"name": score.name, "goal": score.goal})
            file.create_dataset("start_positions_angstrom", data=np.asarray(start_positions, dtype="f8"))

    def add(self, step: int, time_ps: float, ca_positions: NDArray[np.floating], score: float | None = None) -> None:
        """Take one frame; CA positions in ångström, as the trajectory holds them; its score where it has one."""
        self._pending.append((step, time_ps, ca_positions, score))
        self.n_frames += 1
        if score is not None and (self.best_score is None or self._sign * score < self._sign * self.best_score):
            self.best_score, self.best_score_frame = score, self.n_frames - 1
        if self._native is not None:
            self.last_rmsd = float(geometry.compute_rmsd(ca_positions, self._native))
            if self.min_rmsd is None or self.last_rmsd < self.min_rmsd:
                self.min_rmsd, self.min_rmsd_frame = self.last_rmsd, self.n_frames - 1
        if len(self._pending) >= self._flush_frames:
            self.flush()

    def flush(self) -> None:
        """Append what is pending and close the file again."""
        if not self._pending:
            return
        positions = np.asarray([item[2] for item in self._pending])
        contacts = geometry.compute_contacts(positions, self._cutoff)
        values: dict[str, NDArray] = {
            "contacts": geometry.pack_contacts(contacts),
            "step": np.asarray([item[0] for item in self._pending]),
            "time_ps": np.asarray([item[1] for item in self._pending]),
            "radius_of_gyration_angstrom": geometry.compute_radius_of_gyration(positions),
        }
        if self._native is not None and self._native_pairs is not None:
            values["rmsd_angstrom"] = geometry.compute_rmsd(positions, self._native)
            values["native_contacts"] = geometry.compute_native_fraction(contacts, self._native_pairs)
        if self._score is not None:
            values["score"] = np.asarray([item[3] for item in self._pending])
        with h5py.File(self.path, "r+") as file:
            for name, new in values.items():
                dataset = file[name]
                old = dataset.shape[0]
                dataset.resize(old + len(new), axis=0)
                dataset[old:] = new
        self._pending.clear()


@dataclass(frozen=True)
class Frames:
    """Frames of several segments, each row with its identity beside it.

    Attributes
    ----------
    n_residues : int
    simulation, segment, frame : arrays of int, shape (n_frames,)
        The identity of every row.
    packed : array of uint8, shape (n_frames, n_bytes)
    rmsd_angstrom : array, shape (n_frames,), or None where there is no native structure
    """

    n_residues: int
    simulation: NDArray[np.int32]
    segment: NDArray[np.int32]
    frame: NDArray[np.int32]
    packed: NDArray[np.uint8]
    rmsd_angstrom: NDArray[np.float64] | None
    keys: tuple[SegmentKey, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.packed)

    def ref(self, row: int) -> FrameRef:
        return FrameRef(
            simulation=int(self.simulation[row]), segment=int(self.segment[row]), frame=int(self.frame[row])
        )


@dataclass(frozen=True)
class FrameIndex:
    """Which frame a row is where the frames of these segments stand one after another."""

    keys: tuple[SegmentKey, ...]

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(key.n_frames for key in self.keys)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def ref(self, row: int) -> FrameRef:
        place = int(np.searchsorted(self._starts, row, side="right")) - 1
        key = self.keys[place]
        return FrameRef(simulation=key.simulation, segment=key.segment, frame=int(row - self._starts[place]))


def split_rows(values: NDArray[Any], keys: Sequence[SegmentKey]) -> dict[SegmentKey, NDArray[Any]]:
    """Rows of segments that stand one after another, by segment."""
    ends = np.cumsum([key.n_frames for key in keys])[:-1]
    return dict(zip(keys, np.split(values, ends), strict=True))


def read_packed_maps(path: Path) -> tuple[NDArray[np.uint8], int]:
    """Packed contact maps of a ``frames.h5``, shape (n_frames, n_bytes), and the number of residues."""
    with h5py.File(path, "r") as file:
        return file["contacts"][:], int(file.attrs["n_residues"])


def read_contact_maps(path: Path) -> NDArray[np.uint8]:
    """Full contact maps of a ``frames.h5``: uint8 of 0 and 1, shape (n_frames, n_residues, n_residues)."""
    packed, n_residues = read_packed_maps(path)
    return geometry.unpack_contacts(packed, n_residues)


def read_columns_and_maps(path: Path) -> tuple[dict[str, NDArray], NDArray[np.uint8], int]:
    """What :func:`read_columns` and :func:`read_packed_maps` give, for one opening of the file."""
    with h5py.File(path, "r") as file:
        columns = {name: file[name][:] for name in _COLUMNS if name in file}
        return columns, file["contacts"][:], int(file.attrs["n_residues"])


def read_columns(path: Path) -> dict[str, NDArray]:
    """Per-frame numbers of a ``frames.h5`` by dataset name, each of shape (n_frames,)."""
    with h5py.File(path, "r") as file:
        return {name: file[name][:] for name in _COLUMNS if name in file}


def read_start_positions(path: Path) -> NDArray[np.float64]:
    """Positions before the segment's first step, shape (n_atoms, 3), ångström."""
    with h5py.File(path, "r") as file:
        return file["start_positions_angstrom"][:]


def read_frames(layout: RunLayout, keys: Sequence[SegmentKey]) -> Frames:
    """Read the frames of these segments in this order.

    Raises
    ------
    DamagedError
        A file is not the one that was published.
    DataError
        There is no frame at all, a segment holds another number of frames than its record says, or the
        segments are of proteins of different length.
    """
    packed, rmsd, simulation, segment, frame = [], [], [], [], []
    sizes = set()
    for key in keys:
        paths = layout.segment(key.simulation, key.segment)
        path = paths.frames
        check_file(path, read_segment(paths).files)
        with h5py.File(path, "r") as file:
            maps = file["contacts"][:]
            if len(maps) != key.n_frames:
                raise DataError(f"{path} holds {len(maps)} frames, its record says {key.n_frames}")
            sizes.add(int(file.attrs["n_residues"]))
            if "rmsd_angstrom" in file:
                rmsd.append(file["rmsd_angstrom"][:])
        packed.append(maps)
        simulation.append(np.full(len(maps), key.simulation, dtype=np.int32))
        segment.append(np.full(len(maps), key.segment, dtype=np.int32))
        frame.append(np.arange(len(maps), dtype=np.int32))
    if not packed or not sum(map(len, packed)):
        raise DataError("there are no frames to read")
    if len(sizes) != 1:
        raise DataError(f"segments of proteins of different length cannot be read together: {sorted(sizes)} residues")
    return Frames(
        n_residues=sizes.pop(),
        simulation=np.concatenate(simulation),
        segment=np.concatenate(segment),
        frame=np.concatenate(frame),
        packed=np.concatenate(packed),
        rmsd_angstrom=np.concatenate(rmsd) if len(rmsd) == len(packed) else None,
        keys=tuple(keys),
    )


def read_rmsd(layout: RunLayout, refs: Iterable[FrameRef]) -> dict[FrameRef, float | None]:
    """CA-RMSD of single frames, ångström; None where there is no native structure."""
    return read_numbers(layout, refs, "rmsd_angstrom")


def read_numbers(layout: RunLayout, refs: Iterable[FrameRef], column: str) -> dict[FrameRef, float | None]:
    """A column's numbers of single frames; None where a file has no such column. A file is read once.

    Raises
    ------
    DamagedError
        A file is not the one that was published.
    """
    numbers: dict[FrameRef, float | None] = {}
    for place, frames in group_by_segment(refs).items():
        paths = layout.segment(*place)
        check_file(paths.frames, read_segment(paths).files)
        with h5py.File(paths.frames, "r") as file:
            values = file[column][:] if column in file else None
        numbers |= {ref: None if values is None else float(values[ref.frame]) for ref in frames}
    return numbers


def group_by_segment(refs: Iterable[FrameRef]) -> dict[tuple[int, int], list[FrameRef]]:
    """Frames by simulation and segment, for each file to be read once."""
    by_segment: dict[tuple[int, int], list[FrameRef]] = {}
    for ref in refs:
        by_segment.setdefault((ref.simulation, ref.segment), []).append(ref)
    return by_segment


def write_embeddings(path: Path, embeddings: Mapping[SegmentKey, NDArray[np.floating]]) -> None:
    """Add latent coordinates of segments, each of shape (n_frames, latent_dim), to those that the file has.

    All of them are one dataset, ``latent`` (float32); ``segments`` says which rows are whose, ``sha256`` has a checksum
    of each segment. The file is written anew as a whole: a reader sees it with the new ones or without.
    """
    merged = {**read_embeddings(path), **embeddings}
    latent = np.concatenate([np.asarray(values, dtype="<f4") for values in merged.values()])
    lengths = [len(values) for values in merged.values()]
    starts = np.cumsum([0, *lengths[:-1]])
    table = [(k.simulation, k.segment, start, n) for k, start, n in zip(merged, starts, lengths, strict=True)]
    sums = [_checksum(key, latent[start : start + n]) for key, (_, _, start, n) in zip(merged, table, strict=True)]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            file["latent"] = latent
            file["segments"] = np.asarray(table, dtype="<i8")
            file["segments"].attrs["columns"] = "simulation, segment, first row, rows"
            file["sha256"] = np.frombuffer(b"".join(sums), dtype="u1").reshape(-1, 32)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_embeddings(path: Path, keys: Iterable[SegmentKey] | None = None) -> dict[SegmentKey, NDArray[np.float32]]:
    """Those of the segments' latent coordinates that the file has as they were written; none where there is no file.

    What is missing or damaged can be computed again from the model; a file that cannot be opened is taken away.
    """
    try:
        return look_up_embeddings(path, keys)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        # HDF5 reports a broken file in each of these ways.
        logger.warning("%s cannot be read and is made anew: %s", path, error)
        path.unlink()
        return {}


def look_up_embeddings(path: Path, keys: Iterable[SegmentKey] | None = None) -> dict[SegmentKey, NDArray[np.float32]]:
    """As :func:`read_embeddings`, for whoever only looks: a file that cannot be opened is left where it is.

    Raises
    ------
    OSError, RuntimeError, KeyError, ValueError
        As HDF5 reports a file that is damaged.
    """
    return _read_embedded(path, keys)[0] if path.exists() else {}


def find_altered_embeddings(path: Path) -> list[str]:
    """Names of the segments whose latent coordinates are not as they were written.

    Raises
    ------
    OSError, DataError
        The file cannot be read.
    """
    try:
        return [f"simulation {key.simulation} segment {key.segment}" for key in _read_embedded(path)[1]]
    except (RuntimeError, KeyError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _read_embedded(
    path: Path, keys: Iterable[SegmentKey] | None = None
) -> tuple[dict[SegmentKey, NDArray[np.float32]], list[SegmentKey]]:
    """Of these segments, or of all: the coordinates that are as they were written, and the segments whose are not."""
    with h5py.File(path, "r") as file:
        places = {
            SegmentKey(simulation=simulation, segment=segment, n_frames=n): (first, checksum.tobytes())
            for (simulation, segment, first, n), checksum in zip(
                file["segments"][:].tolist(), file["sha256"][:], strict=True
            )
        }
        if keys is not None:
            places = {key: places[key] for key in keys if key in places}
        # One read of all rows between the first and the last that are asked for.
        low = max(0, min((first for first, _ in places.values()), default=0))
        high = max((first + key.n_frames for key, (first, _) in places.items()), default=0)
        latent = file["latent"][low:high]
    whole, altered = {}, []
    for key, (first, checksum) in places.items():
        values = latent[first - low : first - low + key.n_frames]
        if len(values) == key.n_frames and _checksum(key, values) == checksum:
            whole[key] = values
        else:
            altered.append(key)
    return whole, altered


def _checksum(key: SegmentKey, latent: NDArray[np.float32]) -> bytes:
    """Of a segment's latent coordinates and of whose they are."""
    identity = f"simulation {key.simulation} segment {key.segment}\n".encode()
    return hashlib.sha256(identity + np.ascontiguousarray(latent, dtype="<f4").tobytes()).digest()
