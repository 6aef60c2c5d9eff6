"""What runs in the tests' own process: the tests, with stand-ins for the program's names.

A stand-in asks the program's process and gives plain data back; whether that is right is decided here, by Python's own
comparisons. Imports the standard library only.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import symtable
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from upslope.rewards.sandbox.messages import Channel, decode, encode
from upslope.rewards.sandbox.program import NAME

_FILE = "tests {}"


class ProgramRaised(Exception):  # noqa: N818 - of the class that the program raised as well, whose name is shown
    """What the program raised, in this line of it; also an instance of the built-in class that it was of."""

    line: int | None = None

    def __str__(self) -> str:
        return str(self.args[0])


class _ProgramLost(BaseException):
    """The program is gone, too slow, or answers nonsense: nothing more can be asked of it."""


class BrokenTests(BaseException):
    """The tests themselves cannot be run, whatever the program."""


class _Program:
    """The program's process, as its tests see it: one question at a time, until the deadline."""

    def __init__(self, channel: Channel, deadline: float) -> None:
        self._channel, self._deadline = channel, deadline
        self.asked = False

    def started(self) -> None:
        """Waits until the program has run from top to bottom. Raises: ProgramRaised where it raised."""
        self._told()

    def ask(self, operation: str, number: int, *arguments: Any, **named: Any) -> Any:
        """What the operation on the program's object of this number gives; arguments change as they did there."""
        self.asked = True
        request = {"operation": operation, "object": number}
        request["arguments"] = [encode(item, _reference) for item in arguments]
        request["named"] = {name: encode(item, _reference) for name, item in named.items()}
        answer = self._told(request)
        for mine, theirs in zip(arguments, answer["arguments"], strict=True):
            _restore(mine, theirs)
        return answer["value"]

    def _told(self, request: Any = None) -> dict[str, Any]:
        try:
            if request is not None:
                self._channel.send(request, self._deadline)
            answer = self._channel.receive(self._deadline)
            if "raised" in answer:
                raised = _exception(answer)
            else:
                return {name: decode(answer[name], self._recall) for name in ("value", "arguments")}
        except TimeoutError:
            raise _ProgramLost("timed out") from None
        except (EOFError, OSError):
            raise _ProgramLost("the program ended before it answered") from None
        except Exception as error:
            raise _ProgramLost(f"the program's answer is no plain data ({error})") from None
        raise raised

    def _recall(self, number: int) -> StandIn:
        return StandIn(self, int(number))


class StandIn:
    """An object of the program's that is no plain data. What is asked of it is asked of the program.

    It equals nothing, not even itself: the program would be its own judge.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, program: _Program, number: int, name: str = "") -> None:
        self.__dict__.update(_of=(program, number), __name__=name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._ask("call", *arguments, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("get", name)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", key)

    def __iter__(self) -> Any:
        return self._ask("iter")

    def __next__(self) -> Any:
        return self._ask("next")

    def __len__(self) -> Any:
        return self._ask("len")

    def __str__(self) -> Any:
        return self._ask("str")

    def __eq__(self, other: object) -> bool:
        raise TypeError("an object of the program's cannot be compared; compare its attributes, or str() of it")

    def _ask(self, operation: str, *arguments: Any, **named: Any) -> Any:
        program, number = self._of
        return program.ask(operation, number, *arguments, **named)


def grade(supervisor: Channel, calls: Channel) -> None:
    """Receive the tests, run them, send {"passed", "total", "why"}, or {"broken"} where the tests are at fault."""
    request = supervisor.receive()
    program = _Program(calls, time.monotonic() + request["timeout_s"])
    try:
        verdict = _verdict(program, request["tests"], request["entry_point"], request["every"])
    except BrokenTests as broken:
        verdict = {"broken": str(broken)}
    except SystemExit:
        verdict = {"broken": "they end their process"}
    supervisor.send(verdict)


def _verdict(program: _Program, sources: list[str], entry_point: str | None, every: bool) -> dict[str, Any]:
    """One source is a module, whose test functions each count; of several each is a test."""
    names = _names_of_program(sources, entry_point)
    codes = [compile(source, _FILE.format(number), "exec") for number, source in enumerate(sources)]
    passed, total, why = 0, len(sources), ""
    try:
        program.started()
        namespace = _namespace(program, names, entry_point)
        tests: list[Callable[[], object]] = [partial(exec, code, namespace) for code in codes]
        if len(tests) == 1:
            tests[0]()
            tests = list(_functions(namespace, entry_point)) or [lambda: None]
            total = len(tests)
        for test in tests:
            try:
                test()
                passed += 1
            except Exception as error:
                why = why or _told(error, sources)
                if not every:
                    break
    except (Exception, _ProgramLost) as error:
        why = why or _told(error, sources)
    if passed and not program.asked:
        raise BrokenTests("they ask nothing of the program")
    return {"passed": passed, "total": total, "why": why}


def _names_of_program(sources: list[str], entry_point: str | None) -> set[str]:
    """What the tests take from the program: the entry point, or without one every name that nobody else defines.

    Raises: BrokenTests where there is an entry point and they use further names: the program would define them.
    """
    used, defined = set[str](), set[str]()
    for source in sources:
        symbols = _names(source)
        used |= symbols[0]
        defined |= symbols[1]
    free = {
        n for n in used - defined if not (hasattr(builtins, n) or n.startswith("__") or n in sys.stdlib_module_names)
    }
    if entry_point is None:
        return free
    entered = {entry_point} if entry_point.isidentifier() else _names(entry_point)[0]
    if strangers := free - entered - {"candidate"}:
        raise BrokenTests(f"they use {min(strangers)!r}, which neither they nor Python define")
    return entered


def _names(source: str) -> tuple[set[str], set[str]]:
    """The global names that a source uses, and those that it defines. Raises: BrokenTests where it is no Python."""
    try:
        table = symtable.symtable(source, "tests", "exec")
    except (SyntaxError, ValueError) as error:
        raise BrokenTests(f"{type(error).__name__}: {error}") from None
    scopes, used = [table], set[str]()
    while scopes:
        scope = scopes.pop()
        scopes += scope.get_children()
        symbols = scope.get_symbols()
        used |= {s.get_name() for s in symbols if s.is_referenced() and (scope is table or s.is_global())}
    return used, {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}


def _namespace(program: _Program, names: set[str], entry_point: str | None) -> dict[str, Any]:
    """The tests' global names before they run: the program's, Python's own modules, and `candidate`."""
    module = StandIn(program, 0, NAME)
    sys.modules[NAME] = module  # type: ignore[assignment]
    namespace: dict[str, Any] = _Names({"__name__": "tests"})
    for name in sorted(names):
        with contextlib.suppress(ProgramRaised):
            namespace[name] = getattr(module, name)
    if entry_point:
        with contextlib.suppress(NameError):
            namespace["candidate"] = eval(entry_point, namespace)
    return namespace


