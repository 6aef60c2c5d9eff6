"""`reverse_scan` beside a loop over time written in torch: python benchmarks/scan.py [--rows 512 --length 2048].

Both compute x[t] = increment[t] + decay[t] x[t+1] on the same float32 numbers, the loop on a padded [B, T] tensor
(its best case: all rows equally long), the scan on the packed [B T] one. Medians of interleaved repetitions.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from upslope.estimators import reverse_scan


def loop_over_time(increment: Tensor, decay: Tensor) -> Tensor:
    """The recurrence on [B, T], from the last column to the first."""
    out, x = torch.empty_like(increment), increment.new_zeros(increment.shape[0])
    for t in reversed(range(increment.shape[1])):
        x = increment[:, t] + decay[:, t] * x
        out[:, t] = x
    return out


def seconds(function: Callable[[], Tensor], device: torch.device) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def processor() -> str:
    """The processor's model where the system says it, else its architecture."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    args = parser.parse_args()

    generator = torch.Generator().manual_seed(0)
    increment = torch.randn(args.rows, args.length, generator=generator).to(args.device)
    decay = torch.full_like(increment, 0.99 * 0.95)
    decay[:, -1] = 0.0
    flat, flat_decay = increment.flatten(), decay.flatten()
    candidates = {
        "loop": lambda: loop_over_time(increment, decay),
        "scan": lambda: reverse_scan(flat, flat_decay, max_length=args.length),
    }
    error = (candidates["loop"]().flatten() - candidates["scan"]()).abs().max().item()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(args.repeats):
        for name, function in candidates.items():
            times[name].append(seconds(function, args.device))
    median = {name: statistics.median(samples) for name, samples in times.items()}

    where = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else processor()
    print(f"{platform.platform()}, {where}, {torch.get_num_threads()} threads")
    print(f"python {platform.python_version()}, torch {torch.__version__}, {args.rows} rows of {args.length} actions")
    for name, value in median.items():
        print(f"{name}  median {value * 1e3:8.2f} ms  fastest {min(times[name]) * 1e3:8.2f} ms")
    print(f"largest difference {error:.1e}")
    print(f"scan is {median['loop'] / median['scan']:.1f} times as fast as the loop")


if __name__ == "__main__":
    main()
