"""Analyse task: encode the frames, find each model's outliers, and join them, lowest RMSD first."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from entk_app.errors import DataError, RecordError
from entk_app.frames import (
    FrameIndex,
    Frames,
    read_embeddings,
    read_frames,
    read_numbers,
    read_rmsd,
    split_rows,
    write_embeddings,
)
from entk_app.integrity import check_file, read_model
from entk_app.layout import RunLayout
from entk_app.outliers import OutlierSet, find_outliers, group_regions
from entk_app.records import (
    AnalyseTask,
    AnalysisRecord,
    Finding,
    FrameRef,
    ModelOutliers,
    ModelRecord,
    ModelRef,
    NewFrames,
    Outlier,
    Placement,
    SegmentKey,
    TrainTask,
    order_by_rmsd,
    read_record,
    write_record,
)
from entk_app.sanity import find_problems
from entk_app.settings import Settings, build_settings, read_config
from entk_app.tasks import hang
from entk_app.training_set import average_blocks, list_blocks
from entk_app.trajectory import read_positions

logger = logging.getLogger(__name__)

#: Outliers within so many eps of one another are of one region: what is between two clusters, not a cluster.
_REGION_EPS = 2.0

#: New frames whose reconstruction is looked at, of each model: enough for a mean, whatever the length of the campaign.
_MAX_NEW = 4096


def run(layout: RunLayout, order: Path, placement: Placement) -> None:
    """Analyse what the order names and publish the record."""
    unix_start = time.time()
    task = read_record(AnalyseTask, order)
    campaign = build_settings(read_config(layout.settings))
    index = FrameIndex(task.segments)
    if not len(index):
        raise DataError("there are no frames to analyse")
    if not campaign.learns:
        _publish_choice(layout, task, campaign, index, placement, unix_start)
        return
    settings = campaign.analyse
    records = {ref: _read_model(layout, ref) for ref in task.models}
    best = choose_best(list(records.values()))
    # Models that lack the same segments share one reading of their maps.
    read_maps = lru_cache(maxsize=1)(partial(read_frames, layout))
    seconds_encode = seconds_outliers = 0.0
    found: list[tuple[ModelRef, OutlierSet]] = []
    new_frames: dict[ModelRef, NewFrames | None] = {}
    map_latent, map_eps = None, None
    for ref in choose_models(list(records.values()), settings.models):
        hang.beat()
        began = time.monotonic()
        latent, new_frames[ref] = encode_frames(layout, ref, task, read_maps, records[ref])
        seconds_encode += time.monotonic() - began
        hang.beat()
        began = time.monotonic()
        found.append((ref, find_outliers(latent, settings.max_outliers, settings.min_samples, workers=task.cores)))
        seconds_outliers += time.monotonic() - began
        if map_latent is None or ref == best:
            map_latent, map_eps = latent, found[-1][1].eps
    del read_maps
    refs = {row: index.ref(row) for _, result in found for row in result.rows.tolist()}
    regions = find_regions(map_latent, map_eps, refs)
    outliers = join_outliers(found, refs, read_rmsd(layout, refs.values()), regions)
    outliers = judge_outliers(layout, add_frames(layout, outliers, task.best))
    write_record(
        layout.analysis(task.iteration),
        AnalysisRecord(
            iteration=task.iteration,
            best_model=best,
            models=tuple(
                ModelOutliers(
                    model=ref,
                    eps=result.eps,
                    min_samples=settings.min_samples,
                    n_frames=len(index),
                    n_outliers=len(result.rows),
                    new_frames=new_frames[ref],
                )
                for ref, result in found
            ),
            outliers=outliers,
            n_frames=len(index),
            min_rmsd_angstrom=task.min_rmsd_angstrom,
            seconds_encode=seconds_encode,
            seconds_outliers=seconds_outliers,
            placement=placement,
            unix_start=unix_start,
            unix_end=time.time(),
        ),
    )
    n_problems = sum(bool(outlier.problems) for outlier in outliers)
    logger.info("%d outliers among %d frames, %d of them broken", len(outliers), len(index), n_problems)


def _publish_choice(
    layout: RunLayout, task: AnalyseTask, campaign: Settings, index: FrameIndex, placement: Placement, unix_start: float
) -> None:
    """Without learning: frames that stand for outliers, so that restarts follow the same rules."""
    began = time.monotonic()
    refs: Sequence[FrameRef] = task.best
    if campaign.steering.method == "random":
        generator = np.random.default_rng([campaign.seed, task.iteration, 0x72616E64])
        size = min(len(index), campaign.analyse.max_outliers)
        refs = [index.ref(row) for row in generator.choice(len(index), size=size, replace=False).tolist()]
    outliers = add_frames(layout, (), refs)
    write_record(
        layout.analysis(task.iteration),
        AnalysisRecord(
            iteration=task.iteration,
            best_model=None,
            models=(),
            outliers=judge_outliers(layout, outliers),
            n_frames=len(index),
            min_rmsd_angstrom=task.min_rmsd_angstrom,
            seconds_encode=0.0,
            seconds_outliers=time.monotonic() - began,
            placement=placement,
            unix_start=unix_start,
            unix_end=time.time(),
        ),
    )
    logger.info("%d of %d frames stand for outliers (%s)", len(outliers), len(index), campaign.steering.method)


def add_frames(layout: RunLayout, outliers: Sequence[Outlier], refs: Iterable[FrameRef]) -> tuple[Outlier, ...]:
    """Outliers and further frames, each once, lowest RMSD first.

    Raises
    ------
    DamagedError
        A file is not the one that was published.
    """
    found = {outlier.frame for outlier in outliers}
    rmsd = read_rmsd(layout, [ref for ref in refs if ref not in found])
    return order_by_rmsd([*outliers, *(Outlier(frame=ref, rmsd_angstrom=rmsd[ref], found_by=()) for ref in rmsd)])


def find_regions(
    latent: NDArray[np.floating] | None, eps: float | None, rows: Iterable[int]
) -> dict[int, int | None]:
    """Which outliers lie near one another in the latent space of one model: the number of its region by row."""
    wanted = sorted(rows)
    if latent is None or eps is None or not wanted:
        return dict.fromkeys(wanted)
    return dict(zip(wanted, group_regions(latent[wanted], _REGION_EPS * eps).tolist(), strict=True))


def _read_model(layout: RunLayout, ref: ModelRef) -> ModelRecord:
    paths = layout.model(ref.iteration, ref.latent_dim)
    record = read_model(paths)
    for path in (paths.encoder, paths.decoder):
        check_file(path, record.files)
    return record


def choose_best(records: Sequence[ModelRecord]) -> ModelRef:
    """The model that reconstructs held-out maps best; the smaller latent size among equals.

    Raises
    ------
    DataError
        There is no model.
    """
    if not records:
        raise DataError("there is no trained model to analyse with")
    # Losses of another iteration are of other held-out frames.
    newest = max(record.iteration for record in records)
    best = min(
        (record for record in records if record.iteration == newest),
        key=lambda record: (record.held_out_reconstruction, record.latent_dim),
    )
    return ModelRef(iteration=best.iteration, latent_dim=best.latent_dim)


def choose_models(records: Sequence[ModelRecord], which: Literal["all", "best"] | int) -> list[ModelRef]:
    """The models whose outliers are taken: all, the best, or that of one latent size."""
    refs = [ModelRef(iteration=record.iteration, latent_dim=record.latent_dim) for record in records]
    if which == "all":
        return refs
    if which == "best":
        return [choose_best(records)]
    chosen = [ref for ref in refs if ref.latent_dim == which]
    if not chosen:
        raise DataError(f"analyse.models = {which}: there is no model of that latent size")
    return chosen


def encode_frames(
    layout: RunLayout,
    ref: ModelRef,
    task: AnalyseTask,
    read_maps: Callable[[tuple[SegmentKey, ...]], Frames],
    record: ModelRecord,
) -> tuple[NDArray[np.float32], NewFrames | None]:
    """Latent coordinates of all frames of a task, shape (n_frames, latent_dim), and how the model takes the new ones.

    A model is asked once for a segment: what it said is kept beside it, and only the maps of the rest are read.
    """
    paths = layout.model(ref.iteration, ref.latent_dim)
    known = read_embeddings(paths.embeddings, task.segments)
    missing = tuple(key for key in task.segments if key not in known)
    new_frames = None
    if missing:
        from entk_app import cvae

        cvae.configure(task.cores, seed=0, gpus=task.gpus, allow_cpu=task.allow_cpu)
        frames = read_maps(missing)
        model = cvae.load_model(paths.encoder, paths.decoder)
        latent = cvae.encode(model.encoder, frames.packed, frames.n_residues)
        new = split_rows(latent, missing)
        write_embeddings(paths.embeddings, new)
        known |= new
        rows, block = _sample_new(layout, ref, record, missing)
        if len(rows):
            losses = cvae.compute_reconstruction(model, frames.packed[rows], frames.n_residues)
            mean = average_blocks(losses, block)
            new_frames = NewFrames(
                n_frames=len(rows),
                n_blocks=int(block[-1]) + 1,
                reconstruction=mean.mean,
                standard_error=mean.standard_error,
            )
    return np.concatenate([known[key] for key in task.segments]), new_frames


def _sample_new(
    layout: RunLayout, ref: ModelRef, record: ModelRecord, missing: tuple[SegmentKey, ...]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of blocks, evenly spread, of the segments that a model could not be trained on; and each row's block."""
    try:
        trained = set(read_record(TrainTask, layout.model(ref.iteration, ref.latent_dim).task).segments)
    except RecordError as error:
        logger.warning("which frames are new to the model is not known: %s", error)
        trained = set(missing)
    blocks = list_blocks(missing, record.block_frames or 1)
    is_new = np.asarray([key not in trained for key in missing])
    new = np.flatnonzero(is_new[blocks.segment])
    step = -(-int(blocks.length[new].sum()) // _MAX_NEW) or 1
    chosen = new[::step]
    return blocks.list_rows(chosen), np.repeat(np.arange(len(chosen)), blocks.length[chosen])


def join_outliers(
    found: Sequence[tuple[ModelRef, OutlierSet]],
    refs: Mapping[int, FrameRef],
    rmsd: Mapping[FrameRef, float | None],
    regions: Mapping[int, int | None],
) -> tuple[Outlier, ...]:
    """The union over the models, each frame once with every model's finding, lowest RMSD first.

    Parameters
    ----------
    found : sequence of (ModelRef, OutlierSet)
    refs : mapping
        Which frame a row is.
    rmsd : mapping
        Of each of these frames, ångström; None where there is no native structure.
    regions : mapping
        From :func:`find_regions`.
    """
    by_row: dict[int, list[Finding]] = {}
    for ref, result in found:
        if result.eps is None:
            continue
        for row, distance in zip(result.rows.tolist(), result.distance.tolist(), strict=True):
            finding = Finding(latent_dim=ref.latent_dim, eps=result.eps, distance=distance)
            by_row.setdefault(row, []).append(finding)
    return order_by_rmsd(
        Outlier(frame=refs[row], rmsd_angstrom=rmsd[refs[row]], found_by=tuple(findings), region=regions[row])
        for row, findings in by_row.items()
    )


def judge_outliers(layout: RunLayout, outliers: Sequence[Outlier]) -> tuple[Outlier, ...]:
    """The outliers with their scores, and with what keeps a simulation from starting there.

    Raises
    ------
    DamagedError
        A file is not the one that was published.
    """
    if not outliers:
        return ()
    from entk_app.systems.anatomy import describe_anatomy
    from entk_app.systems.build import load_system

    loaded = load_system(layout)
    anatomy, refs = describe_anatomy(loaded), [outlier.frame for outlier in outliers]
    scores = read_numbers(layout, refs, "score") if loaded.record.score is not None else {}
    problems = {}
    for ref, positions in read_positions(layout, refs):
        hang.beat()
        problems[ref] = find_problems(positions, anatomy)
    return tuple(
        outlier.model_copy(update={"score": scores.get(outlier.frame), "problems": problems[outlier.frame]})
        for outlier in outliers
    )