class _Names(dict[str, Any]):
    """Global names, among them those of Python's modules, which are imported here: the program's are the program's."""

    def __missing__(self, name: str) -> Any:
        if name in sys.stdlib_module_names and not hasattr(builtins, name):
            return importlib.import_module(name)
        raise KeyError(name)


def _functions(namespace: dict[str, Any], entry_point: str | None) -> Iterator[Callable[[], object]]:
    """HumanEval's check(candidate), pytest's functions test_*, unittest's test cases."""
    for name, value in list(namespace.items()):
        if isinstance(value, StandIn):
            continue
        if name == "check" and callable(value):
            if entry_point is None:
                raise BrokenTests("they define check(candidate), but no entry_point says what the candidate is")
            yield partial(eval, f"check({entry_point})", namespace)
        elif name.startswith("test") and callable(value):
            yield value
        elif "unittest" in sys.modules and isinstance(value, type):
            unittest = sys.modules["unittest"]
            if issubclass(value, unittest.TestCase):
                yield from (case.debug for case in unittest.defaultTestLoader.loadTestsFromTestCase(value))


def _reference(stranger: Any) -> int:
    if isinstance(stranger, StandIn):
        return int(stranger._of[1])
    raise BrokenTests(f"they pass a {type(stranger).__name__} to the program; pass plain data")


def _restore(mine: Any, theirs: Any) -> None:
    """Gives an argument the contents that the program's copy of it has by now."""
    if type(mine) is not type(theirs):
        return
    if isinstance(mine, list):
        mine[:] = theirs
    elif isinstance(mine, dict | set):
        mine.clear()
        mine.update(theirs)


def _exception(answer: dict[str, Any]) -> ProgramRaised:
    """The program's exception, of the first built-in class among its own."""
    found = [getattr(builtins, name, None) for name in answer["raised"]]
    kinds = [kind for kind in found if isinstance(kind, type) and issubclass(kind, Exception)]
    base = kinds[0] if kinds and not issubclass(kinds[0], ExceptionGroup) else Exception
    made: Any = type(str(answer["raised"][0]), (ProgramRaised, base), {})
    error: ProgramRaised = made.__new__(made)  # some classes want other arguments than a text
    error.args, error.line = (str(answer["text"]),), answer["line"]
    return error


def _told(error: BaseException, sources: list[str]) -> str:
    """One sentence on why a test failed. Raises: BrokenTests where it was no failure of the program's."""
    if isinstance(error, _ProgramLost):
        return str(error)
    if isinstance(error, ImportError) and not isinstance(error, ProgramRaised) and error.name != NAME:
        raise BrokenTests(f"{type(error).__name__}: {error}")
    told = f"{type(error).__name__}: {error}".strip(": ")
    if isinstance(error, ProgramRaised) and error.line is not None:
        told += f", in line {error.line} of the program"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith("tests ") and frame.lineno:
            source = sources[int(frame.filename.removeprefix("tests "))]
            return f"{told}, at {source.splitlines()[frame.lineno - 1].strip()[:200]!r}"
    return told
