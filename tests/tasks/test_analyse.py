"""The analyse task's parts: which models, which frames, one union."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from entk_app.errors import DataError
from entk_app.frames import FrameIndex, read_embeddings, read_frames
from entk_app.layout import RunLayout
from entk_app.outliers import OutlierSet
from entk_app.placement import take_place
from entk_app.records import AnalyseTask, AnalysisRecord, FrameRef, ModelRecord, ModelRef, read_record
from entk_app.tasks.analyse import choose_best, choose_models, encode_frames, join_outliers
from entk_app.tasks.analyse import run as run_analysis


def model(latent_dim, loss):
    return ModelRecord(
        iteration=2, latent_dim=latent_dim, architecture="fast", n_residues=10, n_parameters=1, n_train_frames=8,
        n_held_out_frames=2, batch_size=4, epochs=3, best_epoch=2, held_out_reconstruction=loss, held_out_loss=loss + 1,
        train_loss=loss, seconds_load=0.1, seconds_train=1.0, seconds_per_epoch=0.3, inference_ms_per_frame=None,
        platform="CPU", device=None, seed=1, unix_start=0.0, unix_end=1.0,
    )  # fmt: skip


def ref(simulation, segment, frame):
    return FrameRef(simulation=simulation, segment=segment, frame=frame)


REFS = {0: ref(0, 0, 9), 1: ref(0, 1, 0), 2: ref(5, 0, 0), 3: ref(5, 0, 1)}
RMSD = dict(zip(REFS.values(), (3.0, 1.0, 2.0, 5.0), strict=True))


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
    joined = join_outliers([three, four, none], REFS, RMSD, {0: 1, 2: None})
    assert [o.region for o in joined] == [None, 1]
    assert [(o.frame.key, o.rmsd_angstrom) for o in joined] == [((5, 0, 0), 2.0), ((0, 0, 9), 3.0)]
    assert [f.latent_dim for f in joined[1].found_by] == [3, 4]
    assert joined[1].isolation == 3.0


def test_without_a_native_structure_the_most_isolated_comes_first():
    found = (ModelRef(iteration=1, latent_dim=3), OutlierSet(np.array([1, 3]), np.array([1.5, 4.0]), 1.0))
    joined = join_outliers([found], REFS, dict.fromkeys(RMSD), {1: 0, 3: 0})
    assert [o.frame.key for o in joined] == [(5, 0, 1), (0, 1, 0)]


@pytest.fixture
def run(tiny_campaign, tmp_path):
    """A copy: what is encoded is kept, and other tests look at the campaign too."""
    layout = RunLayout(tmp_path / "run")
    shutil.copytree(tiny_campaign.layout.root, layout.root)
    return layout


@pytest.fixture
def asked(monkeypatch):
    """Frames that a model is asked for, call by call."""
    from entk_app import cvae

    counts, real = [], cvae.encode

    def encode(encoder, packed, n_residues):
        counts.append(len(packed))
        return real(encoder, packed, n_residues)

    monkeypatch.setattr(cvae, "encode", encode)
    return counts


def order(keys, *models):
    return AnalyseTask(iteration=3, models=models, segments=tuple(keys), cores=1, gpus=0, allow_cpu=True)


def test_a_model_is_asked_only_for_segments_that_it_has_not_encoded(tiny_campaign, run, asked):
    from entk_app import cvae

    read = []

    def read_maps(keys):
        read.extend(keys)
        return read_frames(run, keys)

    keys = tiny_campaign.results.list_segments()
    model = ModelRef(iteration=1, latent_dim=3)  # trained on the first iteration's segments only
    new = [key for key in keys if key.simulation >= 3 or key.segment > 0]
    record = read_record(ModelRecord, run.model(1, 3).record)
    first, met = encode_frames(run, model, order(keys, model), read_maps, record)
    assert asked == [sum(key.n_frames for key in new)]
    assert read == new  # nor are the maps of the others read
    assert met.n_frames == asked[0]  # all that it was not trained on
    again, met = encode_frames(run, model, order(keys, model), read_maps, record)
    assert len(asked) == 1 and met is None
    np.testing.assert_array_equal(first, again)
    encoder, everything = cvae.load_encoder(run.model(1, 3).encoder), read_frames(run, keys)
    np.testing.assert_allclose(first, cvae.encode(encoder, everything.packed, everything.n_residues), atol=1e-5)


def test_the_task_asks_no_model_twice_and_finds_the_same(tiny_campaign, run, asked):
    """Whatever was kept: all, nothing, or something damaged."""
    keys = tiny_campaign.results.list_segments()
    path, last = run.analysis(3), tiny_campaign.layout.analysis(3)
    expected = read_record(AnalysisRecord, last)
    embeddings = [run.model(3, dim).embeddings for dim in (3, 4)]
    for prepare, n_calls in (
        (lambda: None, 0),
        (lambda: [file.unlink() for file in embeddings], 2),
        (lambda: None, 0),
        (lambda: os.truncate(embeddings[1], 300), 1),
    ):
        prepare()
        path.unlink()
        asked.clear()
        run_analysis(run, run.analysis_task(3), take_place())
        assert len(asked) == n_calls
        record = read_record(AnalysisRecord, path)
        assert [o.frame for o in record.outliers] == [o.frame for o in expected.outliers]
        assert [o.rmsd_angstrom for o in record.outliers] == [o.rmsd_angstrom for o in expected.outliers]
        assert record.min_rmsd_angstrom == expected.min_rmsd_angstrom == tiny_campaign.summarise().min_rmsd_angstrom
        assert all(len(read_embeddings(file)) == len(keys) for file in embeddings)


def test_a_row_is_the_frame_that_stands_there(tiny_campaign):
    keys = tiny_campaign.results.list_segments()
    index, frames = FrameIndex(keys), read_frames(tiny_campaign.layout, keys)
    assert [index.ref(row) for row in range(len(index))] == [frames.ref(row) for row in range(len(frames))]
    assert len(index) == len(frames)
