"""The advantage control: what a critic knows about the luck of the draw, taken out of a reward difference."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def centred(action_values: Tensor, logprobs: Tensor, actions: Tensor) -> Tensor:
    """f(s, a) - sum_b pi(b|s) f(s, b) of every action: [M], with mean 0 under the policy that sampled, for any f.

    action_values f [M, K] of a critic that need not be any good; logprobs [M, K] of the distribution sampled from
    (where that is -inf the value is not read); actions [M]. The sampling policy's own centring matters: advantages of
    another policy have another mean, and would move the estimate.
    """
    probabilities = logprobs.exp()
    expected = torch.where(probabilities > 0, probabilities * action_values, 0.0).sum(1)
    return action_values.gather(1, actions[:, None])[:, 0] - expected


def without_luck(
    differences: np.ndarray, controls: np.ndarray, clusters: np.ndarray | None = None, *, num_folds: int = 5
) -> np.ndarray:
    """d - b . C of every prompt [..., n], with b regressed by least squares on the clusters of the other folds.

    differences d [..., n]; controls C [..., n, q], each with mean 0 whatever the prompt. As b does not depend on the
    prompt that it is used on, the mean is exactly that of d; the variance is 1 - R^2 of d's, and with useless
    controls it is d's up to a factor of about 1 + q / n.
    Source: Glasserman 2003, "Monte Carlo Methods in Financial Engineering", section 4.1; cross-fitted as in
    Chernozhukov et al. 2018, arXiv:1608.00060.
    """
    differences, controls = np.asarray(differences, dtype=np.float64), np.asarray(controls, dtype=np.float64)
    names = np.arange(differences.shape[-1]) if clusters is None else clusters
    folds = np.unique(names, return_inverse=True)[1] % num_folds
    result = differences.copy()
    for fold in np.unique(folds):
        inside = folds == fold
        coefficients = _regression(differences[..., ~inside], controls[..., ~inside, :])
        result[..., inside] -= np.einsum("...nq,...q->...n", controls[..., inside, :], coefficients)
    return result


def _regression(differences: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """Least-squares coefficients [..., q] of d on C and a constant; 0 for a control that never varies."""
    controls = controls - controls.mean(-2, keepdims=True)
    gram = np.einsum("...nq,...nr->...qr", controls, controls)
    products = np.einsum("...nr,...n->...r", controls, differences)
    coefficients: np.ndarray = np.einsum("...qr,...r->...q", np.linalg.pinv(gram, hermitian=True), products)
    return coefficients
