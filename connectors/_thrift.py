"""Thrift's compact protocol, as Parquet footers use it: lossless, and parsed only where asked for.

What is not opened stays the bytes it was, so that a footer of a thousand row groups costs one walk over it. The walk
does work in proportion to the bytes that are there, whatever lengths they claim.
Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, cast

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)

# The fields to open, and what to open in them: structs, and lists of structs.
Shape: TypeAlias = Mapping[int, "Shape"]

_MAX_DEPTH = 24  # Parquet's own metadata nests 9 deep
_MAX_VARINT_BYTES = 10


class ThriftError(Exception):
    """The bytes are not what they were said to be; the message goes on after "its footer"."""


class Struct:
    """Field number → (type, value), in the order read; a value is its encoding, or what was opened.

    Booleans have no bytes: their type is their value.
    """

    __slots__ = ("fields",)

    def __init__(self, fields: dict[int, tuple[int, bytes | Struct | list[Struct]]]) -> None:
        self.fields = fields

    def __contains__(self, number: int) -> bool:
        return number in self.fields

    def integer(self, number: int) -> int:
        """The number in field `number`. Raises ThriftError if there is none."""
        kind, value = self._field(number)
        if kind not in (I16, I32, I64):
            raise ThriftError(f"has type {kind} in field {number}, where an integer belongs")
        return _read_integer(cast(bytes, value), 0)[0]

    def binary(self, number: int) -> bytes:
        """The bytes in field `number`. Raises ThriftError if there are none."""
        kind, value = self._field(number)
        if kind != BINARY:
            raise ThriftError(f"has type {kind} in field {number}, where bytes belong")
        _, start = _read_varint(cast(bytes, value), 0)
        return cast(bytes, value)[start:]

    def encoded(self, number: int) -> bytes:
        """The encoding of field `number`, which was not opened. Raises ThriftError if there is none."""
        _, value = self._field(number)
        if not isinstance(value, bytes):
            raise ThriftError(f"was opened in field {number}")
        return value

    def struct(self, number: int) -> Struct:
        """The struct that was opened in field `number`; changing it changes this one. Raises ThriftError if none."""
        _, value = self._field(number)
        if not isinstance(value, Struct):
            raise ThriftError(f"has no struct in field {number}")
        return value

    def structs(self, number: int) -> list[Struct]:
        """The list that was opened in field `number`; changing it changes this one. Raises ThriftError if none."""
        _, value = self._field(number)
        if not isinstance(value, list):
            raise ThriftError(f"has no list of structs in field {number}")
        return value

    def set_integer(self, number: int, value: int, kind: int = I64) -> None:
        """Set a field, in its place if it is there, else behind all fields of lower number."""
        self._set(number, kind, _varint(value << 1 if value >= 0 else ((-value) << 1) - 1))

    def set_binary(self, number: int, value: bytes) -> None:
        """Set a field, in its place if it is there, else behind all fields of lower number."""
        self._set(number, BINARY, _varint(len(value)) + value)

    def set_structs(self, number: int, value: list[Struct]) -> None:
        """Set a field, in its place if it is there, else behind all fields of lower number."""
        self._set(number, LIST, value)

    def _field(self, number: int) -> tuple[int, bytes | Struct | list[Struct]]:
        if number not in self.fields:
            raise ThriftError(f"lacks field {number}")
        return self.fields[number]

    def _set(self, number: int, kind: int, value: bytes | list[Struct]) -> None:
        if number in self.fields:
            self.fields[number] = (self.fields[number][0], value)
            return
        later = {other: self.fields.pop(other) for other in list(self.fields) if other > number}
        self.fields[number] = (kind, value)
        self.fields.update(later)


def loads(data: bytes, shape: Shape) -> Struct:
    """The struct that `data` is, opened as deep as `shape` says. Time and memory in proportion to `data`.

    Raises:
        ThriftError: cut short, too deep, a field twice, an unknown type, or bytes left over.
    """
    try:
        struct, end = _read_struct(data, 0, shape, 0)
    except IndexError:  # every length leads to a position, and the byte there is read before anything else happens
        raise ThriftError("ends in the middle of a value") from None
    if end != len(data):
        raise ThriftError(f"has {len(data) - end} bytes too many")
    return struct


def loads_head(data: bytes, last: int, shape: Shape | None = None) -> Struct:
    """The fields up to number `last` of a struct that keeps them in order; later ones are not looked at.

    `shape` is as for `loads`; without one nothing in it is opened.

    Raises:
        ThriftError: as `loads`.
    """
    try:
        struct, _ = _read_struct(data, 0, shape or {}, 0, last)
    except IndexError:
        raise ThriftError("ends in the middle of a value") from None
    return struct


def list_length(data: bytes, number: int) -> int:
    """How many values the list in field `number` of a struct claims to have; what it has is not looked at.

    Raises:
        ThriftError: there is none, or what comes before it is no struct's.
    """
    at, found = 0, 0
    try:
        while head := data[at]:
            kind, at = head & 15, at + 1
            if head < 16:
                break
            found += head >> 4
            if found == number and kind == LIST:
                return _read_list_head(data, at)[0]
            at = _skip(data, at, kind, 0)
    except IndexError:
        raise ThriftError("ends in the middle of a value") from None
    raise ThriftError(f"lacks a list in field {number}")


Located: TypeAlias = dict[int, tuple[int, int, "Located | None"]]
"""Field number → (its type, where its value begins, what was located in it)."""


def locate(data: bytes, at: int, shape: Shape) -> tuple[Located, int]:
    """The fields that `shape` names of the struct at `at`, and of structs in them; and where the struct ends.

    Several times as fast as `loads`, which makes a value of every field.

    Raises:
        ThriftError: as `loads`, but that the same field stands there twice only if `shape` names it.
    """
    try:
        return _locate(data, at, shape, 0)
    except IndexError:
        raise ThriftError("ends in the middle of a value") from None


def integer_at(data: bytes, kind: int, at: int) -> int:
    """The number of this type that begins there. Raises ThriftError if it is none."""
    if kind not in (I16, I32, I64):
        raise ThriftError(f"has type {kind}, where an integer belongs")
    return _read_integer(data, at)[0]


def list_at(data: bytes, kind: int, at: int) -> tuple[int, int, int]:
    """(Number of values, their type, where they begin) of the list that begins there. Raises ThriftError if none."""
    if kind != LIST:
        raise ThriftError(f"has type {kind}, where a list belongs")
    return _read_list_head(data, at)


def dumps(struct: Struct) -> bytes:
    """The inverse of `loads`, except that field and list headers are written in their shortest form."""
    out = bytearray()
    _write_struct(out, struct)
    return bytes(out)


def _read_struct(data: bytes, at: int, shape: Shape, depth: int, last: int = 2**63) -> tuple[Struct, int]:
    fields: dict[int, tuple[int, bytes | Struct | list[Struct]]] = {}
    number = 0
    while head := data[at]:
        kind, at = head & 15, at + 1
        if head > 15:
            number += head >> 4
        else:
            number, at = _read_integer(data, at)
        if number > last:
            break
        if number in fields:
            raise ThriftError(f"has field {number} twice")
        value: bytes | Struct | list[Struct]
        if number not in shape:
            end = _skip(data, at, kind, depth)
            value, at = data[at:end], end
        elif kind == STRUCT:
            value, at = _read_struct(data, at, shape[number], depth + 1)
        elif kind == LIST:
            value, at = _read_structs(data, at, shape[number], depth + 1)
        else:
            raise ThriftError(f"has type {kind} in field {number}, where a struct or a list belongs")
        fields[number] = (kind, value)
    return Struct(fields), at + 1


def _locate(data: bytes, at: int, shape: Shape, depth: int) -> tuple[Located, int]:
    found: Located = {}
    number = 0
    while head := data[at]:
        kind, at = head & 15, at + 1
        if head > 15:
            number += head >> 4
        else:
            number, at = _read_integer(data, at)
        start, inner = at, None
        if number in shape and shape[number] and kind == STRUCT:
            inner, at = _locate(data, at, shape[number], depth + 1)
        elif I16 <= kind <= I64:
            while data[at] > 127:
                at += 1
            at += 1
        elif kind == BINARY and data[at] < 128:
            at += data[at] + 1
        else:
            at = _skip(data, at, kind, depth)
        if number in shape:
            if number in found:
                raise ThriftError(f"has field {number} twice")
            found[number] = (kind, start, inner)
    return found, at + 1


def _read_structs(data: bytes, at: int, shape: Shape, depth: int) -> tuple[list[Struct], int]:
    num_values, kind, at = _read_list_head(data, at)
    if kind != STRUCT:
        raise ThriftError(f"has a list of type {kind}, where structs belong")
    values = []
    for _ in range(num_values):
        struct, at = _read_struct(data, at, shape, depth)
        values.append(struct)
    return values, at


def _read_list_head(data: bytes, at: int) -> tuple[int, int, int]:
    """(number of values, their type, where they begin)."""
    head = data[at]
    if head < 0xF0:
        return head >> 4, head & 15, at + 1
    num_values, at = _read_varint(data, at + 1)
    return num_values, head & 15, at


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ThriftError(f"has a number of more than {_MAX_VARINT_BYTES} bytes")


def _read_integer(data: bytes, at: int) -> tuple[int, int]:
    unsigned, at = _read_varint(data, at)
    return (unsigned >> 1) ^ -(unsigned & 1), at


def _skip(data: bytes, at: int, kind: int, depth: int) -> int:
    """Where the value that begins at `at` ends."""
    if kind == STRUCT:
        return _skip_struct(data, at, depth + 1)
    if I16 <= kind <= I64:
        while data[at] > 127:
            at += 1
        return at + 1
    if kind == BINARY:
        length, at = _read_varint(data, at)
        return at + length
    if kind in (LIST, SET):
        num_values, kind, at = _read_list_head(data, at)
        return _skip_values(data, at, kind, num_values, depth + 1)
    if kind == MAP:
        return _skip_map(data, at, depth + 1)
    if kind in (TRUE, FALSE):
        return at
    return at + _num_fixed_bytes(kind)


def _skip_struct(data: bytes, at: int, depth: int) -> int:
    if depth > _MAX_DEPTH:
        raise ThriftError(f"nests more than {_MAX_DEPTH} deep")
    while head := data[at]:
        kind, at = head & 15, at + 1
        if head < 16:
            _, at = _read_varint(data, at)
        if I16 <= kind <= I64:  # nine of ten values are integers or short strings
            while data[at] > 127:
                at += 1
            at += 1
        elif kind == BINARY and data[at] < 128:
            at += data[at] + 1
        else:
            at = _skip(data, at, kind, depth)
    return at + 1


def _skip_values(data: bytes, at: int, kind: int, num_values: int, depth: int) -> int:
    if depth > _MAX_DEPTH:
        raise ThriftError(f"nests more than {_MAX_DEPTH} deep")
    if kind in (TRUE, FALSE):
        return at + num_values
    if kind in (BYTE, DOUBLE):
        return at + num_values * _num_fixed_bytes(kind)
    if I16 <= kind <= I64:
        for _ in range(num_values):
            while data[at] > 127:
                at += 1
            at += 1
        return at
    for _ in range(num_values):
        at = _skip(data, at, kind, depth)
    return at


def _skip_map(data: bytes, at: int, depth: int) -> int:
    num_entries, at = _read_varint(data, at)
    if not num_entries:
        return at
    kinds = data[at]
    at += 1
    for _ in range(num_entries):
        if at >= len(data):  # keys and values of fixed width are passed over unread
            raise ThriftError("ends in the middle of a value")
        at = _skip_values(data, at, kinds >> 4, 1, depth)
        at = _skip_values(data, at, kinds & 15, 1, depth)
    return at


def _num_fixed_bytes(kind: int) -> int:
    if kind == BYTE:
        return 1
    if kind == DOUBLE:
        return 8
    raise ThriftError(f"has a value of unknown type {kind}")


def _write_struct(out: bytearray, struct: Struct) -> None:
    last = 0
    for number, (kind, value) in struct.fields.items():
        if 0 < number - last < 16:
            out.append((number - last) << 4 | kind)
        else:
            out.append(kind)
            out += _varint(number << 1 if number >= 0 else ((-number) << 1) - 1)
        last = number
        if isinstance(value, bytes):
            out += value
        elif isinstance(value, Struct):
            _write_struct(out, value)
        else:
            out += bytes([len(value) << 4 | STRUCT]) if len(value) < 15 else b"\xfc" + _varint(len(value))
            for each in value:
                _write_struct(out, each)
    out.append(0)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
