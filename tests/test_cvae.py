"""The CVAE: what it reads, learns and keeps."""

from __future__ import annotations

import numpy as np
import pytest

from entk_app import cvae, geometry
from entk_app.errors import DeviceError, Interrupted
from entk_app.records import SegmentKey
from entk_app.settings import TrainSettings
from entk_app.training_set import choose_training_set

N_RESIDUES = 13


@pytest.fixture(autouse=True, scope="module")
def _configured():
    # TensorFlow takes its threads before anything else is asked of it.
    cvae.configure(1, seed=0)


def two_state_maps(n_frames, seed=0):
    """Contact maps of two states with noise: something that a latent space can tell apart."""
    generator = np.random.default_rng(seed)
    states = generator.random((2, geometry.count_pairs(N_RESIDUES))) < 0.4
    which = generator.integers(2, size=n_frames)
    flips = generator.random((n_frames, states.shape[1])) < 0.02
    return geometry.pack_contacts(states[which] ^ flips), which


def settings(**values):
    return TrainSettings(**{"epochs": 8, "block_frames": 10, "patience": None, **values})


def split(lengths):
    segments = [SegmentKey(simulation=n, segment=0, n_frames=length) for n, length in enumerate(lengths)]
    chosen = choose_training_set(segments, settings(), 1, np.random.default_rng(0))
    return chosen.train, chosen.held_out


@pytest.mark.parametrize("architecture", ["fast", "paper"])
@pytest.mark.parametrize("n_residues", [12, 13, 21, 35])
def test_models_take_and_give_maps_of_any_size(architecture, n_residues):
    model = cvae.build_model(architecture, n_residues, 4)
    maps = np.zeros((2, n_residues, n_residues, 1), np.float32)
    mean, log_variance = model.encoder(maps)
    assert mean.shape == log_variance.shape == (2, 4)
    assert model.decoder(mean).shape == maps.shape


def test_the_paper_s_architecture_is_the_paper_s():
    layers = cvae.build_model("paper", 28, 3).encoder.layers
    convolutions = [layer for layer in layers if type(layer).__name__ == "Conv2D"]
    assert [(c.filters, c.kernel_size, c.strides, c.padding) for c in convolutions] == [
        (64, (3, 3), (stride, stride), "same") for stride in (1, 2, 1, 1)
    ]
    assert [layer.units for layer in layers if type(layer).__name__ == "Dense"] == [128, 3, 3]


def test_unpacking_on_the_device_equals_numpy():
    packed, _ = two_state_maps(20)
    maps = cvae.make_unpacker(N_RESIDUES)(packed).numpy()[..., 0]
    np.testing.assert_array_equal(maps, geometry.unpack_contacts(packed, N_RESIDUES))


def test_training_learns_to_tell_states_apart_and_keeps_its_best_epoch():
    cvae.configure(1, seed=3)
    packed, which = two_state_maps(600)
    train, held_out = split([300, 300])
    training = cvae.train_model(packed, N_RESIDUES, train, held_out, settings(), 3)
    first, best = training.history[0], training.best
    assert best.held_out_reconstruction < 0.6 * first.held_out_reconstruction
    assert best.held_out_loss == min(epoch.held_out_loss for epoch in training.history)
    latent = cvae.encode(training.model.encoder, packed, N_RESIDUES)
    centres = np.array([latent[which == state].mean(axis=0) for state in (0, 1)])
    nearest = np.linalg.norm(latent[:, None] - centres, axis=-1).argmin(axis=1)
    assert (nearest == which).mean() > 0.95


def test_the_weights_kept_are_those_of_the_best_epoch():
    import tensorflow as tf

    cvae.configure(1, seed=5)
    packed, _ = two_state_maps(120)
    train, held_out = split([120])
    training = cvae.train_model(packed, N_RESIDUES, train, held_out, settings(epochs=12), 3)
    maps = cvae.make_unpacker(N_RESIDUES)(packed[held_out])
    mean, log_variance = training.model.encoder(maps)
    logits = training.model.decoder(mean)
    # Binary cross-entropy and KL by Keras' and the textbook's formulas, summed over pixels and latent dimensions.
    probability = np.clip(tf.sigmoid(logits).numpy().astype(np.float64), 1e-12, 1 - 1e-12)
    target = maps.numpy()
    reconstruction = -(target * np.log(probability) + (1 - target) * np.log(1 - probability)).sum(axis=(1, 2, 3))
    divergence = 0.5 * (mean.numpy() ** 2 + np.exp(log_variance) - 1 - log_variance.numpy()).sum(axis=1)
    assert training.best.held_out_reconstruction == pytest.approx(reconstruction.mean(), rel=1e-4)
    assert training.best.held_out_loss == pytest.approx((reconstruction + divergence).mean(), rel=1e-4)


