"""Programs as completions, rewarded by their tests in a sandbox. Imports no torch."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from upslope.errors import RewardError
from upslope.rewards.columns import AsyncRowReward, needing, value_of
from upslope.rewards.sandbox.supervisor import Case, Sandbox

_BLOCK = re.compile(
    r"^[ \t]*```(?:python|python3|py)?[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE | re.IGNORECASE
)


def passes_tests(
    column: str = "tests",
    *,
    entry_point: str = "entry_point",
    prefix: str | None = None,
    share: bool = False,
    timeout_s: float = 2.0,
    memory_mib: float = 512,
    output_kib: float = 1024,
    packages: bool = False,
) -> AsyncRowReward:
    """1 where the completion is a Python program that passes the column's tests, else 0; by `share`, passed / total.

    The program is the completion's last Markdown block of Python, or all of it where there is none, behind the text of
    the column `prefix`. The column holds what `Sandbox.run` takes: a module of tests, a list of asserts; or cases, as
    a list of {"input", "output"} or one {"inputs", "outputs"}; or any of these as JSON. The column `entry_point`, where
    a row has one, says what `candidate` stands for. The other options are the limits of the `Sandbox`. Rows run at the
    same time, one a core. A row whose tests are at fault fails, as does one that is not done within reward.timeout_s.

    Raises: RewardError naming what this machine lacks for a sandbox.
    """
    sandbox = Sandbox(timeout_s=timeout_s, memory_mib=memory_mib, output_kib=output_kib, packages=packages)

    async def passes_tests(completion: str, **columns: Any) -> float:
        program = (str(value_of(columns, prefix)) if prefix else "") + program_in(completion)
        tests = _tests(value_of(columns, column), column)
        candidate = columns.get(entry_point)
        verdict = await asyncio.to_thread(sandbox.run, program, tests, entry_point=candidate, every=share)
        return verdict.passed / verdict.total if share else float(verdict.passed == verdict.total)

    return needing(column, passes_tests)


def program_in(completion: str) -> str:
    """The last block of Python in a text with Markdown blocks, an unfinished one included; else the text itself."""
    blocks: list[str] = _BLOCK.findall(completion)
    return blocks[-1] if blocks else completion


def _tests(value: Any, column: str) -> str | Sequence[str | Case]:
    """The column's tests as the sandbox takes them."""
    if isinstance(value, str):
        code = value
        try:
            value = json.loads(code)
        except ValueError:
            return code
    try:
        if isinstance(value, Mapping):
            pairs = zip(value["inputs"], value["outputs"], strict=True)
            return [Case(_text(given), _text(wanted)) for given, wanted in pairs]
        return [test if isinstance(test, str) else Case(_text(test["input"]), _text(test["output"])) for test in value]
    except (KeyError, TypeError, ValueError):
        raise RewardError(
            f"the column {column!r} holds no tests: give Python code, a list of asserts, a list of "
            '{"input", "output"}, or {"inputs", "outputs"} of one length'
        ) from None


def _text(value: Any) -> str:
    """A text; a list of texts is its lines."""
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    if not isinstance(value, str):
        raise TypeError
    return value
