"""A Gaussian process on a few points of a unit cube, and what is to be gained at others."""

from __future__ import annotations

import math

import numpy as np

_LENGTHS = (0.1, 0.2, 0.35, 0.6, 1.0, 2.0)
_NOISES = (1e-4, 1e-2, 1e-1)
_erf = np.vectorize(math.erf, otypes=[float])


def expected_improvement(points: np.ndarray, values: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """E[max(f(x) - best, 0)] / std of the values, at candidates [c, d], after values [n] at points [n, d].

    f has a Matern 5/2 covariance of one length; length and noise are those of the highest marginal likelihood on a
    small grid, the variance is the one that maximises it.
    Source: Jones, Schonlau & Welch 1998, eq. 15; Rasmussen & Williams 2006, algorithm 2.1 and eq. 5.8.
    """
    scaled = (values - values.mean()) / (values.std() or 1.0)
    among, between = _distances(points, points), _distances(candidates, points)
    _, length, factor = max(
        (_likelihood(among, scaled, length, noise) for length in _LENGTHS for noise in _NOISES), key=lambda fit: fit[0]
    )
    weights = np.linalg.solve(factor, scaled)
    spread = np.linalg.solve(factor, _matern(between / length).T)
    mean, variance = spread.T @ weights, weights @ weights / len(scaled) * (1.0 - (spread**2).sum(0))
    sd = np.sqrt(np.maximum(variance, 1e-12))
    surplus = (mean - scaled.max()) / sd
    below = 0.5 * (1.0 + _erf(surplus / math.sqrt(2.0)))
    density = np.exp(-0.5 * surplus**2) / math.sqrt(2.0 * math.pi)
    gain: np.ndarray = sd * (surplus * below + density)
    return gain


def _likelihood(
    distances: np.ndarray, values: np.ndarray, length: float, noise: float
) -> tuple[float, float, np.ndarray]:
    """log p(values) with the variance maximised out, the length, and the covariance's Cholesky factor."""
    factor = np.linalg.cholesky(_matern(distances / length) + noise * np.eye(len(values)))
    weights = np.linalg.solve(factor, values)
    variance = max(float(weights @ weights) / len(values), 1e-12)
    return -0.5 * len(values) * math.log(variance) - float(np.log(np.diag(factor)).sum()), length, factor


def _matern(scaled: np.ndarray) -> np.ndarray:
    root = math.sqrt(5.0) * scaled
    covariance: np.ndarray = (1.0 + root + root**2 / 3.0) * np.exp(-root)
    return covariance


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return found