def test_the_same_seed_gives_the_same_losses():
    losses = []
    for _ in range(2):
        cvae.configure(1, seed=11)
        packed, _ = two_state_maps(100)
        train, held_out = split([100])
        training = cvae.train_model(packed, N_RESIDUES, train, held_out, settings(epochs=2), 3)
        losses.append([epoch.held_out_loss for epoch in training.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_patience_stops_training_early():
    cvae.configure(1, seed=2)
    packed, _ = two_state_maps(60)
    train, held_out = split([60])
    training = cvae.train_model(packed, N_RESIDUES, train, held_out, settings(epochs=200, patience=2, batch_size=4), 3)
    assert len(training.history) < 200
    assert len(training.history) - training.best.epoch == 2


def test_training_can_be_asked_to_stop():
    packed, _ = two_state_maps(60)
    train, held_out = split([60])
    with pytest.raises(Interrupted):
        cvae.train_model(packed, N_RESIDUES, train, held_out, settings(), 3, should_stop=lambda: True)


def test_a_warm_start_begins_where_the_model_before_ended():
    cvae.configure(1, seed=3)
    packed, _ = two_state_maps(200)
    train, held_out = split([200])
    first = cvae.train_model(packed, N_RESIDUES, train, held_out, settings(), 3)
    cold = cvae.train_model(packed, N_RESIDUES, train, held_out, settings(epochs=1), 3)
    warm = cvae.train_model(packed, N_RESIDUES, train, held_out, settings(epochs=1), 3, start=first.model)
    assert warm.best.held_out_loss < 0.5 * (first.best.held_out_loss + cold.best.held_out_loss)


def test_the_reconstruction_of_single_frames_is_that_of_the_training(tmp_path):
    cvae.configure(1, seed=3)
    packed, _ = two_state_maps(120)
    train, held_out = split([120])
    training = cvae.train_model(packed, N_RESIDUES, train, held_out, settings(epochs=2), 3)
    cvae.save_model(training.model, tmp_path / "encoder.keras", tmp_path / "decoder.keras")
    loaded = cvae.load_model(tmp_path / "encoder.keras", tmp_path / "decoder.keras")
    losses = cvae.compute_reconstruction(loaded, packed[held_out], N_RESIDUES)
    assert losses.shape == (len(held_out),)
    assert losses.mean() == pytest.approx(training.best.held_out_reconstruction, rel=1e-4)


def test_a_saved_encoder_gives_the_same_latent_coordinates(tmp_path):
    packed, _ = two_state_maps(30)
    model = cvae.build_model("fast", N_RESIDUES, 4)
    cvae.save_model(model, tmp_path / "encoder.keras", tmp_path / "decoder.keras")
    loaded = cvae.load_encoder(tmp_path / "encoder.keras")
    np.testing.assert_allclose(
        cvae.encode(loaded, packed, N_RESIDUES), cvae.encode(model.encoder, packed, N_RESIDUES), atol=1e-6
    )


@pytest.mark.parametrize(
    ("architecture", "n_frames", "expected"),
    [
        ("paper", 50_000, 500),
        ("paper", 50, 1),
        ("fast", 50, 32),
        ("fast", 20_000, 200),
        ("fast", 500_000, 512),
        ("fast", 9, 9),
    ],
)
def test_batches_make_about_a_hundred_updates_an_epoch(architecture, n_frames, expected):
    assert cvae.choose_batch_size(settings(architecture=architecture), n_frames) == expected


def test_a_gpu_that_was_given_and_is_not_there_is_an_error():
    if cvae.tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU here")
    with pytest.raises(DeviceError, match="TensorFlow .* finds none: install its CUDA build"):
        cvae.configure(1, seed=1, gpus=1, allow_cpu=False)
    assert cvae.configure(1, seed=1, gpus=1, allow_cpu=True) == "CPU"
