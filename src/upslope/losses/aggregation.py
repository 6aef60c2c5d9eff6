"""From per-action terms to a scalar: weights per action and one denominator, both chosen by the caller."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from upslope.errors import RecipeError
from upslope.estimators.scan import promote, row_ids

Over = Literal["tokens", "rows", "rows_token_mean", "constant"]


def weighted_sum(x: Tensor, *, weights: Tensor, denominator: float | Tensor) -> Tensor:
    """sum over t of weights[t] x[t] / denominator, a scalar.

    x, weights [M]. Every loss ends here; it is also the whole of a KL penalty in the loss (x from `kl_estimate` or
    `exact_kl`) and, with the sign turned, of an entropy bonus (x from `entropy`). The denominator counts the whole
    optimiser step over all ranks, so the losses of its micro-batches are summed, never averaged, and their sizes
    change no gradient.
    """
    x, weights = promote(x, weights)
    return (weights * x).sum() / denominator


def aggregation(
    num_actions: Tensor, *, over: Over, constant_length: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, float]:
    """The weight [M] of each action and the denominator of the given rows; action t of row i has n[i] = num_actions[i].

    | over            | weight | denominator       | so the loss is                                            |
    |-----------------|--------|-------------------|-----------------------------------------------------------|
    | tokens          | 1      | sum of n          | the mean over all actions: long rows count more           |
    | rows            | 1      | B                 | the mean over rows of the sum over a row's actions        |
    | rows_token_mean | 1/n[i] | B                 | the mean over rows of the mean over a row's actions       |
    | constant        | 1      | B constant_length | the mean over rows of the sum, over one length for all    |

    Over several micro-batches or ranks, take each one's weights and the sum of all denominators. A row that is to
    be left out (cut at the length limit, say) leaves before this call, so it is in no numerator and no denominator.
    Raises: RecipeError when `over` is unknown, or is `constant` without a constant_length of at least 1.
    Source: Schulman et al. 2017, arXiv:1707.06347 (tokens); Shao et al. 2024, arXiv:2402.03300, eq. 3
    (rows_token_mean); Liu et al. 2025, arXiv:2503.20783, section 3.2 (constant).
    """
    num_rows = num_actions.shape[0]
    ones = torch.ones(int(num_actions.sum()), dtype=dtype, device=num_actions.device)
    if over == "tokens":
        return ones, float(ones.shape[0])
    if over == "rows":
        return ones, float(num_rows)
    if over == "rows_token_mean":
        return ones / num_actions[row_ids(num_actions)], float(num_rows)
    if over != "constant":
        raise RecipeError(f"nothing sums over {over!r}; choose tokens, rows, rows_token_mean or constant")
    if constant_length is None or constant_length < 1:
        raise RecipeError(f"the sum over 'constant' has constant_length {constant_length}; give a length of 1 or more")
    return ones, float(num_rows * constant_length)
