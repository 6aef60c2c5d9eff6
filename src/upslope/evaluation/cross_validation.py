"""What choosing is worth: the chosen model's reward, measured on prompts that had no part in choosing it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from upslope.errors import DataError
from upslope.evaluation.clustered import clustered_mean
from upslope.evaluation.intervals import Interval


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """estimate: reward of whatever is chosen, on other prompts. naive: the best model's own mean, which is too high.

    choices [K]: in how many folds each model was chosen.
    """

    estimate: Interval
    naive: float
    choices: tuple[int, ...]


def cross_validate(
    rewards: np.ndarray,
    clusters: np.ndarray | None = None,
    *,
    num_folds: int = 5,
    confidence: float = 0.95,
    seed: int = 0,
) -> CrossValidation:
    """K-fold cross-validation, over prompts in whole clusters, of "take the model with the highest mean".

    rewards [K, n] of K models on the same n prompts. Nothing is trained on these prompts, a fold only chooses; so where
    the models are settings of several methods, one choice among all of them is the nested cross-validation as well.
    The interval is t's with a standard error sqrt(1 + K / (K - 1)) as large: folds share the prompts they choose by.
    There is no exact one; among many equal models, the worst case, this one covers a little less often than it says.
    Raises: DataError where there are fewer clusters than folds, or a reward is not finite.
    Source: Stone 1974; Varma & Simon 2006, "Bias in error estimation when using cross-validation for model selection",
    Nadeau & Bengio 2003, "Inference for the generalization error", section 3, for the correction.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    names = np.arange(rewards.shape[1]) if clusters is None else clusters
    members, places = np.unique(names, return_inverse=True)
    if len(members) < num_folds or num_folds < 2:
        raise DataError(f"{num_folds} folds need two at least, and as many clusters: there are {len(members)}")
    folds = (np.random.default_rng(seed).permutation(len(members)) % num_folds)[places]
    values, choices = np.empty(rewards.shape[1]), [0] * len(rewards)
    for fold in range(num_folds):
        chosen = int(rewards[:, folds != fold].mean(1).argmax())
        choices[chosen] += 1
        values[folds == fold] = rewards[chosen, folds == fold]
    mean = clustered_mean(values, clusters)
    corrected = dataclasses.replace(mean, se=mean.se * math.sqrt(1.0 + num_folds / (num_folds - 1.0)))
    low, high = corrected.bounds(confidence)
    estimate = Interval(float(mean.estimate), float(low), float(high))
    return CrossValidation(estimate, float(rewards.mean(1).max()), tuple(choices))
