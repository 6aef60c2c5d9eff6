"""The space that is searched: settings of a recipe with a range or a list each, some only under a choice of another."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from upslope import naming
from upslope.errors import RecipeError
from upslope.recipe import Recipe

_BOUNDS = frozenset({"low", "high", "log"})
_FIXED = ("task", "evaluation", "run", "training.seed")
"""What every trial shares: with other prompts, another metric or other seeds, values could not be compared."""
_PER_END = 4
"""Draws of all other settings that each end of a range, and each choice, is tried with before anything runs."""


@dataclass(frozen=True, slots=True)
class Range:
    """low to high, both included; whole numbers where both are written as such; on a log scale or a linear one."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[float, float]:
        """The outermost values."""
        return self.low, self.high

    def at(self, share: float) -> float:
        """The value at a share in [0, 1] of the way from low to high; a whole number has as much room as any other."""
        low, high = self._scaled
        value = low + share * (high - low)
        value = math.exp(value) if self.log else value
        value = round(value) if self.whole else value
        return min(max(value, self.low), self.high)

    def share(self, value: float) -> float:
        """Where a value lies: the inverse of `at`, but for rounding."""
        low, high = self._scaled
        return ((math.log(value) if self.log else value) - low) / (high - low)

    @property
    def _scaled(self) -> tuple[float, float]:
        margin = 0.5 if self.whole else 0.0
        low, high = self.low - margin, self.high + margin
        return (math.log(low), math.log(high)) if self.log else (low, high)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several values; labels are how they are written, and told apart."""

    values: tuple[Any, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Each value as text."""
        return tuple(_label(value) for value in self.values)

    @property
    def ends(self) -> tuple[Any, ...]:
        """Every value."""
        return self.values


@dataclass(frozen=True, slots=True)
class Parameter:
    """A setting by its full name, with what it may be. when: choice of another parameter -> labels under which it
    exists; all must hold."""

    name: str
    domain: Range | Choice
    when: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def exists(self, values: Mapping[str, Any]) -> bool:
        """Whether it exists beside these values of others."""
        return all(name in values and _label(values[name]) in labels for name, labels in self.when.items())


@dataclass(frozen=True, slots=True)
class Space:
    """Parameters, each after those that it hangs on."""

    parameters: tuple[Parameter, ...]

    @staticmethod
    def read(source: Any) -> Space:
        """The space of a TOML file, of lines such as 'lr = {low = 1e-6, high = 1e-3, log = true}', of a mapping, or of
        several of these together.

        Raises: RecipeError naming the parameter: unknown, named twice, bounds crossed, a condition that never holds.
        """
        tables = [_table(one) for one in ([source] if isinstance(source, str | Path | Mapping) else source)]
        return Space(tuple(_in_order([parameter for table in tables for parameter in _parameters(table)])))

    def values(self, choose: Any) -> dict[str, Any]:
        """The settings of those parameters that exist, as choose(parameter) -> value decides them in turn."""
        chosen: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.exists(chosen):
                chosen[parameter.name] = choose(parameter)
        return chosen

    def draw(self, generator: np.random.Generator) -> dict[str, Any]:
        """Settings at random: each choice and each part of a range alike."""
        return self.values(lambda parameter: drawn(parameter.domain, generator))

    def check(self, recipe: Recipe) -> None:
        """Whether the recipe takes every end of every range, and every choice, with random draws of the others.

        Raises: RecipeError, the recipe's own, with the settings that it refuses.
        """
        generator = np.random.default_rng(0)
        for parameter in self.parameters:
            for end in parameter.domain.ends:
                for _ in range(_PER_END):
                    values = self._around(parameter, end, generator)
                    try:
                        Recipe.resolve(recipe.model_dump(), values)
                    except RecipeError as error:
                        raise RecipeError(f"the space holds {written(values)}, which is refused: {error}") from None

    def to_toml(self) -> str:
        """The space as a file that `read` reads."""
        plain, blocks = "", ""
        for parameter in self.parameters:
            line = f"{parameter.name} = {_inline(_written(parameter.domain))}\n"
            if parameter.when:
                condition = {name: list(labels) for name, labels in parameter.when.items()}
                blocks += f"\n[[when]]\nif = {_inline(condition)}\n{line}"
            else:
                plain += line
        return plain + blocks

    def _around(self, centre: Parameter, end: Any, generator: np.random.Generator) -> dict[str, Any]:
        """A random draw in which one parameter exists and has this value."""
        needed: dict[str, tuple[str, ...]] = {}
        pending = [centre]
        while pending:
            when = pending.pop().when
            needed |= when
            pending += [parameter for parameter in self.parameters if parameter.name in when]

        def choose(parameter: Parameter) -> Any:
            if parameter.name == centre.name:
                return end
            domain = parameter.domain
            if parameter.name in needed and isinstance(domain, Choice):
                domain = Choice(tuple(v for v in domain.values if _label(v) in needed[parameter.name]))
            return drawn(domain, generator)

        return self.values(choose)


def drawn(domain: Range | Choice, generator: np.random.Generator) -> Any:
    """A value at random."""
    if isinstance(domain, Range):
        return domain.at(float(generator.random()))
    return domain.values[int(generator.integers(len(domain.values)))]


