"""Numbers and attributes in rtnetlink messages; those that are missing are 0."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from dataplane import netlink as nl

StandIns = Mapping[int, int]  # an interface that stands in for another, and that one
Attrs = dict[int, bytes]


def u32(data: bytes | None) -> int:
    return int.from_bytes(data[:4], "little") if data else 0


def u16(data: bytes | None) -> int:
    return int.from_bytes(data[:2], "little") if data else 0


def s32(data: bytes | None, default: int) -> int:
    return default if data is None else int(struct.unpack_from("=i", data)[0])


def attrs(data: bytes) -> Attrs:
    return dict(nl.parse_attrs(data))
