"""Peak memory of an update beside plain Transformers, by rows in a micro-batch: python benchmarks/memory.py.

The sides of update.py, once each at 2, 4, 8 and 16 rows a micro-batch; upslope's budget is that many full rows. What a
whole GRPO step takes, optimiser and sampling included, stands with step_grpo.
"""

from __future__ import annotations

from pathlib import Path

import update
import workloads
from harness import Side, arguments, measure
from results import compare, report

ROWS = (2, 4, 8, 16)


def main() -> None:
    options = arguments(__doc__, repeats=1).parse_args()
    model, script, cases = workloads.folder(), str(Path(update.__file__)), []
    for rows in ROWS:
        sides = [
            Side("upslope", script, "upslope", {"model": model, "micro_batch_tokens": rows * update.LENGTH}),
            Side("Transformers, padded", script, "transformers", {"model": model, "rows_at_once": rows}),
        ]
        results = measure(sides, repeats=options.repeats, peers=options.peers)
        cases.append(compare(f"{rows} rows in a micro-batch", *results, unit="tokens/s"))
    report("memory", cases, results=options.results)


if __name__ == "__main__":
    main()
