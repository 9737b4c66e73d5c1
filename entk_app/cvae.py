"""Convolutional variational autoencoder of contact maps. Only this module imports TensorFlow.

Two architectures by name. ``paper`` is that of Ma et al. 2019 and of the CVAE that they cite (Bhowmik et al. 2018,
doi:10.1186/s12859-018-2507-5): four convolutions of 64 filters, 3x3, strides 1, 2, 1, 1, dense 128, RMSprop.
``fast`` has two strided convolutions and Adam. The loss is the binary cross-entropy summed over the
pixels plus the Kullback-Leibler divergence of the latent distribution from the unit normal.
"""

from __future__ import annotations

import os

# TensorFlow reads these when it is imported; Keras must not pick another backend from the user's home.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

import csv
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from entk_app import geometry
from entk_app.errors import DataError, DeviceError, Interrupted
from entk_app.settings import TrainSettings


@contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Packages that are as if not installed meanwhile, unless they are imported already."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


# Keras imports them where it finds them, for parts that are not used here: a quarter of the import.
with _hidden("sklearn", "matplotlib"):
    import keras
    import tensorflow as tf

logger = logging.getLogger(__name__)

#: Frames unpacked and encoded at a time: bounds the memory of inference.
_ENCODE_BATCH = 1024

#: TensorFlow takes threads and memory growth once a process: in-process campaigns configure many times.
_configured = False


@dataclass(frozen=True)
class Architecture:
    """Layers by number: ``filters`` and ``strides`` of the 3x3 convolutions, from the map inwards."""

    filters: tuple[int, ...]
    strides: tuple[int, ...]
    dense: int
    learning_rate: float
    batch_limits: tuple[int, int]

    @property
    def reduction(self) -> int:
        return math.prod(self.strides)


ARCHITECTURES = {
    "paper": Architecture((64, 64, 64, 64), (1, 2, 1, 1), 128, 1e-3, (1, 1_000_000)),
    "fast": Architecture((16, 32), (2, 2), 128, 2e-3, (32, 512)),
}


@dataclass(frozen=True)
class Cvae:
    """Encoder (map -> mean and log-variance) and decoder (latent -> map logits), plain Keras models."""

    encoder: Any
    decoder: Any

    @property
    def n_parameters(self) -> int:
        return int(self.encoder.count_params() + self.decoder.count_params())


@dataclass(frozen=True)
class Epoch:
    """Mean losses of an epoch, nats a frame."""

    epoch: int
    train_loss: float
    train_reconstruction: float
    held_out_loss: float
    held_out_reconstruction: float
    held_out_divergence: float
    seconds: float


@dataclass(frozen=True)
class Training:
    """A trained model with the weights of its best epoch."""

    model: Cvae
    history: tuple[Epoch, ...]
    best: Epoch
    batch_size: int


def configure(cores: int, seed: int, gpus: int = 0, allow_cpu: bool = True) -> Literal["GPU", "CPU"]:
    """Threads, memory growth and seeds, before anything else of TensorFlow; returns what it will run on.

    Parameters
    ----------
    cores : int
        Threads of the task.
    seed : int
        Weights, batches and latent noise follow from it.
    gpus : int
        Devices that the task was given.
    allow_cpu : bool
        Whether it may run on the CPU although it was given a device.

    Raises
    ------
    DeviceError
        TensorFlow finds no GPU although one was given.
    """
    global _configured
    devices = tf.config.list_physical_devices("GPU")
    if gpus and not devices and not allow_cpu:
        raise DeviceError(
            f"the task was given GPU {os.environ.get('CUDA_VISIBLE_DEVICES') or '?'}, TensorFlow {tf.__version__} "
            "finds none: install its CUDA build (pip install '.[cuda]') and the driver, or allow the CPU with "
            "resource.require_gpu=false"
        )
    if not _configured:
        tf.config.threading.set_intra_op_parallelism_threads(cores)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        for device in devices:
            tf.config.experimental.set_memory_growth(device, True)
        _configured = True
    keras.utils.set_random_seed(seed % 2**32)
    return "GPU" if devices else "CPU"


