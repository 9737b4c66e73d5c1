"""Analyse task: encode the frames, find each model's outliers, and join them, lowest RMSD first."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from entk_app.errors import DataError
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
from entk_app.outliers import OutlierSet, find_outliers
from entk_app.records import (
    AnalyseTask,
    AnalysisRecord,
    Finding,
    FrameRef,
    ModelOutliers,
    ModelRecord,
    ModelRef,
    Outlier,
    Placement,
    SegmentKey,
    order_by_rmsd,
    read_record,
    write_record,
)
from entk_app.sanity import find_problems
from entk_app.settings import build_settings, read_config
from entk_app.tasks import hang
from entk_app.trajectory import read_positions

logger = logging.getLogger(__name__)


def run(layout: RunLayout, order: Path, placement: Placement) -> None:
    """Analyse what the order names and publish the record."""
    unix_start = time.time()
    task = read_record(AnalyseTask, order)
    settings = build_settings(read_config(layout.settings)).analyse
    records = [_read_model(layout, ref) for ref in task.models]
    best = choose_best(records)
    index = FrameIndex(task.segments)
    if not len(index):
        raise DataError("there are no frames to analyse")
    # Models that lack the same segments share one reading of their maps.
    read_maps = lru_cache(maxsize=1)(partial(read_frames, layout))
    seconds_encode = seconds_outliers = 0.0
    found: list[tuple[ModelRef, OutlierSet]] = []
    for ref in choose_models(records, settings.models):
        hang.beat()
        began = time.monotonic()
        latent = encode_frames(layout, ref, task, read_maps)
        seconds_encode += time.monotonic() - began
        hang.beat()
        began = time.monotonic()
        found.append((ref, find_outliers(latent, settings.max_outliers, settings.min_samples, workers=task.cores)))
        seconds_outliers += time.monotonic() - began
    del read_maps
    refs = {row: index.ref(row) for _, result in found for row in result.rows.tolist()}
    outliers = judge_outliers(layout, join_outliers(found, refs, read_rmsd(layout, refs.values())))
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


def _read_model(layout: RunLayout, ref: ModelRef) -> ModelRecord:
    paths = layout.model(ref.iteration, ref.latent_dim)
    record = read_model(paths)
    check_file(paths.encoder, record.files)
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
) -> NDArray[np.float32]:
    """Latent coordinates of all frames of a task, shape (n_frames, latent_dim).

    A model is asked once for a segment: what it said is kept beside it, and only the maps of the rest are read.
    """
    paths = layout.model(ref.iteration, ref.latent_dim)
    known = read_embeddings(paths.embeddings, task.segments)
    missing = tuple(key for key in task.segments if key not in known)
    if missing:
        from entk_app import cvae

        cvae.configure(task.cores, seed=0, gpus=task.gpus, allow_cpu=task.allow_cpu)
        frames = read_maps(missing)
        latent = cvae.encode(cvae.load_encoder(paths.encoder), frames.packed, frames.n_residues)
        new = split_rows(latent, missing)
        write_embeddings(paths.embeddings, new)
        known |= new
    return np.concatenate([known[key] for key in task.segments])


def join_outliers(
    found: Sequence[tuple[ModelRef, OutlierSet]],
    refs: Mapping[int, FrameRef],
    rmsd: Mapping[FrameRef, float | None],
) -> tuple[Outlier, ...]:
    """The union over the models, each frame once with every model's finding, lowest RMSD first.

    Parameters
    ----------
    found : sequence of (ModelRef, OutlierSet)
    refs : mapping
        Which frame a row is.
    rmsd : mapping
        Of each of these frames, ångström; None where there is no native structure.
    """
    by_row: dict[int, list[Finding]] = {}
    for ref, result in found:
        if result.eps is None:
            continue
        for row, distance in zip(result.rows.tolist(), result.distance.tolist(), strict=True):
            finding = Finding(latent_dim=ref.latent_dim, eps=result.eps, distance=distance)
            by_row.setdefault(row, []).append(finding)
    return order_by_rmsd(
        Outlier(frame=refs[row], rmsd_angstrom=rmsd[refs[row]], found_by=tuple(findings))
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
