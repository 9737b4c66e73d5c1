"""Train task: one CVAE of one latent size on the contact maps of all segments."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np

from entk_app import cvae
from entk_app.frames import Frames, read_frames, split_rows, write_embeddings
from entk_app.integrity import digest_files
from entk_app.layout import ModelPaths, RunLayout
from entk_app.publish import Workplace
from entk_app.records import ModelRecord, Placement, TrainTask, read_record, write_record
from entk_app.settings import build_settings, read_config
from entk_app.tasks import Stopper, hang

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
    lengths = np.asarray([key.n_frames for key in task.segments])
    # The same split for every latent size of an iteration: their held-out losses are compared.
    generator = np.random.default_rng([campaign.seed, task.iteration])
    train_rows, held_out_rows = cvae.split_blocks(lengths, settings, generator)
    stopper = Stopper(layout)

    def should_stop() -> bool:
        hang.beat()
        return stopper() is not None

    seconds_load = time.time() - unix_start
    training = cvae.train_model(
        frames.packed,
        frames.n_residues,
        train_rows,
        held_out_rows,
        settings,
        task.latent_dim,
        should_stop=should_stop,
        speedups=speedups,
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
            n_train_frames=len(train_rows),
            n_held_out_frames=len(held_out_rows),
            batch_size=training.batch_size,
            epochs=len(training.history),
            best_epoch=best.epoch,
            held_out_reconstruction=best.held_out_reconstruction,
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


def _encode_all(encoder: object, frames: Frames, path: Path) -> float:
    """Encode while TensorFlow and the maps are in memory: the analyse task then has nothing left to encode."""
    began = time.monotonic()
    latent = cvae.encode(encoder, frames.packed, frames.n_residues)
    seconds = time.monotonic() - began
    write_embeddings(path, split_rows(latent, frames.keys))
    return 1000.0 * seconds / len(frames)
