"""What a model is trained on and what is held out from it: whole blocks of frames that followed one another. Pure.

Frames that follow one another are nearly equal: a random frame held out would be known from its neighbours. A block is
held out, or not, by a number that belongs to it for good, made of the campaign's seed and of its place: a model that
goes on from the weights of an earlier one (``train.warm_start``) is judged by frames that neither has been trained on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from entk_app.errors import DataError
from entk_app.records import FrameRef, SegmentKey
from entk_app.settings import TrainSettings

#: Of a training set that cannot hold all frames: one part around outliers, one part new frames, the rest old ones.
_SHARES = 3


@dataclass(frozen=True)
class Blocks:
    """Frames of segments that stand one after another, in blocks of one segment each.

    Attributes
    ----------
    first, length : arrays of int, shape (n_blocks,)
        First row and number of rows.
    segment : array of int, shape (n_blocks,)
        Place of the segment in the list of segments.
    within : array of int, shape (n_blocks,)
        Number of the block within its segment.
    """

    first: NDArray[np.int64]
    length: NDArray[np.int64]
    segment: NDArray[np.int64]
    within: NDArray[np.int64]

    def list_rows(self, chosen: NDArray[np.integer]) -> NDArray[np.intp]:
        """Rows of these blocks, block after block."""
        length = self.length[chosen]
        ends = np.cumsum(length)
        return np.repeat(self.first[chosen] - ends + length, length) + np.arange(ends[-1] if len(ends) else 0)


@dataclass(frozen=True)
class TrainingSet:
    """Rows to train on and rows held out.

    Attributes
    ----------
    train, held_out : arrays of int
    held_out_block : array of int, shape (n_held_out,)
        Which block each held-out row is of.
    block_frames : int
    """

    train: NDArray[np.intp]
    held_out: NDArray[np.intp]
    held_out_block: NDArray[np.intp]
    block_frames: int


@dataclass(frozen=True)
class BlockMean:
    """A mean over frames and its standard error by blocks; None where there are fewer than two."""

    mean: float
    standard_error: float | None


def choose_block_frames(settings: TrainSettings, n_frames: int) -> int:
    """Frames of a block: ``block_frames``, or fewer where there would be fewer than five blocks."""
    return max(1, min(settings.block_frames, n_frames // 5))


def list_blocks(segments: Sequence[SegmentKey], block_frames: int) -> Blocks:
    """All blocks of these segments; the last of a segment may be shorter."""
    lengths = np.asarray([key.n_frames for key in segments], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    counts = -(-lengths // block_frames)
    segment = np.repeat(np.arange(len(segments)), counts)
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    first = starts[segment] + within * block_frames
    return Blocks(first, np.minimum(block_frames, lengths[segment] - within * block_frames), segment, within)


def choose_training_set(
    segments: Sequence[SegmentKey],
    settings: TrainSettings,
    seed: int,
    generator: np.random.Generator,
    *,
    block_frames: int | None = None,
    known: Collection[tuple[int, int]] = (),
    rare: Collection[FrameRef] = (),
) -> TrainingSet:
    """Choose blocks to train on and blocks to hold out.

    Parameters
    ----------
    segments : sequence of SegmentKey
        All there are; rows are their frames, one segment after another.
    settings : TrainSettings
        Where all frames are more than ``max_frames``: at most so many, a third of them from blocks with a frame of
        ``rare``, a third from segments that are not ``known``, and the rest drawn among the older ones.
    seed : int
        The campaign's: which blocks are held out follows from it and from their place alone.
    generator : numpy.random.Generator
        Draws among blocks of one kind.
    block_frames : int or None
        Of the model before, so that its blocks are held out again; None: by the number of frames.
    known : collection of (simulation, segment)
        What the model before could be trained on.
    rare : collection of FrameRef
        Outliers.

    Raises
    ------
    DataError
        There are fewer than two frames.
    """
    total = sum(key.n_frames for key in segments)
    if total < 2:
        raise DataError(f"{total} frames are too few to train on and hold some out")
    # At least two blocks.
    size = min(block_frames or choose_block_frames(settings, total), -(-total // 2))
    blocks = list_blocks(segments, size)
    chosen = np.arange(len(blocks.first))
    if settings.max_frames is not None and total > settings.max_frames:
        chosen = _draw_blocks(blocks, segments, size, settings.max_frames, generator, known, rare)
    draws = draw_numbers(blocks, segments, seed)[chosen]
    is_held_out = draws < settings.held_out_fraction
    if not is_held_out.any():
        is_held_out[np.argmin(draws)] = True
    elif is_held_out.all():
        is_held_out[np.argmax(draws)] = False
    held_out = chosen[is_held_out]
    return TrainingSet(
        blocks.list_rows(chosen[~is_held_out]),
        blocks.list_rows(held_out),
        np.repeat(np.arange(len(held_out)), blocks.length[held_out]),
        size,
    )


def _draw_blocks(
    blocks: Blocks,
    segments: Sequence[SegmentKey],
    size: int,
    max_frames: int,
    generator: np.random.Generator,
    known: Collection[tuple[int, int]],
    rare: Collection[FrameRef],
) -> NDArray[np.int64]:
    """Blocks of together at most ``max_frames`` frames, and at least two blocks, in their order."""
    rare_blocks = {(ref.simulation, ref.segment, ref.frame // size) for ref in rare}
    keys = [(segments[place].simulation, segments[place].segment) for place in blocks.segment.tolist()]
    is_rare = np.asarray(
        [(*key, number) in rare_blocks for key, number in zip(keys, blocks.within.tolist(), strict=True)]
    )
    known = set(known)
    is_new = np.asarray([key not in known for key in keys])
    order = generator.permutation(len(keys))
    taken = np.zeros(len(keys), dtype=bool)
    left = max_frames
    for is_of_kind, room in (
        (is_rare, max_frames // _SHARES),
        (is_new, max_frames // _SHARES),
        (~is_new, max_frames),
        # Few old ones: whatever there is.
        (np.ones_like(is_new), max_frames),
    ):
        candidates = order[(is_of_kind & ~taken)[order]]
        fitting = candidates[np.cumsum(blocks.length[candidates]) <= min(room, left)]
        taken[fitting] = True
        left -= int(blocks.length[fitting].sum())
    rest = order[~taken[order]]
    taken[rest[: max(0, 2 - int(taken.sum()))]] = True
    return np.flatnonzero(taken)


def draw_numbers(blocks: Blocks, segments: Sequence[SegmentKey], seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each block, of its simulation, segment and place and the seed alone.

    The mixing is that of SplitMix64 (Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195).
    """
    simulation = np.asarray([key.simulation for key in segments], dtype=np.uint64)[blocks.segment]
    segment = np.asarray([key.segment for key in segments], dtype=np.uint64)[blocks.segment]
    state = np.full(len(blocks.first), seed, dtype=np.uint64)
    for part in (simulation, segment, blocks.within.astype(np.uint64)):
        state = _mix(state ^ part)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def average_blocks(values: NDArray[np.floating], block: NDArray[np.integer]) -> BlockMean:
    """Mean of values of frames, with the standard error that the means of their blocks give.

    Parameters
    ----------
    values : array, shape (n_frames,)
    block : array of int, shape (n_frames,)
        Number of each frame's block, from 0.
    """
    mean = float(np.mean(values))
    counts = np.bincount(block)
    n_blocks = len(counts)
    if n_blocks < 2:
        return BlockMean(mean, None)
    # Blocks of different length weigh by their frames.
    deviations = np.bincount(block, weights=values - mean) / np.mean(counts)
    return BlockMean(mean, float(np.sqrt(np.sum(deviations**2) / (n_blocks * (n_blocks - 1)))))
