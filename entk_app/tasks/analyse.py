"""Analyse task: encode the frames, find each model's outliers, and join them, lowest RMSD first."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from entk_app.errors import DataError
from entk_app.frames import Frames, read_embeddings, read_frames, write_embeddings
from entk_app.integrity import check_file, read_model
from entk_app.layout import RunLayout
from entk_app.outliers import OutlierSet, find_outliers
from entk_app.records import (
    AnalyseTask,
    AnalysisRecord,
    Finding,
    ModelOutliers,
    ModelRecord,
    ModelRef,
    Outlier,
    Placement,
    order_by_rmsd,
    read_record,
    write_record,
)
from entk_app.settings import build_settings, read_config
from entk_app.tasks import hang

logger = logging.getLogger(__name__)


def run(layout: RunLayout, order: Path, placement: Placement) -> None:
    """Analyse what the order names and publish the record."""
    unix_start = time.time()
    task = read_record(AnalyseTask, order)
    settings = build_settings(read_config(layout.settings)).analyse
    records = [_read_model(layout, ref) for ref in task.models]
    best = choose_best(records)
    frames = read_frames(layout, task.segments)
    seconds_encode = seconds_outliers = 0.0
    found: list[tuple[ModelRef, OutlierSet]] = []
    for ref in choose_models(records, settings.models):
        hang.beat()
        began = time.monotonic()
        latent = encode_frames(layout, ref, frames, task.cores, task.gpus, task.allow_cpu)
        seconds_encode += time.monotonic() - began
        hang.beat()
        began = time.monotonic()
        found.append((ref, find_outliers(latent, settings.max_outliers, settings.min_samples, workers=task.cores)))
        seconds_outliers += time.monotonic() - began
    outliers = join_outliers(found, frames)
    rmsd = frames.rmsd_angstrom
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
                    n_frames=len(frames),
                    n_outliers=len(result.rows),
                )
                for ref, result in found
            ),
            outliers=outliers,
            n_frames=len(frames),
            min_rmsd_angstrom=None if rmsd is None else float(rmsd.min()),
            seconds_encode=seconds_encode,
            seconds_outliers=seconds_outliers,
            placement=placement,
            unix_start=unix_start,
            unix_end=time.time(),
        ),
    )
    logger.info("%d outliers among %d frames", len(outliers), len(frames))


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
    layout: RunLayout, ref: ModelRef, frames: Frames, cores: int, gpus: int = 0, allow_cpu: bool = True
) -> NDArray[np.float32]:
    """Latent coordinates of all frames, shape (n_frames, latent_dim); a model is asked once for a segment."""
    paths = layout.model(ref.iteration, ref.latent_dim)
    known = read_embeddings(paths.embeddings, frames.keys)
    missing = [key for key in frames.keys if key not in known]
    if missing:
        from entk_app import cvae

        cvae.configure(cores, seed=0, gpus=gpus, allow_cpu=allow_cpu)
        encoder = cvae.load_encoder(paths.encoder)
        starts = dict(zip(frames.keys, np.cumsum([0, *(key.n_frames for key in frames.keys)]), strict=False))
        rows = np.concatenate([np.arange(starts[key], starts[key] + key.n_frames) for key in missing])
        latent = cvae.encode(encoder, frames.packed[rows], frames.n_residues)
        ends = np.cumsum([key.n_frames for key in missing])[:-1]
        new = dict(zip(missing, np.split(latent, ends), strict=True))
        write_embeddings(paths.embeddings, new)
        known |= new
    return np.concatenate([known[key] for key in frames.keys])


def join_outliers(found: Sequence[tuple[ModelRef, OutlierSet]], frames: Frames) -> tuple[Outlier, ...]:
    """The union over the models, each frame once with every model's finding, lowest RMSD first."""
    by_row: dict[int, list[Finding]] = {}
    for ref, result in found:
        if result.eps is None:
            continue
        for row, distance in zip(result.rows.tolist(), result.distance.tolist(), strict=True):
            finding = Finding(latent_dim=ref.latent_dim, eps=result.eps, distance=distance)
            by_row.setdefault(row, []).append(finding)
    rmsd = frames.rmsd_angstrom
    return order_by_rmsd(
        Outlier(
            frame=frames.ref(row),
            rmsd_angstrom=None if rmsd is None else float(rmsd[row]),
            found_by=tuple(findings),
        )
        for row, findings in by_row.items()
    )
