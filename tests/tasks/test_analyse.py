"""The analyse task's parts: which models, which frames, one union."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from entk_app.errors import DataError
from entk_app.frames import Frames
from entk_app.layout import RunLayout
from entk_app.outliers import OutlierSet
from entk_app.records import ModelRecord, ModelRef
from entk_app.tasks.analyse import choose_best, choose_models, encode_frames, join_outliers


def model(latent_dim, loss):
    return ModelRecord(
        iteration=2, latent_dim=latent_dim, architecture="fast", n_residues=10, n_parameters=1, n_train_frames=8,
        n_held_out_frames=2, batch_size=4, epochs=3, best_epoch=2, held_out_reconstruction=loss, held_out_loss=loss + 1,
        train_loss=loss, seconds_load=0.1, seconds_train=1.0, seconds_per_epoch=0.3, inference_ms_per_frame=None,
        platform="CPU", device=None, seed=1, unix_start=0.0, unix_end=1.0,
    )  # fmt: skip


def frames(rmsd=(3.0, 1.0, 2.0, 5.0)):
    return Frames(
        n_residues=4, simulation=np.array([0, 0, 5, 5]), segment=np.array([0, 1, 0, 0]), frame=np.array([9, 0, 0, 1]),
        packed=np.zeros((4, 1), np.uint8), rmsd_angstrom=None if rmsd is None else np.array(rmsd),
    )  # fmt: skip


def test_the_best_model_reconstructs_held_out_maps_best():
    records = [model(3, 20.0), model(4, 15.0), model(5, 15.0), model(6, 16.0)]
    assert choose_best(records) == ModelRef(iteration=2, latent_dim=4)
    assert [ref.latent_dim for ref in choose_models(records, "all")] == [3, 4, 5, 6]
    assert [ref.latent_dim for ref in choose_models(records, "best")] == [4]
    assert [ref.latent_dim for ref in choose_models(records, 6)] == [6]


def test_no_model_is_an_error():
    with pytest.raises(DataError, match="no trained model"):
        choose_best([])
    with pytest.raises(DataError, match="no model of that latent size"):
        choose_models([model(3, 1.0)], 7)


def test_the_union_names_each_frame_once_with_every_finding():
    three = (ModelRef(iteration=1, latent_dim=3), OutlierSet(np.array([2, 0]), np.array([4.0, 2.0]), 1.0))
    four = (ModelRef(iteration=1, latent_dim=4), OutlierSet(np.array([0]), np.array([9.0]), 3.0))
    none = (ModelRef(iteration=1, latent_dim=5), OutlierSet(np.empty(0, int), np.empty(0), None))
    joined = join_outliers([three, four, none], frames())
    assert [(o.frame.key, o.rmsd_angstrom) for o in joined] == [((5, 0, 0), 2.0), ((0, 0, 9), 3.0)]
    assert [f.latent_dim for f in joined[1].found_by] == [3, 4]
    assert joined[1].isolation == 3.0


def test_without_a_native_structure_the_most_isolated_comes_first():
    found = (ModelRef(iteration=1, latent_dim=3), OutlierSet(np.array([1, 3]), np.array([1.5, 4.0]), 1.0))
    joined = join_outliers([found], frames(rmsd=None))
    assert [o.frame.key for o in joined] == [(5, 0, 1), (0, 1, 0)]


def test_a_model_is_asked_only_for_segments_that_it_has_not_encoded(tiny_campaign, tmp_path, monkeypatch):
    from entk_app import cvae
    from entk_app.frames import read_frames

    # A copy: what is encoded is kept, and other tests look at the campaign too.
    layout = RunLayout(tmp_path / "run")
    shutil.copytree(tiny_campaign.layout.root, layout.root)
    keys = tiny_campaign.results.list_segments()
    everything = read_frames(layout, keys)
    asked = []
    real = cvae.encode

    def encode(encoder, packed, n_residues):
        asked.append(len(packed))
        return real(encoder, packed, n_residues)

    monkeypatch.setattr(cvae, "encode", encode)
    ref = ModelRef(iteration=1, latent_dim=3)  # trained on the first iteration's segments only
    known = sum(key.n_frames for key in keys if (key.simulation < 3 and key.segment == 0))
    first = encode_frames(layout, ref, everything, 1)
    assert asked == [len(everything) - known]
    again = encode_frames(layout, ref, everything, 1)
    assert asked == [len(everything) - known]
    np.testing.assert_array_equal(first, again)
    encoder = cvae.load_encoder(layout.model(1, 3).encoder)
    np.testing.assert_allclose(first, real(encoder, everything.packed, everything.n_residues), atol=1e-5)
