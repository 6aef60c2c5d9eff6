"""GAE and the scan under it beside loops over time: python benchmarks/scan.py [--repeats 7].

Peers: the loop of TRL and verl over a padded [B, T] tensor, column by column; that loop with time first and without
temporaries, the best that a loop in eager PyTorch can do; the vectorised GAE of torchrl; numba, compiled and parallel
over rows. All rows are equally long, the best case of the loops; upslope packs them. gamma * lam is 0.9405 and 1.0.
float32; the sums of all answers must agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from harness import Measured, Side, arguments, measure
from results import Case, compare, report

SHAPES = ((512, 2048), (64, 16384))
DECAYS = ((0.99, 0.95), (1.0, 1.0))
PEERS_OF_GAE = (
    ("loop over columns", "columns", 1, None),
    ("loop, time first", "time_first", 1, None),
    ("torchrl, vectorised", "torchrl", 5, "torchrl"),
    ("numba, rows in parallel", "numba", 20, "torchrl"),
)


def _inputs(rows: int, length: int) -> tuple[Any, Any]:
    import torch

    rewards, values = torch.randn(2, rows, length, generator=torch.Generator().manual_seed(0))
    return rewards, values


def _repeat(turn: Any, calls: int, function: Callable[[], Any]) -> None:
    """Repetitions of so many calls each, whose seconds are those of one call."""
    turn(checksum=float(function().sum()))
    while True:
        started = time.perf_counter()
        for _ in range(calls):
            result = function()
        turn(seconds=(time.perf_counter() - started) / calls, checksum=float(result.sum()))


def upslope(turn: Any, *, rows: int, length: int, gamma: float, lam: float, calls: int) -> None:
    """`estimators.gae` on packed rows."""
    import torch

    from upslope.estimators import gae

    rewards, values = (x.flatten() for x in _inputs(rows, length))
    num_actions, bootstrap = torch.full((rows,), length), torch.zeros(rows)
    _repeat(turn, calls, lambda: gae(rewards, values, num_actions, bootstrap, gamma=gamma, lam=lam))


def columns(turn: Any, *, rows: int, length: int, gamma: float, lam: float, calls: int) -> None:
    """The loop of TRL and verl over a padded batch; `goes_on` is 0 at the ends of rows."""
    import torch

    rewards, values = _inputs(rows, length)
    goes_on = torch.ones(rows, length)
    goes_on[:, -1] = 0.0

    def loop() -> Any:
        last, reversed_ = torch.zeros(rows), []
        for t in reversed(range(length)):
            next_values = values[:, t + 1] if t < length - 1 else 0.0
            delta = rewards[:, t] + gamma * next_values * goes_on[:, t] - values[:, t]
            last = delta + gamma * lam * goes_on[:, t] * last
            reversed_.append(last)
        return torch.stack(reversed_[::-1], dim=1)

    _repeat(turn, calls, loop)


def time_first(turn: Any, *, rows: int, length: int, gamma: float, lam: float, calls: int) -> None:
    """One fused operation a time step on contiguous memory, transposed there and back."""
    import torch

    rewards, values = _inputs(rows, length)

    def loop() -> Any:
        after = torch.cat((values[:, 1:], values.new_zeros(rows, 1)), 1)
        out = torch.add(rewards, after, alpha=gamma).sub_(values).t().contiguous()
        for t in range(length - 2, -1, -1):
            out[t].add_(out[t + 1], alpha=gamma * lam)
        return out.t().contiguous()

    _repeat(turn, calls, loop)


def torchrl(turn: Any, *, rows: int, length: int, gamma: float, lam: float, calls: int) -> None:
    """torchrl's `vec_generalized_advantage_estimate`."""
    import torch
    from torchrl.objectives.value.functional import vec_generalized_advantage_estimate

    rewards, values = (x[..., None] for x in _inputs(rows, length))
    after = torch.cat((values[:, 1:], values.new_zeros(rows, 1, 1)), 1)
    done = torch.zeros(rows, length, 1, dtype=torch.bool)
    done[:, -1] = True
    _repeat(turn, calls, lambda: vec_generalized_advantage_estimate(gamma, lam, values, after, rewards, done, done)[0])