def build_model(architecture: str, n_residues: int, latent_dim: int) -> Cvae:
    """Untrained encoder and decoder.

    Parameters
    ----------
    architecture : {'fast', 'paper'}
    n_residues : int
        Maps of shape (n_residues, n_residues, 1); padded inside to a multiple of the stride.
    latent_dim : int
    """
    shape = ARCHITECTURES[architecture]
    layers = keras.layers
    padded = math.ceil(n_residues / shape.reduction) * shape.reduction
    pad = padded - n_residues
    maps = keras.Input((n_residues, n_residues, 1), name="contact_map")
    x = layers.ZeroPadding2D(((0, pad), (0, pad)))(maps) if pad else maps
    for filters, stride in zip(shape.filters, shape.strides, strict=True):
        x = layers.Conv2D(filters, 3, strides=stride, padding="same", activation="relu")(x)
    inner = tuple(x.shape[1:])
    x = layers.Dense(shape.dense, activation="relu")(layers.Flatten()(x))
    mean = layers.Dense(latent_dim, name="z_mean")(x)
    log_variance = layers.Dense(latent_dim, name="z_log_variance")(x)
    encoder = keras.Model(maps, [mean, log_variance], name="encoder")

    latent = keras.Input((latent_dim,), name="latent")
    y = layers.Dense(shape.dense, activation="relu")(latent)
    y = layers.Reshape(inner)(layers.Dense(math.prod(inner), activation="relu")(y))
    reversed_layers = list(zip(shape.filters, shape.strides, strict=True))[::-1]
    for place, (filters, stride) in enumerate(reversed_layers):
        last = place == len(reversed_layers) - 1
        y = layers.Conv2DTranspose(
            1 if last else reversed_layers[place + 1][0] if architecture == "fast" else filters,
            3,
            strides=stride,
            padding="same",
            activation=None if last else "relu",
        )(y)
    if pad:
        y = layers.Cropping2D(((0, pad), (0, pad)))(y)
    decoder = keras.Model(latent, y, name="decoder")
    return Cvae(encoder, decoder)


