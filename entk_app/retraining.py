"""When models are trained: at first, when the frames have grown, or when new frames are not what they know. Pure.

The rule (docs/decisions/0020): the models of an iteration go on serving until the campaign has ``train.retrain_growth``
times the frames that they were trained on, or until they reconstruct frames that they meet for the first time worse
than the frames held out from their training, by more than ``train.retrain_drift`` and by more than chance explains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy import stats

from entk_app.records import AnalysisRecord, ModelRecord, NewFrames
from entk_app.settings import Settings

#: Confidence that new frames are worse than is tolerated, one-sided.
_CONFIDENCE = 0.975


@dataclass(frozen=True)
class Drift:
    """How much worse a model reconstructs new frames than held-out ones.

    Attributes
    ----------
    share : float
        (new - held out) / held out, of the mean losses.
    at_least : float
        Lower confidence bound of ``share``; minus infinity where there is only one block.
    """

    share: float
    at_least: float


def compute_drift(new: NewFrames, model: ModelRecord) -> Drift:
    """The drift of a model's loss on new frames, by blocks of frames.

    Notes
    -----
    With means m and standard errors s of new (n) and held-out (h) frames, the share is m_n / m_h - 1 and its lower
    bound share - t sqrt(s_n**2 + (m_n / m_h)**2 s_h**2) / m_h, where t is Student's quantile for the blocks of new
    frames.
    """
    held_out = max(model.held_out_reconstruction, 1e-12)
    ratio = new.reconstruction / held_out
    if new.standard_error is None or new.n_blocks < 2:
        return Drift(ratio - 1.0, -math.inf)
    error = math.hypot(new.standard_error, ratio * (model.held_out_standard_error or 0.0)) / held_out
    return Drift(ratio - 1.0, ratio - 1.0 - float(stats.t.ppf(_CONFIDENCE, new.n_blocks - 1)) * error)


def explain_training(
    models: Mapping[int, ModelRecord], analysis: AnalysisRecord | None, n_frames: int, settings: Settings
) -> str | None:
    """Why models are to be trained in the next iteration; None where those that there are go on serving.

    Parameters
    ----------
    models : mapping
        The newest of each latent size.
    analysis : AnalysisRecord or None
        The newest.
    n_frames : int
        Of the campaign.
    settings : Settings
    """
    if not settings.learns:
        return None
    train = settings.train
    missing = [str(dim) for dim in train.latent_dims if dim not in models]
    if missing:
        return f"no model of latent size {', '.join(missing)} yet"
    if train.retrain == "always":
        return "in every iteration (train.retrain)"
    if len({model.iteration for model in models.values()}) > 1:
        return "not all models are of the same iteration"
    known = max(count_known_frames(model) for model in models.values())
    if n_frames >= train.retrain_growth * known:
        return f"{n_frames} frames, {n_frames / known:.2f} times those that the models were trained on"
    for found in analysis.models if analysis else ():
        model = models.get(found.model.latent_dim)
        if model is None or model.iteration != found.model.iteration or found.new_frames is None:
            continue
        drift = compute_drift(found.new_frames, model)
        if drift.at_least > train.retrain_drift:
            return (
                f"new frames are reconstructed {drift.share:.0%} worse than held-out ones by latent size "
                f"{model.latent_dim} (at least {drift.at_least:.0%}; train.retrain_drift is {train.retrain_drift:.0%})"
            )
    return None


def count_known_frames(model: ModelRecord) -> int:
    """Frames that there were when a model was trained."""
    return model.n_frames or model.n_train_frames + model.n_held_out_frames
