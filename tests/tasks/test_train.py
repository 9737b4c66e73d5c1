"""The train task: what it publishes, and that all latent sizes of an iteration are judged on the same frames."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from conftest import learned

from entk_app import cvae
from entk_app.errors import Interrupted
from entk_app.frames import read_embeddings, read_frames
from entk_app.records import ModelRecord, TrainTask, read_record
from entk_app.tasks import run_task


def test_a_model_is_published_whole(tiny_campaign):
    paths = tiny_campaign.layout.model(learned(1), 3)
    assert sorted(path.name for path in paths.folder.iterdir()) == [
        "decoder.keras", "embeddings.h5", "encoder.keras", "history.csv", "model.json",
    ]  # fmt: skip
    record = read_record(ModelRecord, paths.record)
    with paths.history.open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == record.epochs
    best = rows[record.best_epoch - 1]
    assert float(best["held_out_reconstruction"]) == record.held_out_reconstruction
    assert float(best["held_out_loss"]) == min(float(row["held_out_loss"]) for row in rows)


def test_the_embeddings_are_the_encoder_s_of_every_frame(tiny_campaign):
    layout = tiny_campaign.layout
    order = read_record(TrainTask, layout.model(learned(2), 4).task)
    frames = read_frames(layout, order.segments)
    kept = read_embeddings(layout.model(learned(2), 4).embeddings, order.segments)
    latent = np.concatenate([kept[key] for key in order.segments])
    expected = cvae.encode(cvae.load_encoder(layout.model(learned(2), 4).encoder), frames.packed, frames.n_residues)
    assert latent.shape == (sum(key.n_frames for key in order.segments), 4)
    np.testing.assert_allclose(latent, expected, atol=1e-5)


def test_latent_sizes_of_an_iteration_hold_the_same_number_of_frames_out(tiny_campaign):
    records = [read_record(ModelRecord, tiny_campaign.layout.model(learned(3), dim).record) for dim in (3, 4)]
    assert len({(record.n_train_frames, record.n_held_out_frames) for record in records}) == 1


def test_a_stop_request_ends_a_training_without_a_model(tiny_campaign, tmp_path):
    import shutil

    from entk_app.layout import RunLayout

    copy = RunLayout(tmp_path / "copy")
    shutil.copytree(tiny_campaign.layout.root, copy.root)
    shutil.rmtree(copy.model(learned(1), 3).folder)
    copy.stop_request.touch()
    with pytest.raises(Interrupted):
        run_task("train", copy.root, copy.model(learned(1), 3).task)
    assert not copy.model(learned(1), 3).folder.exists()
