"""What this machine can do at best, measured: fp32 matrix products and memory reads; and what a piece of work needs.

    python benchmarks/ceilings.py

The products are tried through torch's linear layer (MKL on x86) and through oneDNN with packed weights, at decoding and
training sizes; the best counts. The least time of a piece of work counts the linear layers alone (no attention, no
normalisation, no sampling), so that no implementation reaches a share of 1.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Side, arguments, measure

SHAPES = ((64, 1536, 576), (512, 2048, 2048), (2500, 1536, 576), (2500, 3072, 3072))  # M, N, K


@dataclass(frozen=True)
class Ceilings:
    """The best rate of fp32 products, and of reading memory that no cache holds."""

    gflop_per_s: float
    read_gb_per_s: float

    def as_dict(self) -> dict[str, float]:
        """For the results file."""
        return {"fp32 GFLOP/s": self.gflop_per_s, "read GB/s": self.read_gb_per_s}


@dataclass(frozen=True)
class ModelSize:
    """Multiply-adds a token of a Llama-like model's layers and of its output head, and bytes of its weights."""

    body: int
    head: int
    weight_bytes: int

    @staticmethod
    def of(folder: str) -> ModelSize:
        """Read from a model folder's config."""
        config = json.loads((Path(folder) / "config.json").read_text())
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        kv = hidden * config["num_key_value_heads"] // heads
        layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * config["intermediate_size"]
        body, head = config["num_hidden_layers"] * layer, config["vocab_size"] * hidden
        return ModelSize(body, head, 4 * (body + head))


def generation_s(size: ModelSize, best: Ceilings, *, prompt_tokens: int, rows: int, new_tokens: int) -> float:
    """Least time to sample: prompt_tokens once through the layers, then each step reads the weights or computes."""
    prefill = 2 * prompt_tokens * size.body / (best.gflop_per_s * 1e9)
    compute = 2 * rows * (size.body + size.head) / (best.gflop_per_s * 1e9)
    return prefill + new_tokens * max(compute, size.weight_bytes / (best.read_gb_per_s * 1e9))


def training_s(size: ModelSize, best: Ceilings, *, tokens: int, actions: int, passes: float = 3.0) -> float:
    """Least time of forward and backward (3 passes; a forward alone is 1): the head runs at actions only."""
    return passes * 2 * (tokens * size.body + actions * size.head) / (best.gflop_per_s * 1e9)


def find(peers: Path) -> Ceilings:
    """Measured in a process of its own."""
    (result,) = measure([Side("ceilings", __file__, "measure_here")], repeats=1, warmups=0, peers=peers)
    if result.problem:
        raise RuntimeError(f"the ceilings could not be measured: {result.problem}")
    answer = result.answers[0]
    return Ceilings(answer["gflop_per_s"], answer["read_gb_per_s"])


def measure_here(turn: Any) -> None:
    """The side that measures."""
    turn()
    turn(gflop_per_s=max(_gflop_per_s(*shape) for shape in SHAPES), read_gb_per_s=_read_gb_per_s())


def _gflop_per_s(m: int, n: int, k: int) -> float:
    """The best rate of x [m, k] by a weight [n, k], whichever of torch's libraries gives it."""
    import torch

    x, weight = torch.randn(m, k), torch.randn(n, k)
    products: list[Callable[[], Any]] = [lambda: torch.nn.functional.linear(x, weight)]
    if torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, m)
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))
    with torch.inference_mode():
        return max(2 * m * n * k / _fastest_s(product) / 1e9 for product in products)


def _read_gb_per_s() -> float:
    """A sum over 1 GiB, read by as many threads as there are cores."""
    import torch

    numbers = torch.ones(2**28)
    with torch.inference_mode():
        return numbers.numel() * 4 / _fastest_s(numbers.sum) / 1e9


def _fastest_s(work: Callable[[], Any], *, budget_s: float = 1.0) -> float:
    """The fastest of the calls that fit in budget_s, at least three: a ceiling is what is reached undisturbed."""
    times: list[float] = []
    ends = time.perf_counter() + budget_s
    while time.perf_counter() < ends or len(times) < 3:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    options = arguments(__doc__, repeats=1).parse_args()
    best = find(options.peers)
    print(f"{os.cpu_count()} cores: {best.gflop_per_s:.0f} GFLOP/s in fp32, {best.read_gb_per_s:.1f} GB/s read")