def choose_batch_size(settings: TrainSettings, n_frames: int) -> int:
    """About 100 updates an epoch, within the architecture's limits, unless the settings say otherwise."""
    if settings.batch_size is not None:
        return min(settings.batch_size, n_frames)
    low, high = ARCHITECTURES[settings.architecture].batch_limits
    return int(min(max(n_frames // 100, low), high, n_frames))


def train_model(
    packed: NDArray[np.uint8],
    n_residues: int,
    train_rows: NDArray[np.intp],
    held_out_rows: NDArray[np.intp],
    settings: TrainSettings,
    latent_dim: int,
    should_stop: Callable[[], bool] = lambda: False,
    start: Cvae | None = None,
) -> Training:
    """Train one model and keep the weights of the epoch with the lowest held-out loss.

    Parameters
    ----------
    packed : array of uint8, shape (n_frames, n_bytes)
        Packed contact maps.
    train_rows, held_out_rows : arrays of int
        From :func:`entk_app.training_set.choose_training_set`.
    should_stop : callable
        Asked after every epoch.
    start : Cvae or None
        Goes on from its weights; None: from random ones.

    Raises
    ------
    DataError
        The loss is not finite.
    Interrupted
        ``should_stop`` said so.
    """
    model = start or build_model(settings.architecture, n_residues, latent_dim)
    variables = model.encoder.trainable_variables + model.decoder.trainable_variables
    update, evaluate = _compile_steps(model, _build_optimizer(settings.architecture), n_residues)
    batch_size = choose_batch_size(settings, len(train_rows))

    # One bulk read in memory, as bits: unpacked on the device, a batch at a time.
    training = tf.data.Dataset.from_tensor_slices(packed[train_rows])
    training = training.shuffle(len(train_rows), reshuffle_each_iteration=True).batch(batch_size).prefetch(2)
    held_out = tf.data.Dataset.from_tensor_slices(packed[held_out_rows]).batch(_ENCODE_BATCH)

    history: list[Epoch] = []
    best: Epoch | None = None
    weights: list[NDArray] = []
    for number in range(1, settings.epochs + 1):
        began = time.monotonic()
        sums = np.zeros(2)
        for rows in training:
            sums += update(rows).numpy()
        on_train = sums / len(train_rows)
        on_held_out = sum((evaluate(rows).numpy() for rows in held_out), np.zeros(2)) / len(held_out_rows)
        epoch = Epoch(
            epoch=number,
            train_loss=float(on_train.sum()),
            train_reconstruction=float(on_train[0]),
            held_out_loss=float(on_held_out.sum()),
            held_out_reconstruction=float(on_held_out[0]),
            held_out_divergence=float(on_held_out[1]),
            seconds=time.monotonic() - began,
        )
        if not math.isfinite(epoch.train_loss) or not math.isfinite(epoch.held_out_loss):
            raise DataError(f"latent size {latent_dim}: the loss is not finite in epoch {number}")
        history.append(epoch)
        if best is None or epoch.held_out_loss < best.held_out_loss:
            best = epoch
            weights = [variable.numpy() for variable in variables]
        elif settings.patience is not None and number - best.epoch >= settings.patience:
            break
        if should_stop():
            raise Interrupted("training was asked to stop")
    assert best is not None  # epochs >= 1
    for variable, value in zip(variables, weights, strict=True):
        variable.assign(value)
    return Training(model, tuple(history), best, batch_size)


def _build_optimizer(architecture: str) -> Any:
    rate = ARCHITECTURES[architecture].learning_rate
    return keras.optimizers.RMSprop(rate, rho=0.9) if architecture == "paper" else keras.optimizers.Adam(rate)


def _compile_steps(model: Cvae, optimizer: Any, n_residues: int) -> tuple[Any, Any]:
    """Compiled functions of packed rows: update the weights, and evaluate with the latent mean.

    Both return the sums over the batch of the reconstruction loss and of the divergence.
    """
    unpack = make_unpacker(n_residues)
    variables = model.encoder.trainable_variables + model.decoder.trainable_variables
    optimizer.build(variables)

    def compute_losses(rows: Any, noise: bool) -> tuple[Any, Any]:
        maps = unpack(rows)
        mean, log_variance = model.encoder(maps, training=noise)
        latent = mean + tf.exp(0.5 * log_variance) * tf.random.normal(tf.shape(mean)) if noise else mean
        logits = model.decoder(latent, training=noise)
        reconstruction = _sum_cross_entropy(maps, logits)
        divergence = 0.5 * tf.reduce_sum(tf.square(mean) + tf.exp(log_variance) - 1.0 - log_variance, axis=1)
        return reconstruction, divergence

    signature = [tf.TensorSpec((None, geometry.count_bytes(n_residues)), tf.uint8)]

    @tf.function(input_signature=signature)
    def update(rows: Any) -> Any:
        with tf.GradientTape() as tape:
            reconstruction, divergence = compute_losses(rows, noise=True)
            loss = tf.reduce_mean(reconstruction + divergence)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return tf.stack([tf.reduce_sum(reconstruction), tf.reduce_sum(divergence)])

    @tf.function(input_signature=signature)
    def evaluate(rows: Any) -> Any:
        reconstruction, divergence = compute_losses(rows, noise=False)
        return tf.stack([tf.reduce_sum(reconstruction), tf.reduce_sum(divergence)])

    return update, evaluate


def make_unpacker(n_residues: int) -> Callable[[Any], Any]:
    """A TensorFlow function from packed rows (frames, n_bytes) to float32 maps (frames, n, n, 1)."""
    table = np.zeros((n_residues, n_residues), dtype=np.int32)
    first, second = np.triu_indices(n_residues, k=1)
    pair = np.arange(len(first))
    # One entry past the pairs stands for the diagonal, which is always in contact.
    table[first, second] = table[second, first] = pair
    table[np.arange(n_residues), np.arange(n_residues)] = len(first)
    indices = tf.constant(table.reshape(-1))
    shifts = tf.constant(np.arange(7, -1, -1), dtype=tf.uint8)
    n_bytes = geometry.count_bytes(n_residues)

    def unpack(rows: Any) -> Any:
        bits = tf.bitwise.bitwise_and(tf.bitwise.right_shift(rows[:, :, None], shifts), tf.constant(1, tf.uint8))
        flat = tf.reshape(bits, (-1, 8 * n_bytes))[:, : len(first)]
        flat = tf.concat([flat, tf.ones_like(flat[:, :1])], axis=1)
        return tf.reshape(tf.cast(tf.gather(flat, indices, axis=1), tf.float32), (-1, n_residues, n_residues, 1))

    return unpack


def encode(encoder: Any, packed: NDArray[np.uint8], n_residues: int) -> NDArray[np.float32]:
    """Latent means of packed maps, shape (n_frames, latent_dim)."""
    unpack = make_unpacker(n_residues)

    @tf.function(input_signature=[tf.TensorSpec((None, packed.shape[1]), tf.uint8)])
    def run(rows: Any) -> Any:
        return encoder(unpack(rows), training=False)[0]

    batches = _run_batches(run, packed)
    return np.concatenate(batches) if batches else np.empty((0, encoder.outputs[0].shape[-1]), np.float32)


def compute_reconstruction(model: Cvae, packed: NDArray[np.uint8], n_residues: int) -> NDArray[np.float32]:
    """Reconstruction loss of packed maps by the latent mean, nats, shape (n_frames,)."""
    unpack = make_unpacker(n_residues)

    @tf.function(input_signature=[tf.TensorSpec((None, packed.shape[1]), tf.uint8)])
    def run(rows: Any) -> Any:
        maps = unpack(rows)
        logits = model.decoder(model.encoder(maps, training=False)[0], training=False)
        return _sum_cross_entropy(maps, logits)

    batches = _run_batches(run, packed)
    return np.concatenate(batches) if batches else np.empty(0, np.float32)


def _run_batches(run: Any, packed: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Apply a TensorFlow function batch after batch; compiling it takes longer than a single batch does."""
    call = run if len(packed) > _ENCODE_BATCH else run.python_function
    return [
        call(tf.constant(packed[start : start + _ENCODE_BATCH])).numpy()
        for start in range(0, len(packed), _ENCODE_BATCH)
    ]


def _sum_cross_entropy(maps: Any, logits: Any) -> Any:
    """Binary cross-entropy summed over the pixels of each map."""
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=maps, logits=logits), axis=(1, 2, 3))


def save_model(model: Cvae, encoder: Path, decoder: Path) -> None:
    """Write both halves in Keras' own format, without custom code."""
    model.encoder.save(encoder)
    model.decoder.save(decoder)


def load_model(encoder: Path, decoder: Path) -> Cvae:
    """Read both halves."""
    return Cvae(load_encoder(encoder), _load(decoder))


def load_encoder(path: Path) -> Any:
    """Read an encoder."""
    return _load(path)


def _load(path: Path) -> Any:
    # Safe mode refuses files that carry code.
    return keras.models.load_model(path, compile=False, safe_mode=True)


def write_history(path: Path, history: tuple[Epoch, ...]) -> None:
    """The loss history as CSV, one row an epoch."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(Epoch.__dataclass_fields__)
        for epoch in history:
            writer.writerow([getattr(epoch, name) for name in Epoch.__dataclass_fields__])
