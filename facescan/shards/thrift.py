"""Structs in Thrift's compact protocol, as Parquet's footers and page headers are written.

Stricter than the reader that Arrow has: what two readers could take for different things (a field
that comes twice, a number larger than its type) is malformed. Whatever is accepted here means the
same to Arrow.
"""

from typing import Union

Value = Union[int, bytes, "Struct", list["Value"], None]
"""None stands for numbers with a fraction, which nobody asks for."""

Struct = dict[int, Value]
"""By field number."""

_MAX_VALUES = 2_000_000
_MAX_DEPTH = 16
_BOOLEANS = (1, 2)  # true, false; in lists a byte follows
_BITS = {4: 16, 5: 32, 6: 64}
_BYTE, _DOUBLE, _BYTES, _LIST, _STRUCT = 3, 7, 8, 9, 12


def struct(data: bytes) -> tuple[Struct, int]:
    """The struct that `data` begins with, and where it ends.

    Raises:
        IndexError: it ends behind `data`.
        ValueError: malformed, or more than two million values.
    """
    reader = _Reader(data)
    return reader.struct(_MAX_DEPTH), reader.at


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0
        self._values = 0

    def struct(self, depth: int) -> Struct:
        fields: Struct = {}
        number = 0
        while first := self._byte():
            number = number + (first >> 4) if first >> 4 else self._integer(16)
            if number in fields or not 0 < number < 2**15:
                raise ValueError(f"field {number} twice or out of range")
            kind = first & 0x0F
            fields[number] = int(kind == 1) if kind in _BOOLEANS else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Value:
        self._values += 1
        if self._values > _MAX_VALUES or not depth:
            raise ValueError(f"more than {_MAX_VALUES:,} values, or structs {_MAX_DEPTH} deep")
        if kind in _BITS:
            return self._integer(_BITS[kind])
        if kind == _BYTES:
            return self._bytes(self._varint())
        if kind == _STRUCT:
            return self.struct(depth - 1)
        if kind == _LIST:
            return self._list(depth - 1)
        if kind == _BYTE or kind in _BOOLEANS:
            return self._byte()
        if kind == _DOUBLE:
            self._bytes(8)
            return None
        raise ValueError(f"type {kind}")

    def _list(self, depth: int) -> list[Value]:
        first = self._byte()
        size = self._varint() if first >> 4 == 15 else first >> 4
        return [self._value(first & 0x0F, depth) for _ in range(size)]

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _bytes(self, length: int) -> bytes:
        self.at += length
        if self.at > len(self._data):
            raise IndexError
        return self._data[self.at - length : self.at]

    def _integer(self, bits: int) -> int:
        value = self._varint()
        if value >> bits:
            raise ValueError(f"a number of more than {bits} bits")
        return value >> 1 ^ -(value & 1)

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")
        return value | byte << shift
