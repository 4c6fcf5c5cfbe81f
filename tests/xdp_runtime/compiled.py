"""One template alone, compiled for this machine and called through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

from xdp_runtime import state
from xdp_runtime.compiler import target, templates
from xdp_runtime.template import Template

_C = {"i64": ctypes.c_uint64, "ptr": ctypes.c_void_p}
_alive: list[target.Code] = []


@cache
def compiled(template: Template) -> Callable[..., int]:
    """Takes addresses and numbers; gives an unsigned 64-bit number."""
    types = ", ".join(template.parameters)
    names = ", ".join(f"{kind} %a{n}" for n, kind in enumerate(template.parameters))
    text = (f"declare i64 @{template.name}({types})\n"
            f"define i64 @entry({names}) {{\n"
            f"  %r = call i64 @{template.name}({names})\n  ret i64 %r\n}}\n"
            + target.pause_definition())
    module = target.link(text, map(templates.bitcode, templates.closure([template])), ["entry"])
    target.optimise(module)
    code = target.Code(target.emit_object(module), {}, ["entry"])
    _alive.append(code)
    function: Callable[..., int] = code.function(
        "entry", ctypes.c_uint64, *(_C[kind] for kind in template.parameters))
    return function


class RunState:
    """A run state (state.py) in memory of our own, with a frame and a worker."""

    def __init__(self, frame: bytes, data_meta: int, data: int, data_end: int, hard_start: int,
                 frame_end: int) -> None:
        self.frame = ctypes.create_string_buffer(frame, len(frame))
        self.worker = ctypes.create_string_buffer(state.WORKER_SIZE_BYTES)
        self.memory = ctypes.create_string_buffer(state.STATE_SIZE_BYTES)
        self.base = ctypes.addressof(self.frame)
        edges = {state.DATA_META: data_meta, state.DATA: data, state.DATA_END: data_end,
                 state.HARD_START: hard_start, state.FRAME_END: frame_end}
        for field, offset in edges.items():
            self.put(field, 8, self.base + offset)
        self.put(state.WORKER, 8, ctypes.addressof(self.worker))

    @property
    def address(self) -> int:
        return ctypes.addressof(self.memory)

    def put(self, field: int, size: int, value: int) -> None:
        ctypes.memmove(self.address + field, value.to_bytes(size, "little"), size)

    def get(self, field: int, size: int) -> int:
        return int.from_bytes(self.memory.raw[field : field + size], "little")

    def edge(self, field: int) -> int:
        """An edge of the packet, as an offset in the frame."""
        return self.get(field, 8) - self.base
