"""Convert frozen records to JSON values and back, checked against type hints.

The content of a file is checked here, once, so that all other code can rely on the annotated types.
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
    """Storage of values of one kind that JSON cannot hold, such as images.

    Attributes:
        encode: Converts a value to JSON values.
        decode: Converts the output of ``encode`` back to a value; validates it, because files are untrusted.
    """

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


Codecs = Mapping[str, Codec]
"""Codecs by name; a field names its codec in ``metadata={"codec": name}``."""


def read_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        DataError: The text is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {str(error)[:200]}") from error


def json_lines(values: Mapping[str, Any]) -> str:
    """Return a mapping as JSON text with a line for each key, and for each record in a list of records.

    Indented throughout, it would be written by the slow encoder of the standard library.

    >>> print(json_lines({"examples": 2, "classes": [{"class": "cat"}, {"class": "dog"}]}), end="")
    {
     "examples": 2,
     "classes": [
      {"class": "cat"},
      {"class": "dog"}
     ]
    }
    """
    dumps = functools.partial(json.dumps, allow_nan=False, ensure_ascii=False)

    def text(value: Any) -> str:
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            return "[\n  " + ",\n  ".join(map(dumps, value)) + "\n ]"
        return dumps(value)

    return "{\n " + ",\n ".join(f"{dumps(key)}: {text(value)}" for key, value in values.items()) + "\n}\n"


def to_jsonable(value: Any, codecs: Codecs | None = None) -> Any:
    """Convert a dataclass and its fields to JSON values; numbers that are not finite become None.

    Fields with ``metadata={"codec": name}`` are encoded by ``codecs[name]``; fields with
    ``metadata={"omit_none": True}`` are left out if they are None.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Point:
    ...     place: tuple[float, float]
    ...     class_name: str = dataclasses.field(default="cat", metadata={"key": "class"})
    >>> to_jsonable(Point((1.5, math.nan)))
    {'place': [1.5, None], 'class': 'cat'}
    """
    kind: Any = type(value)
    if kind in (str, int, bool, NoneType):
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value):
        encoded = {}
        for field, key, omit_none in _fields(kind):
            inner = getattr(value, field.name)
            if not (omit_none and inner is None):
                encoded[key] = _encoded(inner, field, codecs)
        return encoded
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(inner, codecs) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(inner, codecs) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


@functools.cache
def _fields(record: type) -> tuple[tuple[dataclasses.Field[Any], str, bool], ...]:
    """Return the fields of a dataclass, their JSON keys, and whether they are left out if they are None."""
    fields = dataclasses.fields(record)
    return tuple((field, json_key(field), bool(field.metadata.get("omit_none"))) for field in fields)


def _encoded(value: Any, field: dataclasses.Field[Any], codecs: Codecs | None) -> Any:
    """Encode the value of a field, with its codec if it has one."""
    codec = _codec(field, codecs)
    return to_jsonable(value, codecs) if codec is None or value is None else codec.encode(value)


def _codec(field: dataclasses.Field[Any], codecs: Codecs | None) -> Codec | None:
    name = field.metadata.get("codec")
    return None if name is None or codecs is None else codecs[name]


def json_key(field: dataclasses.Field[Any]) -> str:
    """Return the JSON key of a field: its name, or ``metadata={"key": ...}``."""
    return str(field.metadata.get("key", field.name))


def from_jsonable(record: type[Record], data: Any, codecs: Codecs | None = None) -> Record:
    """Build a dataclass, with the dataclasses in its fields, from JSON values. Unknown keys are ignored.

    Where the type hint requires it, lists become tuples and integers become floats. For a float, null means undefined
    (NaN); for an optional float, a number that is not finite becomes None. Fields with ``metadata={"codec": name}`` are
    decoded by ``codecs[name]``.

    Args:
        record: The dataclass.
        data: The JSON values.
        codecs: Codecs by name.

    Raises:
        DataError: A field is missing, has a value of another type, is infinite, or is an integer of more than 64 bits;
            the message names the field.

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
    """Build a dataclass from a mapping; ``where`` names its position in messages."""
    if not isinstance(data, Mapping):
        raise DataError(f"{where} must be a mapping, got {type(data).__name__}")
    fields = [field for field in dataclasses.fields(record) if field.init]
    for field in fields:
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and json_key(field) not in data:
            raise DataError(f"{where} lacks {json_key(field)!r}")

    hints = _hints(record)
    values: dict[str, Any] = {}
    for field in fields:
        key = json_key(field)
        if key not in data:
            continue
        codec = _codec(field, codecs)
        if codec is None:
            values[field.name] = _value(hints[field.name], data[key], f"{where}.{key}", codecs)
        else:
            values[field.name] = codec.decode(data[key])
    return record(**values)


def _value(kind: Any, value: Any, where: str, codecs: Codecs | None) -> Any:
    """Convert a value to a type hint; ``where`` names its position in messages."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):  # always "X | None"
        (inner,) = (arg for arg in args if arg is not NoneType)
        undefined = value is None or (inner is float and isinstance(value, float) and not math.isfinite(value))
        return None if undefined else _value(inner, value, where, codecs)
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where, codecs)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_value(inner, item, f"{where}[{i}]", codecs) for i, (inner, item) in pairs)
    elif origin is dict and isinstance(value, Mapping):
        return {str(key): _value(args[1], v, f"{where}[{str(key)[:80]!r}]", codecs) for key, v in value.items()}
    elif origin is None:
        return _scalar(kind, value, where)
    raise DataError(f"{where} must be {kind}, got {type(value).__name__}")


def _scalar(kind: Any, value: Any, where: str) -> Any:
    """Check a value of a plain type; null is an undefined float (NaN)."""
    is_bool = isinstance(value, bool)
    if kind is float and value is None:
        return math.nan
    if kind is float and isinstance(value, int | float) and not is_bool:
        try:
            number = float(value)
        except OverflowError as error:
            raise DataError(f"{where} is too large") from error
        if math.isinf(number):
            raise DataError(f"{where} must be finite, got {number}")
        return number
    if isinstance(value, kind) and (kind is bool or not is_bool):
        if kind is int and not -(2**63) <= value < 2**63:
            raise DataError(f"{where} must be an integer of at most 64 bits")
        return value
    raise DataError(f"{where} must be {getattr(kind, '__name__', kind)}, got {type(value).__name__}")


@functools.cache
def _hints(record: Any) -> dict[str, Any]:
    return get_type_hints(record)
