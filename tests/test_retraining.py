"""When models train: at first, with growth, with drift; and not otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from entk_app import cvae, geometry
from entk_app.records import AnalysisRecord, ModelOutliers, ModelRecord, ModelRef, NewFrames, SegmentKey
from entk_app.retraining import compute_drift, explain_training
from entk_app.settings import TrainSettings, build_settings, read_preset
from entk_app.training_set import average_blocks, choose_training_set, list_blocks

N_RESIDUES = 12


def settings(*assignments):
    return build_settings(read_preset("villin-quick")[1], assignments=["train.latent_dims=[3,4]", *assignments])


def model(latent_dim, iteration=1, n_frames=1000, loss=50.0, error=1.0):
    return ModelRecord(
        iteration=iteration, latent_dim=latent_dim, architecture="fast", n_residues=10, n_parameters=1,
        n_train_frames=300, n_held_out_frames=100, n_frames=n_frames, batch_size=4, epochs=3, best_epoch=2,
        held_out_reconstruction=loss, held_out_standard_error=error, held_out_loss=loss + 1, train_loss=loss,
        seconds_load=0.1, seconds_train=1.0, seconds_per_epoch=0.3, inference_ms_per_frame=None, platform="CPU",
        device=None, seed=1, unix_start=0.0, unix_end=1.0,
    )  # fmt: skip


def analysis(iteration=1, **losses):
    """What each latent size made of new frames: loss, standard error, blocks."""
    return AnalysisRecord(
        iteration=iteration, best_model=ModelRef(iteration=1, latent_dim=3), outliers=(), n_frames=1000,
        min_rmsd_angstrom=3.0, seconds_encode=0.1, seconds_outliers=0.1, unix_start=0.0, unix_end=1.0,
        models=tuple(
            ModelOutliers(
                model=ModelRef(iteration=1, latent_dim=int(name[1:])), eps=0.3, min_samples=10, n_frames=1000,
                n_outliers=3, new_frames=None if new is None else
                NewFrames(n_frames=500, n_blocks=new[2], reconstruction=new[0], standard_error=new[1]),
            )
            for name, new in losses.items()
        ),
    )  # fmt: skip


BOTH = {3: model(3), 4: model(4)}


@pytest.mark.parametrize(
    ("models", "newest", "n_frames", "assignments", "words"),
    [
        ({}, None, 40, (), "no model of latent size 3, 4 yet"),
        ({3: model(3)}, None, 1000, (), "no model of latent size 4 yet"),
        (BOTH, None, 1499, (), None),
        (BOTH, None, 1500, (), "1500 frames, 1.50 times"),
        (BOTH, None, 1499, ("train.retrain_growth=1.2",), "1499 frames, 1.50 times"),
        (BOTH, None, 1001, ("train.retrain=always",), "in every iteration"),
        ({3: model(3, iteration=2), 4: model(4)}, None, 1000, (), "not all models are of the same iteration"),
        # Of 50 held out: 60 is 20 % worse, 65 is 30 %.
        (BOTH, analysis(d3=(60.0, 0.1, 40), d4=(50.0, 0.1, 40)), 1100, (), None),
        (BOTH, analysis(d3=(75.0, 0.1, 40), d4=(50.0, 0.1, 40)), 1100, (), "50% worse .* latent size 3"),
        (BOTH, analysis(d3=(50.0, 0.1, 40), d4=(75.0, 0.1, 40)), 1100, (), "50% worse .* latent size 4"),
        # As much worse, and as likely by chance.
        (BOTH, analysis(d3=(75.0, 10.0, 40), d4=(50.0, 0.1, 40)), 1100, (), None),
        (BOTH, analysis(d3=(75.0, 1.0, 2), d4=(50.0, 0.1, 40)), 1100, (), None),
        (BOTH, analysis(d3=(75.0, None, 1), d4=(50.0, 0.1, 40)), 1100, (), None),
        (BOTH, analysis(d3=(56.0, 0.1, 40)), 1100, ("train.retrain_drift=0.05",), "12% worse"),
        (BOTH, analysis(d3=None, d4=None), 1100, (), None),
        # The models that drifted have been replaced since.
        (
            {3: model(3, iteration=2), 4: model(4, iteration=2)},
            analysis(d3=(75.0, 0.1, 40), d4=(75.0, 0.1, 40)), 1100, (), None,
        ),
        ({}, None, 1100, ("steering.method=random",), None),
    ],
)  # fmt: skip
def test_the_rule(models, newest, n_frames, assignments, words):
    import re

    said = explain_training(models, newest, n_frames, settings(*assignments))
    assert (said is None) == (words is None), said
    assert words is None or re.search(words, said)


def test_the_bound_of_a_drift_is_students():
    new = NewFrames(n_frames=500, n_blocks=11, reconstruction=75.0, standard_error=2.0)
    drift = compute_drift(new, model(3, loss=50.0, error=1.0))
    assert drift.share == pytest.approx(0.5)
    # t of 10 degrees of freedom at 97.5 %: 2.228.
    assert drift.at_least == pytest.approx(0.5 - 2.228 * math.hypot(2.0, 1.5 * 1.0) / 50.0, abs=1e-4)
    # An older campaign's model has no standard error.
    assert compute_drift(new, model(3, loss=50.0, error=None)).at_least > drift.at_least
    alone = NewFrames(n_frames=20, n_blocks=1, reconstruction=75.0, standard_error=None)
    assert compute_drift(alone, model(3)).at_least == -math.inf


def make_maps(generator, states, n_segments, n_frames=60):
    """Segments that each dwell in one state after the other, with noise: frames that follow one another are alike."""
    maps = []
    for _ in range(n_segments):
        which = np.repeat(generator.integers(len(states), size=n_frames // 10), 10)
        maps.append(states[which] ^ (generator.random((n_frames, states.shape[1])) < 0.03))
    return geometry.pack_contacts(np.concatenate(maps))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_rule_fires_on_drifted_data_and_not_on_stationary(seed):
    """A real model: new frames of the states that it knows, then of states that it has never seen."""
    generator = np.random.default_rng(seed)
    states = generator.random((8, geometry.count_pairs(N_RESIDUES))) < 0.4
    train = TrainSettings(epochs=25, block_frames=10, patience=5)
    segments = [SegmentKey(simulation=n, segment=0, n_frames=60) for n in range(12)]
    packed = make_maps(generator, states[:4], len(segments))
    chosen = choose_training_set(segments, train, seed, generator)
    cvae.configure(1, seed=seed)
    training = cvae.train_model(packed, N_RESIDUES, chosen.train, chosen.held_out, train, 3)

    def judge(maps, block):
        return average_blocks(cvae.compute_reconstruction(training.model, maps, N_RESIDUES), block)

    held_out = judge(packed[chosen.held_out], chosen.held_out_block)
    record = model(3, loss=held_out.mean, error=held_out.standard_error)
    more = segments[:6]
    blocks = list_blocks(more, chosen.block_frames)
    block = np.repeat(np.arange(len(blocks.first)), blocks.length)
    said = {}
    for name, known in (("stationary", states[:4]), ("drifted", states)):
        mean = judge(make_maps(generator, known, len(more)), block)
        new = (mean.mean, mean.standard_error, len(blocks.first))
        found = analysis(d3=new)
        said[name] = explain_training({3: record}, found, 1100, settings("train.latent_dims=[3]"))
    assert said["stationary"] is None
    assert "worse than held-out ones" in said["drifted"]
