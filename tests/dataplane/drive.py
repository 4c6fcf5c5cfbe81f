"""Drive a port without a worker loop: its five templates, linked and called one by one.

    driver = Driver(port)
    for packet in driver.receive(64): packet.data = packet.data[14:]; driver.transmit(packet)
    driver.flush()
"""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from dataplane import port as contract
from dataplane.port import BATCH_MAX, SLOT_SIZE_BYTES, Port, PortKind
from xdp_runtime.state import Verdict

_POINTER, _I64 = ctypes.c_void_p, ctypes.c_int64
_C = {"i64": _I64, "ptr": _POINTER}
_code: list[Any] = []


@cache
def calls(kind: PortKind) -> dict[str, Callable[..., int]]:
    """receive, release, transmit, send, flush and chain as functions that release the GIL."""
    from xdp_runtime.compiler import target, templates

    five = {name: getattr(kind, name)
            for name in ("receive", "release", "transmit", "send", "flush", "chain")
            if getattr(kind, name) is not None}
    text = target.pause_definition()
    for name, template in five.items():
        kinds = ", ".join(template.parameters)
        args = ", ".join(f"{p} %a{i}" for i, p in enumerate(template.parameters))
        text += (f"declare i64 @{template.name}({kinds})\n"
                 f"define i64 @drive_{name}({args}) {{\n"
                 f"  %r = call i64 @{template.name}({args})\n  ret i64 %r\n}}\n")
    exports = [f"drive_{name}" for name in five]
    bitcodes = [templates.bitcode(t) for t in templates.closure(five.values())]
    module = target.link(text, bitcodes, exports)
    target.optimise(module)
    code = target.Code(target.emit_object(module), {}, exports)
    found: dict[str, Callable[..., int]] = {}
    for name, template in five.items():
        function = code.function(f"drive_{name}", _I64, *(_C[p] for p in template.parameters))
        found[name] = function
    _code.append(code)  # the functions do not keep it alive
    return found


class Slot:
    """One slot of the batch; `data` is the packet, assigning it moves DATA_END (and bytes)."""

    def __init__(self, address: int) -> None:
        self.address = address

    def _get(self, offset: int, kind: Any = ctypes.c_uint64) -> int:
        return int(kind.from_address(self.address + offset).value)

    def _set(self, offset: int, value: int, kind: Any = ctypes.c_uint64) -> None:
        kind.from_address(self.address + offset).value = value

    @property
    def start(self) -> int:
        return self._get(contract.DATA)

    @property
    def end(self) -> int:
        return self._get(contract.DATA_END)

    @property
    def hard_start(self) -> int:
        return self._get(contract.HARD_START)

    @property
    def frame_end(self) -> int:
        return self._get(contract.FRAME_END)

    @property
    def fragments(self) -> int:
        """How many slots follow that belong to this packet, as `receive` left it."""
        return self._get(contract.FRAGMENTS, ctypes.c_uint32)

    @property
    def data(self) -> bytes:
        return ctypes.string_at(self.start, self.end - self.start)

    def adjust(self, head: int = 0, tail: int = 0) -> None:
        """bpf_xdp_adjust_head and _tail"""
        self._set(contract.DATA, self.start + head)
        self._set(contract.DATA_META, self.start)  # as the loop does for a fresh packet
        self._set(contract.DATA_END, self.end + tail)

    def mark(self, meta: bytes) -> None:
        """bpf_xdp_adjust_meta, and the metadata written"""
        self._set(contract.DATA_META, self.start - len(meta))
        self.poke(-len(meta), meta)

    def poke(self, offset: int, content: bytes) -> None:
        """Write into the packet."""
        ctypes.memmove(self.start + offset, content, len(content))

    def judge(self, verdict: Verdict, target: int = 0) -> None:
        self._set(contract.VERDICT, verdict, ctypes.c_uint32)
        self._set(contract.TARGET, target, ctypes.c_uint32)


class Driver:
    """One queue of a port.  Calls go straight into compiled code."""

    def __init__(self, port: Port, queue: int = 0) -> None:
        self.port, self.q = port, port.queues[queue].address
        self._calls = calls(port.kind)
        self._batch = (ctypes.c_char * (SLOT_SIZE_BYTES * BATCH_MAX))()
        self.batch = ctypes.addressof(self._batch)

    def receive(self, budget: int = 64) -> list[Slot]:
        n = self._calls["receive"](self.q, self.batch, budget)
        assert 0 <= n <= budget
        slots = [Slot(self.batch + i * SLOT_SIZE_BYTES) for i in range(n)]
        for slot in slots:
            slot.adjust()
        return slots

    def release(self, slot: Slot, verdict: Verdict = Verdict.DROP, target: int = 0) -> None:
        slot.judge(verdict, target)
        assert self._calls["release"](self.q, slot.address) == 0

    def transmit(self, slot: Slot) -> bool:
        slot.judge(Verdict.TX)
        return bool(self._calls["transmit"](self.q, slot.address))

    def chain(self, slot: Slot, more: int) -> bool:
        slot.judge(Verdict.TX)
        return bool(self._calls["chain"](self.q, slot.address, more))

    def send(self, frame: bytes) -> bool:
        kept = ctypes.create_string_buffer(frame, len(frame))
        return bool(self._calls["send"](self.q, ctypes.addressof(kept), len(frame)))

    def flush(self) -> None:
        self._calls["flush"](self.q)

    def drain(self, count: int, budget: int = 64, timeout_s: float = 5,
              ethertype: int | None = None) -> list[bytes]:
        """Receive and release until `count` packets came, or no more come; their bytes.  Of this
        type only, where neighbours talk."""
        got: list[bytes] = []
        deadline = time.monotonic() + timeout_s
        while len(got) < count and time.monotonic() < deadline:
            slots = self.receive(min(budget, count - len(got)))
            got += [slot.data for slot in slots
                    if ethertype is None or slot.data[12:14] == ethertype.to_bytes(2, "big")]
            for slot in slots:
                self.release(slot)
            self.flush()
            if not slots:
                if self.port.finished():
                    break
                time.sleep(0.001)
        return got


def frames(count: int, length: int = 64) -> Sequence[bytes]:
    """Distinct Ethernet frames of an experimental type that no stack answers."""
    head = bytes.fromhex("020000000002020000000001") + struct.pack("!H", 0x88B5)
    made = []
    for number in range(count):
        body = (struct.pack("!I", number) + bytes((number + i) & 255 for i in range(length)))
        made.append((head + body)[:length])
    return made