def written(values: Mapping[str, Any]) -> str:
    """Settings in one line."""
    shown = ((name, f"{v:.4g}" if isinstance(v, float) else _label(v)) for name, v in values.items())
    return ", ".join(f"{name} = {value}" for name, value in shown)


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _table(source: Any) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    text, where = str(source), f"space {str(source)!r}"
    try:
        if isinstance(source, Path) or "=" not in text:
            text = Path(source).read_text(encoding="utf-8")
        return tomllib.loads(text)
    except OSError as error:
        raise RecipeError(
            f"{where} is neither a file ({error.strerror}) nor a line such as lr = {{low = 1e-6, high = 1e-3}}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{where} is not TOML: {error}") from error


def _parameters(table: Mapping[str, Any]) -> Iterator[Parameter]:
    blocks = table.get("when", [])
    if not isinstance(blocks, Sequence) or not all(isinstance(block, Mapping) for block in blocks):
        raise RecipeError("a condition stands under [[when]], in two brackets")
    for name, given in _flat({key: value for key, value in table.items() if key != "when"}):
        yield _parameter(name, given, {})
    for block in blocks:
        if not isinstance(block.get("if"), Mapping) or not block["if"]:
            raise RecipeError('[[when]] needs its condition: if = { algorithm.preset = "ppo" }')
        conditions = {naming.full_name(Recipe, name): _labels(given) for name, given in _flat(block["if"])}
        for name, given in _flat({key: value for key, value in block.items() if key != "if"}):
            yield _parameter(name, given, conditions)


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names with what they are given: anything but a table of tables and lists, which is a section."""
    for name, given in table.items():
        section = isinstance(given, Mapping) and all(isinstance(inner, Mapping | list) for inner in given.values())
        inside = isinstance(given, Mapping) and not given.keys() & _BOUNDS
        if isinstance(given, Mapping) and given and (section or inside):
            yield from _flat(given, f"{prefix}{name}.")
        else:
            yield prefix + name, given


def _labels(given: Any) -> tuple[str, ...]:
    return tuple(_label(value) for value in (given if isinstance(given, list) else [given]))


def _parameter(name: str, given: Any, when: Mapping[str, tuple[str, ...]]) -> Parameter:
    full = naming.full_name(Recipe, name)
    if full.startswith(tuple(f"{fixed}." for fixed in _FIXED)) or full in _FIXED:
        raise RecipeError(f"{full} cannot be tuned: all trials must be measured alike, on the same prompts and seeds")
    if isinstance(given, Mapping) and given.keys() <= _BOUNDS:
        return Parameter(full, _range(full, given), when)
    if not isinstance(given, list | tuple):
        raise RecipeError(f"{full} is {given!r}, but must be a list of values or {{low = ..., high = ..., log = true}}")
    choice = Choice(tuple(given))
    if len(set(choice.labels)) < max(2, len(given)):
        raise RecipeError(f"{full} must have two values at least, each once, and has {list(choice.labels)}")
    return Parameter(full, choice, when)


def _range(name: str, given: Mapping[str, Any]) -> Range:
    low, high, log = given.get("low"), given.get("high"), given.get("log", False)
    for bound in (low, high):
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
            raise RecipeError(f"{name} needs low and high, both numbers: {dict(given)}")
    assert low is not None
    assert high is not None
    if not isinstance(log, bool):
        raise RecipeError(f"{name}: log is {log!r}, but must be true or false")
    if not low < high:
        raise RecipeError(f"{name} goes from low = {low} to high = {high}: the bounds are crossed, or leave no choice")
    if log and low <= 0:
        raise RecipeError(f"{name} is on a log scale, so low = {low} must be above 0")
    return Range(low, high, log)


def _in_order(parameters: Sequence[Parameter]) -> Iterator[Parameter]:
    """Each after those that it hangs on."""
    if not parameters:
        raise RecipeError("the space is empty: name at least one setting to tune")
    known = {parameter.name: parameter.domain for parameter in parameters}
    for name in known:
        if sum(parameter.name == name for parameter in parameters) > 1:
            raise RecipeError(f"{name} is named twice in the space; give it one range or list")
    for parameter in parameters:
        for name, labels in parameter.when.items():
            domain = known.get(name)
            if not isinstance(domain, Choice):
                raise RecipeError(f"{parameter.name} hangs on {name}, which is no list of values in the space")
            if missing := set(labels) - set(domain.labels):
                raise RecipeError(f"{parameter.name} hangs on {name} = {missing.pop()}, which is not in its list")
    placed: set[str] = set()
    while len(placed) < len(parameters):
        ready = [p for p in parameters if p.name not in placed and p.when.keys() <= placed]
        if not ready:
            rest = ", ".join(p.name for p in parameters if p.name not in placed)
            raise RecipeError(f"conditions go round in a circle: {rest}")
        yield from ready
        placed |= {parameter.name for parameter in ready}


def _written(domain: Range | Choice) -> Any:
    if isinstance(domain, Choice):
        return list(domain.values)
    return {"low": domain.low, "high": domain.high, "log": domain.log}


def _inline(value: Any) -> str:
    """A value as TOML on one line; JSON is TOML but for its tables."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_inline(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
