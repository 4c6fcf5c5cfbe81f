"""What a helper promises: its number, the kinds of its arguments and its result.

One record serves everyone: the verifier checks calls against it, lowering passes arguments by it,
the interpreter runs `interpret`, and `template` is what is compiled.  A helper that works on a map
has no template of its own: the map's family brings it (maps/family.py).

Prototypes follow the kernel's struct bpf_func_proto, check_func_arg and
check_map_func_compatibility (kernel/bpf/verifier.c of Linux 6.18).  A helper without a template
and without a map operation is known, verified, and cannot run yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from xdp_runtime.helper_names import FIRST_FUNCTION
from xdp_runtime.object import MapType
from xdp_runtime.template import Template


class Arg(Enum):
    ANYTHING = auto()  # any initialised register, passed as a 64-bit number
    NUMBER = auto()  # a number, not a pointer: what kernel functions take
    UNCHECKED = auto()  # the same, but may be uninitialised (ARG_DONTCARE): then passed as 0
    CTX = auto()  # the context; templates get the run state (state.py)
    MAP = auto()  # a map constant
    MAP_KEY = auto()  # readable memory of the map's key size
    MAP_VALUE = auto()  # readable memory of the map's value size
    MAP_VALUE_UNINIT = auto()  # memory of the map's value size, to be written
    MEM = auto()  # readable memory, its length in the next argument
    MEM_OR_NULL = auto()  # the same, or null with length 0
    MEM_UNINIT = auto()  # memory to be written, its length in the next argument
    MEM_UNINIT_OR_NULL = auto()  # the same, or null with length 0
    FIXED = auto()  # readable memory of `Helper.sizes` bytes
    FIXED_UNINIT = auto()  # memory of `Helper.sizes` bytes, to be written
    TEXT = auto()  # readable memory up to a zero byte; no helper of the kernel for XDP takes it
    CONST_TEXT = auto()  # text in a frozen map
    SIZE = auto()  # length > 0 of the argument before
    SIZE_OR_ZERO = auto()  # length >= 0 of the argument before
    CONST_SIZE = auto()  # a constant: the size of what is returned
    BUFFER_OR_NULL = auto()  # memory of CONST_SIZE bytes that may be written, or null
    STRING = auto()  # memory that may hold text; followed in templates by how much there is
    RECORD = auto()  # memory from a ring buffer, released by this call
    SOCKET = auto()  # a socket
    SOCKET_RELEASE = auto()  # a socket, released by this call
    DYNPTR = auto()  # a dynptr on the stack, initialised
    DYNPTR_UNINIT = auto()  # 16 bytes of stack that become a dynptr
    DYNPTR_RELEASE = auto()  # a dynptr of a ring buffer, released by this call
    ITERATOR = auto()  # 8 bytes of stack that are an iterator
    ITERATOR_UNINIT = auto()  # 8 bytes of stack that become one
    IRQ_FLAGS = auto()  # 8 bytes of stack in which bpf_local_irq_save was
    IRQ_FLAGS_UNINIT = auto()  # 8 bytes of stack for it
    SPIN_LOCK = auto()  # a struct bpf_spin_lock in a map value
    TIMER = auto()  # a struct bpf_timer in a map value
    CALLBACK = auto()  # a static function of this program
    STACK_OR_NULL = auto()  # handed to the callback: a pointer into the stack, or null
    OBJECT = auto()  # an object of the kernel (a task, a cgroup): no program here can have one


class Ret(Enum):
    SCALAR = auto()
    VOID = auto()  # r0 is unreadable afterwards
    MAP_VALUE_OR_NULL = auto()
    RECORD_OR_NULL = auto()  # memory of CONST_SIZE bytes, to be released
    DATA_OR_NULL = auto()  # memory of CONST_SIZE bytes, as long as its dynptr lives
    SOCKET_OR_NULL = auto()  # to be released
    OBJECT = auto()  # an object of the kernel: a program that calls this cannot be proven here


@dataclass(frozen=True, slots=True)
class Helper:
    """`id` is enum bpf_func_id.  `map_op` names the operation of the map family that runs.

    Template parameters: CTX and memory are `ptr`, everything else `i64`; MAP is not passed; STRING
    is `ptr, i64`.
    A template whose first parameter is the run state although the helper takes no context says
    `needs_state`.  `interpret(machine, *arguments)` returns the new r0.

    For the verifier: `maps` are the types the MAP argument may have, `sizes` the bytes of FIXED
    arguments by position (from 1); `returns_size`: the result is an error, or at most the length
    given; `below`: the result is less than that; `writes_map` is refused on maps that are
    read-only for programs; `packet`: its memory may lie in the packet; `gpl_only`; `xdp`: XDP
    programs may call it (else only tracing ones).
    """

    id: int
    name: str
    args: tuple[Arg, ...]
    ret: Ret
    interpret: Callable[..., Any] | None = None
    template: Template | None = None
    frags_template: Template | None = None  # what programs of section xdp.frags get instead
    map_op: str | None = None
    needs_state: bool = False
    changes_packet: bool = False  # packet pointers die, as in bpf_helper_changes_pkt_data()
    maps: frozenset[MapType] | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    returns_size: bool = False
    below: Callable[[], int] | None = None
    writes_map: bool = False
    packet: bool = False
    gpl_only: bool = False
    xdp: bool = True

    @property
    def runs(self) -> bool:
        """Is there code for it?  (The tail call, bpf_loop and timers are lowering's.)"""
        return self.template is not None or self.map_op is not None or self.id in (
            TAIL_CALL, LOOP, *TIMERS)

    @property
    def is_function(self) -> bool:
        """A kernel function: its number is an int, in a register whose upper half is zero."""
        return self.id >= FIRST_FUNCTION

    def size_of(self, position: int) -> int:
        """Bytes of the FIXED argument there."""
        return dict(self.sizes)[position]


TAIL_CALL, LOOP = 12, 181
TIMERS = (169, 170, 171, 172)  # init, set_callback, start, cancel
