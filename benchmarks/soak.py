"""Whether anything grows from step to step: python benchmarks/soak.py [--steps 200].

PPO on arithmetic with a tiny random model; the memory the process holds after the first BLOCK steps beside what it
holds BLOCK steps at a time later. No peer: the case's peer is the run's own beginning.
"""

from __future__ import annotations

import tempfile
from typing import Any

from harness import GIB, Side, arguments, measure
from results import plain, report

BLOCK = 20


class EachBlock:
    """A tracker that ends a repetition after every BLOCK steps."""

    def __init__(self, turn: Any) -> None:
        self._turn = turn

    def log(self, step: int, values: Any) -> None:
        """Where a step is over (alarms are logged as well) and a block with it, end the repetition."""
        if step % BLOCK == 0 and "step_s" in values:
            self._turn(resident_bytes=resident_bytes())

    def close(self) -> None:
        """Nothing is pending."""


def resident_bytes() -> int:
    """What the process holds in memory now (Linux)."""
    import resource
    from pathlib import Path

    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def upslope(turn: Any) -> None:
    """Steps of upslope.train."""
    from upslope import train

    turn()
    train(
        model="tiny-llama",
        task="arithmetic",
        algorithm="ppo",
        run=f"{tempfile.mkdtemp()}/run",
        trackers=["tensorboard", EachBlock(turn)],
        steps=100_000,
        prompts_per_step=8,
        group_size=4,
        max_new_tokens=16,
        checkpoint_every_steps=10,
    )


def main() -> None:
    parser = arguments(__doc__, repeats=1)
    parser.add_argument("--steps", type=int, default=200, help=f"steps after the first {BLOCK}")
    options = parser.parse_args()
    (result,) = measure(
        [Side("upslope", __file__, "upslope")], repeats=1 + options.steps // BLOCK, warmups=0, peers=options.peers
    )
    held = [answer["resident_bytes"] / GIB * 1024 for answer in result.answers]
    first, last = held[0], held[-1]
    case = plain(f"memory held over {options.steps} steps", last, first, unit="MiB", peer_name=f"after {BLOCK} steps")
    case |= {"memory_ratio": last / first, "points": held, "upslope_versions": result.versions}
    report("soak", [case], results=options.results)


if __name__ == "__main__":
    main()
