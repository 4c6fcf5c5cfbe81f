"""bpf_trace_printk and bpf_trace_vprintk: text from a program, into a ring in the worker's memory.

What a format may say is in printf.py.  The result is the length of the whole text, as in the
kernel, even where the record holds only its beginning: what is behind a zero byte (of %c) is shown
nowhere.  The worker alone writes the ring; whoever
reads it is never waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xdp_runtime import state
from xdp_runtime.helpers import printf
from xdp_runtime.helpers.printf import EINVAL
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine

Factory = Callable[..., Any]
TEXT_BYTES = state.TRACE_RECORD_BYTES - 8
_RECORD, _RECORDS = state.TRACE_RECORD_BYTES, state.TRACE_RECORDS
_RING_BYTES = _RECORD * _RECORDS
_BUFFER = 1024  # MAX_BPRINTF_BUF
_ROOM = printf.ROOM_BYTES
_ARGUMENTS_MAX_BYTES = printf.ARGUMENTS_MAX * 8


def words_of(data: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8))


def _interpret_trace_printk(machine: Machine, text: bytes, size: int, *arguments: int) -> int:
    made = printf.prepare(text, arguments, machine.read_memory)
    if isinstance(made, int):
        return made
    message = printf.render(_BUFFER, text, made)
    shown = message[:TEXT_BYTES].partition(b"\0")[0]
    machine.trace.append(shown.decode(errors="replace"))
    return len(message)


def _interpret_trace_vprintk(machine: Machine, text: bytes, size: int, data: bytes,
                             data_size: int) -> int:
    if data_size % 8 or data_size > _ARGUMENTS_MAX_BYTES:
        return -EINVAL
    return _interpret_trace_printk(machine, text, size, *words_of(data))


def _trace_write(m: Any) -> Factory:
    prepare, render = m.extern(printf.PREPARE), m.extern(printf.RENDER)

    def trace_write(run, text, size, arguments, count):  # type: ignore
        worker = m.load_ptr(run, state.WORKER)
        made = m.gep(m.alloca(_ROOM), 0)
        error = prepare(text, size, arguments, count, made)
        if error < 0:
            m.store_u64(worker, state.W_TRACE_LOST, m.load_u64(worker, state.W_TRACE_LOST) + 1)
            return error
        message = m.gep(m.alloca(_BUFFER), 0)
        length = render(message, _BUFFER, text, made)
        head = m.load_u64(worker, state.W_TRACE_HEAD)
        record = m.inside(worker, state.W_TRACE_RING + (head & (_RING_BYTES - 1)))
        most = m.smaller(length, TEXT_BYTES)
        shown = 0
        while shown < most and m.load_u8(message, shown) != 0:
            shown += 1
        m.copy(m.inside(record, 8), message, shown)
        m.store_u64(record, 0, shown)
        m.atomic_add_u64(worker, state.W_TRACE_HEAD, _RECORD)  # releases the record
        return length

    return trace_write


_WRITE = Template("trace_write", _trace_write, "i64(ptr, ptr, i64, ptr, i64)",
                  (printf.PREPARE, printf.RENDER), inline=False)


def _trace_printk(m: Any) -> Factory:
    write = m.extern(_WRITE)

    def trace_printk(run, text, size, first, second, third):  # type: ignore
        arguments = m.gep(m.alloca(24), 0)
        m.store_u64(arguments, 0, first)
        m.store_u64(arguments, 8, second)
        m.store_u64(arguments, 16, third)
        return write(run, text, size, arguments, 3)

    return trace_printk


def _trace_vprintk(m: Any) -> Factory:
    write = m.extern(_WRITE)

    def trace_vprintk(run, text, size, data, data_size):  # type: ignore
        data_size = data_size & 0xFFFFFFFF
        if data_size & 7 != 0 or data_size > _ARGUMENTS_MAX_BYTES:
            return -EINVAL
        return write(run, text, size, data, data_size >> 3)

    return trace_vprintk


# --- reading -------------------------------------------------------------------------------------
def read_trace(worker_memory: memoryview, seen: int) -> tuple[list[str], int]:
    """Messages written since `seen` (0 at first), and what to pass as `seen` next time.

    What the worker overwrote before it was read is missing; a record that may have been rewritten
    while it was copied is left out.
    """
    first = max(seen, _head(worker_memory) - _RING_BYTES)
    copies = [(at, bytes(_record(worker_memory, at)))
              for at in range(first, _head(worker_memory), _RECORD)]
    new_seen = copies[-1][0] + _RECORD if copies else max(seen, first)
    intact = _head(worker_memory) - _RING_BYTES  # the record at `intact` may be in the making
    texts = [copy[8 : 8 + int.from_bytes(copy[:8], "little")].decode(errors="replace")
             for at, copy in copies if at > intact or intact < 0]
    return texts, new_seen


def _head(memory: memoryview) -> int:
    return int.from_bytes(memory[state.W_TRACE_HEAD : state.W_TRACE_HEAD + 8], "little")


def _record(memory: memoryview, at: int) -> memoryview:
    start = state.W_TRACE_RING + at % _RING_BYTES
    return memory[start : start + _RECORD]


HELPERS = (
    Helper(6, "trace_printk",
           (Arg.MEM, Arg.SIZE, Arg.UNCHECKED, Arg.UNCHECKED, Arg.UNCHECKED), Ret.SCALAR,
           _interpret_trace_printk,
           Template("trace_printk", _trace_printk, "i64(ptr, ptr, i64, i64, i64, i64)", (_WRITE,),
                    inline=False), needs_state=True, gpl_only=True),
    Helper(177, "trace_vprintk", (Arg.MEM, Arg.SIZE, Arg.MEM_OR_NULL, Arg.SIZE_OR_ZERO), Ret.SCALAR,
           _interpret_trace_vprintk,
           Template("trace_vprintk", _trace_vprintk, "i64(ptr, ptr, i64, ptr, i64)", (_WRITE,),
                    inline=False), needs_state=True, gpl_only=True),
)
