"""Per-frame data of a segment and latent coordinates of a model, in HDF5. Only this module imports h5py.

A segment's ``frames.h5`` holds, for every frame, the packed contact map and the frame's numbers. The file
is opened, appended and closed at every flush, so that a killed task leaves a file that can be read.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from entk_app import geometry
from entk_app.errors import DataError
from entk_app.integrity import check_file, read_segment
from entk_app.layout import RunLayout
from entk_app.records import FrameRef, SegmentKey

logger = logging.getLogger(__name__)

#: Attribute of a dataset that other tasks add to a file: SHA-256 of its bytes.
_CHECKSUM = "sha256"

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
    """

    def __init__(
        self,
        path: Path,
        n_residues: int,
        native: NDArray[np.floating] | None,
        contact_cutoff_angstrom: float,
        start_positions: NDArray[np.floating],
        flush_frames: int = 100,
    ) -> None:
        self.path = path
        self.n_residues = n_residues
        self.n_frames = 0
        self.min_rmsd: float | None = None
        self.min_rmsd_frame: int | None = None
        self.last_rmsd: float | None = None
        self._native = native
        self._cutoff = contact_cutoff_angstrom
        self._native_pairs = None if native is None else geometry.find_native_pairs(native, contact_cutoff_angstrom)
        self._flush_frames = flush_frames
        self._pending: list[tuple[int, float, NDArray[np.floating]]] = []
        with h5py.File(path, "w") as file:
            file.attrs["n_residues"] = n_residues
            file.attrs["contact_cutoff_angstrom"] = contact_cutoff_angstrom
            file.attrs["contacts_layout"] = _LAYOUT
            n_bytes = geometry.count_bytes(n_residues)
            file.create_dataset("contacts", (0, n_bytes), "u1", maxshape=(None, n_bytes), chunks=(1024, n_bytes))
            for name, (kind, meaning) in _COLUMNS.items():
                if native is not None or name not in _NATIVE_COLUMNS:
                    file.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(1024,))
                    file[name].attrs["meaning"] = meaning
            file.create_dataset("start_positions_angstrom", data=np.asarray(start_positions, dtype="f8"))

    def add(self, step: int, time_ps: float, ca_positions: NDArray[np.floating]) -> None:
        """Take one frame; CA positions in ångström, as the trajectory holds them."""
        self._pending.append((step, time_ps, ca_positions))
        self.n_frames += 1
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


def write_embeddings(path: Path, embeddings: Mapping[SegmentKey, NDArray[np.floating]]) -> None:
    """Add latent coordinates, one dataset a segment: shape (n_frames, latent_dim), float32, with a checksum each."""
    with h5py.File(path, "a") as file:
        for key, values in embeddings.items():
            name, latent = _embedding_name(key), np.ascontiguousarray(values, dtype="<f4")
            if name in file:
                del file[name]
            file.create_dataset(name, data=latent).attrs[_CHECKSUM] = _checksum(latent)


def read_embeddings(path: Path, keys: Iterable[SegmentKey]) -> dict[SegmentKey, NDArray[np.float32]]:
    """Those of the segments' latent coordinates that the file has as they were written; none where there is no file.

    What is missing or damaged can be computed again from the model; a file that cannot be opened, as a task leaves
    one that was killed while it wrote, is taken away.
    """
    if not path.exists():
        return {}
    found: dict[SegmentKey, NDArray[np.float32]] = {}
    try:
        with h5py.File(path, "r") as file:
            for key in keys:
                name = _embedding_name(key)
                values = file[name][:] if name in file else np.empty(0, np.float32)
                if len(values) == key.n_frames and file[name].attrs.get(_CHECKSUM) == _checksum(values):
                    found[key] = values
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        # HDF5 reports a broken file in each of these ways.
        logger.warning("%s cannot be read and is made anew: %s", path, error)
        path.unlink()
        return {}
    return found


def look_up_embeddings(path: Path, keys: Iterable[SegmentKey]) -> dict[SegmentKey, NDArray[np.float32]]:
    """As :func:`read_embeddings`, for whoever only looks: a file that cannot be opened is left where it is.

    Raises
    ------
    OSError, RuntimeError, KeyError, ValueError
        As HDF5 reports a file that is damaged, or that a task is writing to.
    """
    if not path.exists():
        return {}
    with h5py.File(path, "r") as file:
        names = {key: _embedding_name(key) for key in keys}
        found = {key: file[name] for key, name in names.items() if name in file}
        values = {key: dataset[:] for key, dataset in found.items() if len(dataset) == key.n_frames}
        return {key: v for key, v in values.items() if found[key].attrs.get(_CHECKSUM) == _checksum(v)}


def find_altered_embeddings(path: Path) -> list[str]:
    """Names of the datasets of latent coordinates that are not as they were written.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    altered = []

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.attrs.get(_CHECKSUM) != _checksum(item[:]):
            altered.append(name)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return altered


def _checksum(values: NDArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _embedding_name(key: SegmentKey) -> str:
    return f"simulation-{key.simulation:04d}/segment-{key.segment:04d}"
