"""Train task: one CVAE of one latent size on the contact maps of all segments."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np

from entk_app import cvae
from entk_app.errors import RecordError
from entk_app.frames import Frames, read_frames, split_rows, write_embeddings
from entk_app.integrity import DamagedError, check_file, digest_files, read_model
from entk_app.layout import ModelPaths, RunLayout
from entk_app.publish import Workplace
from entk_app.records import ModelRecord, ModelRef, Placement, TrainTask, read_record, write_record
from entk_app.settings import Settings, build_settings, read_config
from entk_app.tasks import Stopper, hang
from entk_app.training_set import TrainingSet, average_blocks, choose_training_set

logger = logging.getLogger(__name__)


def run(layout: RunLayout, order: Path, placement: Placement) -> None:
    """Train the model that the order asks for and publish its folder."""
    unix_start = time.time()
    task = read_record(TrainTask, order)
    campaign = build_settings(read_config(layout.settings))
    settings = campaign.train
    platform = cvae.configure(task.cores, task.seed, task.gpus, task.allow_cpu)
    speedups = cvae.choose_speedups(platform, settings.precision, cvae.find_capability())
    frames = read_frames(layout, task.segments)
    before = read_before(layout, task.previous)
    chosen = choose_rows(layout, task, campaign)
    start = load_start(layout, before, campaign, frames.n_residues)
    stopper = Stopper(layout)

    def should_stop() -> bool:
        hang.beat()
        return stopper() is not None

    seconds_load = time.time() - unix_start
    training = cvae.train_model(
        frames.packed,
        frames.n_residues,
        chosen.train,
        chosen.held_out,
        settings,
        task.latent_dim,
        should_stop=should_stop,
        speedups=speedups,
        start=start,
    )
    held_out = average_blocks(
        cvae.compute_reconstruction(training.model, frames.packed[chosen.held_out], frames.n_residues),
        chosen.held_out_block,
    )
    seconds_train = time.time() - unix_start - seconds_load
    paths = layout.model(task.iteration, task.latent_dim)
    place = Workplace(paths.folder, campaign.resource.node_local_path)
    work = ModelPaths(place.folder)
    cvae.save_model(training.model, work.encoder, work.decoder)
    cvae.write_history(work.history, training.history)
    inference_ms = None
    if task.encode_all:
        inference_ms = _encode_all(training.model.encoder, frames, work.embeddings)
    best = training.best
    write_record(
        work.record,
        ModelRecord(
            iteration=task.iteration,
            latent_dim=task.latent_dim,
            architecture=settings.architecture,
            n_residues=frames.n_residues,
            n_parameters=training.model.n_parameters,
            n_train_frames=len(chosen.train),
            n_held_out_frames=len(chosen.held_out),
            n_frames=len(frames),
            block_frames=chosen.block_frames,
            warm_start=None if start is None else task.previous,
            batch_size=training.batch_size,
            epochs=len(training.history),
            best_epoch=best.epoch,
            held_out_reconstruction=best.held_out_reconstruction,
            held_out_standard_error=held_out.standard_error,
            held_out_loss=best.held_out_loss,
            train_loss=best.train_loss,
            seconds_load=seconds_load,
            seconds_train=seconds_train,
            seconds_per_epoch=float(np.median([epoch.seconds for epoch in training.history])),
            inference_ms_per_frame=inference_ms,
            platform=platform,
            precision="mixed" if speedups.mixed else "float32",
            device=placement.device,
            placement=placement,
            seed=task.seed,
            unix_start=unix_start,
            unix_end=time.time(),
            files=digest_files((work.encoder, work.decoder, work.history)),
        ),
    )
    place.publish()
    logger.info(
        "latent %d: held-out reconstruction %.3f after %d epochs (best %d)",
        task.latent_dim,
        best.held_out_reconstruction,
        len(training.history),
        best.epoch,
    )


def read_before(layout: RunLayout, ref: ModelRef | None) -> ModelRecord | None:
    """The record of a model before, where there is one that is whole."""
    if ref is None:
        return None
    try:
        return read_model(layout.model(ref.iteration, ref.latent_dim))
    except DamagedError as error:
        logger.warning("the model before is not there to go on from: %s", error)
        return None


def choose_rows(layout: RunLayout, task: TrainTask, campaign: Settings) -> TrainingSet:
    """Rows to train on and rows held out: the same for every latent size of an iteration, whose losses are compared."""
    known: set[tuple[int, int]] = set()
    before = read_before(layout, task.newest)
    if task.newest is not None:
        try:
            earlier = read_record(TrainTask, layout.model(task.newest.iteration, task.newest.latent_dim).task)
            known = {(key.simulation, key.segment) for key in earlier.segments}
        except RecordError as error:
            logger.warning("which segments are new is not known: %s", error)
    return choose_training_set(
        task.segments,
        campaign.train,
        campaign.seed,
        np.random.default_rng([campaign.seed, task.iteration]),
        # Only a model that is warm must not meet what was held out before in other pieces.
        block_frames=before.block_frames if before is not None and campaign.train.warm_start else None,
        known=known,
        rare=task.rare,
    )


def load_start(
    layout: RunLayout, before: ModelRecord | None, campaign: Settings, n_residues: int
) -> cvae.Cvae | None:
    """The model whose weights the training begins with; None: it begins with random ones."""
    same = before is not None and (before.architecture, before.n_residues) == (campaign.train.architecture, n_residues)
    # One without block_frames is of a campaign that held out other blocks each time.
    if before is None or before.block_frames is None or not same or not campaign.train.warm_start:
        return None
    paths = layout.model(before.iteration, before.latent_dim)
    try:
        for path in (paths.encoder, paths.decoder):
            check_file(path, before.files)
    except DamagedError as error:
        logger.warning("the model before is not there to go on from: %s", error)
        return None
    return cvae.load_model(paths.encoder, paths.decoder)


def _encode_all(encoder: object, frames: Frames, path: Path) -> float:
    """Encode while TensorFlow and the maps are in memory: the analyse task then has nothing left to encode."""
    began = time.monotonic()
    latent = cvae.encode(encoder, frames.packed, frames.n_residues)
    seconds = time.monotonic() - began
    write_embeddings(path, split_rows(latent, frames.keys))
    return 1000.0 * seconds / len(frames)
