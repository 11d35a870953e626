"""Typed journal records: declaration of kinds, and validation of records read from JSON.

A record is one JSON object of the journal, an `Entry` its typed form. `sleep_rl.journal.schema`
declares the kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, ClassVar, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

Record = dict[str, Any]

Number = float | None
"""None: not finite (see `nonfinite`), or not available."""
Text = str | None

LARGEST = 2**63
"""Bound of the numbers in a record, far above any count or measurement."""


class InvalidRecord(ValueError):
    """An invalid record; the message is the name of the invalid field."""


def needed(meaning: str, unit: str = "") -> Any:
    """Declare a field that every record of the kind must have."""
    return field(metadata={"meaning": meaning, "unit": unit})


def metric(meaning: str, unit: str = "") -> Any:
    """Declare a field that may be missing, and is then None."""
    return field(default=None, metadata={"meaning": meaning, "unit": unit})


@dataclass(kw_only=True)
class Entry:
    """Fields of every record."""

    kind: ClassVar[str] = ""
    t: float = needed("time of the record", "unix seconds")
    nonfinite: list[str] = field(default_factory=list)
    """Dotted names of the values that were NaN or infinite; they are null."""


@dataclass(kw_only=True)
class Unknown(Entry):
    """A record of a kind that the schema does not declare."""

    kind: str  # type: ignore[misc]


KINDS: dict[str, type[Entry]] = {}
_CHECKS: dict[type[Entry], dict[str, Callable[[Any], bool]]] = {}
_NEEDED: dict[type[Entry], tuple[str, ...]] = {}

Class = TypeVar("Class", bound=type)


@dataclass_transform(kw_only_default=True, field_specifiers=(needed, metric))
def shared_fields(cls: Class) -> Class:
    """Decorate a class of fields that several kinds inherit."""
    return dataclass(kw_only=True)(cls)


@dataclass_transform(kw_only_default=True, field_specifiers=(needed, metric))
def kind(name: str) -> Callable[[Class], Class]:
    """Decorate a class as a dataclass, and register it as the kind `name`."""

    def register(cls: Class) -> Class:
        cls = dataclass(kw_only=True)(cls)
        cls.kind = name
        KINDS[name] = cls
        _compile(cls)
        return cls

    return register


def parse(record: Record) -> Entry:
    """Return the typed form of a record that has a `kind`, without fields unknown to the schema.

    Raises InvalidRecord for a missing field or one of another type.
    """
    cls = KINDS.get(record["kind"], Unknown)
    for name in _NEEDED[cls]:
        if name not in record:
            raise InvalidRecord(name)
    values = {}
    for name, fits in _CHECKS[cls].items():
        if name in record:
            if not fits(record[name]):
                raise InvalidRecord(name)
            values[name] = record[name]
    return cls(**values)


def _compile(cls: type[Entry]) -> None:
    hints = get_type_hints(cls)
    declared = fields(cls)
    _CHECKS[cls] = {f.name: _check(hints[f.name]) for f in declared}
    _NEEDED[cls] = tuple(
        f.name for f in declared if f.default is MISSING and f.default_factory is MISSING
    )


@cache
def _check(hint: Any) -> Callable[[Any], bool]:
    """Return a predicate for values of a type. Numbers must be finite and at most LARGEST; int and
    float accept the same values, since JSON has one type for both.
    """
    if hint is Any:
        return lambda value: True
    if hint is float or hint is int:
        return _is_number
    if isinstance(hint, UnionType):
        options = [_check(option) for option in get_args(hint)]
        return lambda value: any(fits(value) for fits in options)
    if get_origin(hint) is list:
        item = _check(get_args(hint)[0])
        return lambda value: isinstance(value, list) and all(map(item, value))
    if get_origin(hint) is dict:
        item = _check(get_args(hint)[1])
        return lambda value: isinstance(value, dict) and all(map(item, value.values()))
    expected = NoneType if hint is None else hint
    return lambda value: isinstance(value, expected)


def _is_number(value: Any) -> bool:
    # false for NaN
    return isinstance(value, (int, float)) and -LARGEST <= value <= LARGEST


_compile(Unknown)
