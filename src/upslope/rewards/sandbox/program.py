"""What runs in a program's own process: the program, and nothing that knows what it should answer.

Imports the standard library only.
"""

from __future__ import annotations

import operator
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from upslope.rewards.sandbox.messages import Channel, decode, encode

NAME = "solution"
"""The module that the program is, so that its tests can import it by a name."""

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *arguments, **named: function(*arguments, **named),
    "get": getattr,
    "item": operator.getitem,
    "iter": iter,
    "next": next,
    "len": len,
    "str": str,
}


def answer_calls(source: Channel, calls: Channel) -> None:
    """Run the program, then do to its objects what its tests ask for, and answer. Object 0 is its module."""
    module = _module(NAME)
    objects: list[Any] = [module]
    try:
        exec(compile(source.receive(), f"{NAME}.py", "exec"), module.__dict__)
        calls.send({"value": None, "arguments": []})
    except BaseException as error:
        calls.send(_raised(error))
        return
    while True:
        request = calls.receive()
        try:
            answer = _done(request, objects)
        except BaseException as error:
            answer = _raised(error)
        calls.send(answer)


def run_script(source: Channel) -> None:
    """Run the program as a script: it reads standard input and writes standard output."""
    code = source.receive()
    sys.argv = [f"{NAME}.py"]
    exec(compile(code, f"{NAME}.py", "exec"), _module("__main__").__dict__)


def _module(name: str) -> ModuleType:
    """An empty module under this name, where dataclasses and others look for it."""
    module = ModuleType(name)
    sys.modules[name] = module
    return module


def _done(request: dict[str, Any], objects: list[Any]) -> dict[str, Any]:
    """What the operation gave; with it the arguments as they are now, since some functions work in place."""
    arguments = [decode(item, objects.__getitem__) for item in request["arguments"]]
    named = {name: decode(item, objects.__getitem__) for name, item in request["named"].items()}
    value = _OPERATIONS[request["operation"]](objects[request["object"]], *arguments, **named)

    def refer(stranger: Any) -> int:
        objects.append(stranger)
        return len(objects) - 1

    after = [encode(item, refer) if isinstance(item, list | dict | set) else None for item in arguments]
    return {"value": encode(value, refer), "arguments": after}


def _raised(error: BaseException) -> dict[str, Any]:
    """An exception as the names of its classes and its text."""
    lines = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in reversed(lines) if frame.filename == f"{NAME}.py"), None)
    names = [kind.__name__ for kind in type(error).__mro__]
    return {"raised": names, "text": str(error)[:1000], "line": line}