def numba(turn: Any, *, rows: int, length: int, gamma: float, lam: float, calls: int) -> None:
    """A compiled loop, rows in parallel."""
    import numba
    import numpy as np

    @numba.njit(parallel=True)
    def loop(rewards, values, gamma, lam):  # type: ignore[no-untyped-def]
        out = np.empty_like(rewards)
        for row in numba.prange(rewards.shape[0]):
            last = after = np.float32(0.0)
            for t in range(rewards.shape[1] - 1, -1, -1):
                last = rewards[row, t] + gamma * after - values[row, t] + gamma * lam * last
                after = values[row, t]
                out[row, t] = last
        return out

    rewards, values = (x.numpy() for x in _inputs(rows, length))
    _repeat(turn, calls, lambda: loop(rewards, values, np.float32(gamma), np.float32(lam)))


def bare_scan(turn: Any, *, rows: int, length: int, calls: int) -> None:
    """`estimators.reverse_scan` with the decay of the first GAE."""
    import torch

    from upslope.estimators import reverse_scan

    increment = _inputs(rows, length)[0]
    decay = torch.full_like(increment, 0.9405)
    decay[:, -1] = 0.0
    increment, decay = increment.flatten(), decay.flatten()
    _repeat(turn, calls, lambda: reverse_scan(increment, decay, max_length=length))


def bare_columns(turn: Any, *, rows: int, length: int, calls: int) -> None:
    """The scan's own recurrence and nothing else, as a loop over columns."""
    import torch

    increment = _inputs(rows, length)[0]
    decay = torch.full_like(increment, 0.9405)

    def loop() -> Any:
        out, x = torch.empty_like(increment), increment.new_zeros(rows)
        for t in reversed(range(length)):
            x = increment[:, t] + decay[:, t] * x
            out[:, t] = x
        return out

    _repeat(turn, calls, loop)


def cases(*, repeats: int, peers: Any) -> list[Case]:
    """All comparisons, each shape's and decay's sides taking turns."""
    found = []
    for rows, length in SHAPES:
        shape = {"rows": rows, "length": length}
        for gamma, lam in DECAYS:
            given = {**shape, "gamma": gamma, "lam": lam}
            sides = [Side("upslope", __file__, "upslope", {**given, "calls": 20})]
            sides += [Side(n, __file__, f, {**given, "calls": calls}, where) for n, f, calls, where in PEERS_OF_GAE]
            name = f"GAE, {rows} rows of {length}, gamma lam {gamma * lam:.4g}"
            found += _compared(name, measure(sides, repeats=repeats, peers=peers))
        sides = [
            Side("upslope", __file__, "bare_scan", {**shape, "calls": 20}),
            Side("loop over columns", __file__, "bare_columns", {**shape, "calls": 1}),
        ]
        found += _compared(f"reverse_scan, {rows} rows of {length}", measure(sides, repeats=repeats, peers=peers))
    return found


def _compared(name: str, measured: list[Measured]) -> list[Case]:
    """upslope beside each peer that could run; a peer whose answers sum to something else is a mistake of ours."""
    own, *others = measured
    for side in others:
        if side.answers and own.answers:
            expected, actual = own.answers[-1]["checksum"], side.answers[-1]["checksum"]
            assert abs(actual - expected) <= 1e-3 * max(abs(expected), 1e3), (name, side.side.name, actual, expected)
    return [compare(name, own, side, unit="s") for side in others]


def main() -> None:
    parser = arguments(__doc__, repeats=7)
    options = parser.parse_args()
    report("scan", cases(repeats=options.repeats, peers=options.peers), results=options.results)


if __name__ == "__main__":
    main()
