"""Injects the table of faults and says what was survived; ends with one line for scripts, and with status 1 unless
every fault was survived and every bad input refused.

    python -m faults                               # everything; results.json and BENCHMARKS.md are brought up to date
    python -m faults --fault sigterm disk-full     # some rows
    python -m faults --fault sigterm --case 'save 2' --seed 0
    python -m faults --each 2                      # two injections of every row
"""

from __future__ import annotations

import argparse
import sys

import torch

from faults import page, trials
from faults.table import TABLE
from faults.verdict import Fault, Verdict


def main() -> int:
    """The command; returns its exit status."""
    given = _arguments()
    torch.set_num_threads(1)  # a pool of threads would not survive the forks
    totals = {False: [0, 0], True: [0, 0]}
    print(f"seed {given.seed}", flush=True)
    with trials.runs() as places:
        for fault in TABLE:
            if given.fault and fault.name not in given.fault:
                continue
            cases = _chosen(fault, given)
            verdicts = [_told(fault, v, given.seed) for v in trials.inject(fault, cases, given.seed, places)]
            _report(fault, verdicts)
            if cases == fault.cases:
                page.keep(fault, verdicts, given.seed)
            totals[fault.refused][0] += sum(verdict.problem is None for verdict in verdicts)
            totals[fault.refused][1] += len(verdicts)
    (survived, injected), (refused, tried) = totals[False], totals[True]
    print(f"faults: survived={survived} injected={injected} refused={refused} tried={tried}")
    return int((survived, refused) != (injected, tried))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--fault", nargs="+", choices=[fault.name for fault in TABLE], help="rows of the table")
    parser.add_argument("--case", help="one case of one row")
    parser.add_argument("--each", type=int, help="so many cases of every row, evenly spread")
    parser.add_argument("--seed", type=int, default=0, help="decides every random choice")
    given = parser.parse_args()
    if given.case is not None and len(given.fault or ()) != 1:
        parser.error("--case needs --fault with one row")
    return given


def _chosen(fault: Fault, given: argparse.Namespace) -> tuple[str, ...]:
    if given.case is not None:
        if given.case not in fault.cases:
            sys.exit(f"{fault.name} has no case {given.case!r}, only: {', '.join(fault.cases)}")
        return (given.case,)
    count = min(given.each or len(fault.cases), len(fault.cases))
    return tuple(fault.cases[number * len(fault.cases) // count] for number in range(count))


def _told(fault: Fault, verdict: Verdict, seed: int) -> Verdict:
    """The verdict, and what to do about it, said as soon as it is known: a long row may be cut off."""
    if verdict.problem is not None:
        print(f"  not {_word(fault)}: {verdict.case}: {verdict.problem}")
        print(f"    again: make faults FAULT={fault.name} CASE='{verdict.case}' SEED={seed}", flush=True)
    return verdict


def _report(fault: Fault, verdicts: list[Verdict]) -> None:
    good, seconds = sum(verdict.problem is None for verdict in verdicts), sum(v.seconds for v in verdicts)
    print(f"{fault.name:<20} n={len(verdicts):<3} {_word(fault)}={good:<3} {seconds:6.1f} s", flush=True)


def _word(fault: Fault) -> str:
    return "refused" if fault.refused else "survived"


if __name__ == "__main__":
    sys.exit(main())
