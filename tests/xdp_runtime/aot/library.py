"""A shared library made by `xdpu aot`, called as a C program would."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path

FRAME, HEADROOM, XDP_FRAME, TAILROOM = 4096, 256, 40, 320


class Packet(ctypes.Structure):
    """struct xdpu_packet"""

    _fields_ = (
        ("data", ctypes.c_uint64), ("data_end", ctypes.c_uint64), ("data_meta", ctypes.c_uint64),
        ("hard_start", ctypes.c_uint64), ("frame_end", ctypes.c_uint64),
        ("ingress_ifindex", ctypes.c_uint32), ("rx_queue_index", ctypes.c_uint32),
        ("verdict", ctypes.c_uint32), ("redirect_ifindex", ctypes.c_uint32))


class Library:
    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        self.c.xdpu_run.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
        self.c.xdpu_run.restype = None
        self.c.xdpu_map_find.restype = ctypes.c_void_p
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        self.c.xdpu_map_delete.argtypes = [pointer, text]
        self.c.xdpu_map_lookup.argtypes = [pointer, text, text]
        self.c.xdpu_map_next_key.argtypes = [pointer, text, text]
        self.c.xdpu_map_update.argtypes = [pointer, text, text, ctypes.c_uint64]

    def run(self, packets: Sequence[bytes], ifindex: int) -> list[tuple[int, bytes, bytes, int]]:
        """(verdict, bytes, metadata, target of a redirect) of each, in one batch."""
        frames = ctypes.create_string_buffer(FRAME * len(packets))
        rows = (Packet * len(packets))()
        for i, content in enumerate(packets):
            base = ctypes.addressof(frames) + i * FRAME
            ctypes.memmove(base + HEADROOM, content, len(content))
            rows[i] = Packet(base + HEADROOM, base + HEADROOM + len(content), base + HEADROOM,
                             base + XDP_FRAME, base + FRAME - TAILROOM, ifindex, 0, 0, 0)
        self.c.xdpu_run(rows, len(packets), 0)
        return [(row.verdict, ctypes.string_at(row.data, row.data_end - row.data),
                 ctypes.string_at(row.data_meta, row.data - row.data_meta), row.redirect_ifindex)
                for row in rows]

    def find(self, name: str) -> int:
        return int(self.c.xdpu_map_find(name.encode()) or 0)

    def update(self, name: str, key: bytes, value: bytes, flags: int = 0) -> int:
        return int(self.c.xdpu_map_update(self.find(name), key, value, flags))

    def lookup(self, name: str, key: bytes, size_bytes: int) -> bytes | int:
        out = ctypes.create_string_buffer(size_bytes)
        status = int(self.c.xdpu_map_lookup(self.find(name), key, out))
        return status or out.raw

    def delete(self, name: str, key: bytes) -> int:
        return int(self.c.xdpu_map_delete(self.find(name), key))

    def items(self, name: str, key_size: int, value_size: int) -> Mapping[bytes, bytes | int]:
        out: dict[bytes, bytes | int] = {}
        key = None
        while True:
            after = ctypes.create_string_buffer(key_size)
            if self.c.xdpu_map_next_key(self.find(name), key, after):
                return out
            key = after.raw
            out[key] = self.lookup(name, key, value_size)
