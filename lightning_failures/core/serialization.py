"""From frozen records to plain values, as JSON holds them, and back: every value is checked against its type hint.

What a file says is checked here, once, so that nothing further on meets a value of another type than is written there.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from lightning_failures.errors import DataError

Record = TypeVar("Record")


class Codec(NamedTuple):
    """How values of one kind are stored that JSON cannot hold, such as images.

    Attributes:
        encode: Turns a value into plain Python values.
        decode: Turns what ``encode`` returned back into a value; validates it, because files are untrusted.
    """

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


Codecs = Mapping[str, Codec]
"""Codecs by name; a field names its codec in ``metadata={"codec": name}``."""


def read_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        DataError: It is none, or nested too deep.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"no JSON: {str(error)[:200]}") from error


def to_jsonable(value: Any, codecs: Codecs | None = None) -> Any:
    """Turn a dataclass, and what it holds, into plain Python values; numbers that are not finite are None.

    Fields with ``metadata={"codec": name}`` are encoded by ``codecs[name]``.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Point:
    ...     place: tuple[float, float]
    ...     class_name: str = dataclasses.field(default="cat", metadata={"key": "class"})
    >>> to_jsonable(Point((1.5, math.nan)))
    {'place': [1.5, None], 'class': 'cat'}
    """
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {json_key(field): _encoded(getattr(value, field.name), field, codecs) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(inner, codecs) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(inner, codecs) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _encoded(value: Any, field: dataclasses.Field[Any], codecs: Codecs | None) -> Any:
    """Encode the value of a field with its codec if it has one."""
    codec = _codec(field, codecs)
    return to_jsonable(value, codecs) if codec is None or value is None else codec.encode(value)


def _codec(field: dataclasses.Field[Any], codecs: Codecs | None) -> Codec | None:
    name = field.metadata.get("codec")
    return None if name is None or codecs is None else codecs[name]


def json_key(field: dataclasses.Field[Any]) -> str:
    """The key of a field in JSON: its name, or ``metadata={"key": ...}``."""
    return str(field.metadata.get("key", field.name))


def from_jsonable(record: type[Record], data: Any, codecs: Codecs | None = None) -> Record:
    """Build a dataclass from a mapping, and the dataclasses in its fields likewise. Keys that it has not are ignored.

    Lists become tuples, and whole numbers floats, where the hint says so; null is a float that is undefined. A number
    that is not finite is None where that is allowed. Fields with
    ``metadata={"codec": name}`` are decoded by ``codecs[name]``.

    Raises:
        DataError: A field lacks, has a value of another type, is infinite, or a whole number of more than 64 bits; the
            message says where.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Point:
    ...     place: tuple[float, float]
    ...     name: str | None = None
    >>> from_jsonable(Point, {"place": [1, 2.5], "colour": "red"})
    Point(place=(1.0, 2.5), name=None)
    >>> from_jsonable(Point, {"place": [1, "2"]})
    Traceback (most recent call last):
    ...
    lightning_failures.errors.DataError: Point.place[1] must be float, got str
    """
    built: Record = _record(record, data, record.__name__, codecs)
    return built


def _record(record: Any, data: Any, where: str, codecs: Codecs | None) -> Any:
    if not isinstance(data, Mapping):
        raise DataError(f"{where} must be a mapping, got {type(data).__name__}")
    fields = [field for field in dataclasses.fields(record) if field.init]
    needed = {dataclasses.MISSING}
    for field in fields:
        if json_key(field) not in data and {field.default, field.default_factory} == needed:
            raise DataError(f"{where} lacks {json_key(field)!r}")
    hints = _hints(record)
    values = {}
    for field in fields:
        key = json_key(field)
        if key in data:
            codec, inner = _codec(field, codecs), f"{where}.{key}"
            values[field.name] = (
                _value(hints[field.name], data[key], inner, codecs) if codec is None else codec.decode(data[key])
            )
    return record(**values)


def _value(kind: Any, value: Any, where: str, codecs: Codecs | None) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):  # all are "X | None"
        (some,) = (arg for arg in args if arg is not NoneType)
        undefined = value is None or (some is float and isinstance(value, float) and not math.isfinite(value))
        return None if undefined else _value(some, value, where, codecs)
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where, codecs)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) == len(value):
            return tuple(
                _value(k, v, f"{where}[{i}]", codecs) for i, (k, v) in enumerate(zip(kinds, value, strict=True))
            )
    elif origin is dict and isinstance(value, Mapping):
        return {str(key): _value(args[1], v, f"{where}[{str(key)[:80]!r}]", codecs) for key, v in value.items()}
    elif kind is float and (value is None or isinstance(value, int | float)) and not isinstance(value, bool):
        try:
            number = math.nan if value is None else float(value)
        except OverflowError as error:
            raise DataError(f"{where} is too large") from error
        if math.isinf(number):
            raise DataError(f"{where} must be finite, got {number}")
        return number
    elif origin is None and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        if kind is int and not -(2**63) <= value < 2**63:
            raise DataError(f"{where} must be a number of 64 bits")
        return value
    name = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise DataError(f"{where} must be {name}, got {type(value).__name__}")


@functools.cache
def _hints(record: Any) -> dict[str, Any]:
    return get_type_hints(record)
