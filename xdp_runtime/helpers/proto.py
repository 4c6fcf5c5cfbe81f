"""What a helper promises: its number, the kinds of its arguments and its result.

One record serves everyone: the verifier checks calls against it, lowering passes arguments by it,
the interpreter runs `interpret`, and `template` is what is compiled.  A helper that works on a map
has no template of its own: the map's family brings it (maps/family.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from xdp_runtime.template import Template


class Arg(Enum):
    ANYTHING = auto()  # any initialised register, passed as a 64-bit number
    UNCHECKED = auto()  # the same, but may be uninitialised (ARG_DONTCARE): then passed as 0
    CTX = auto()  # the context; templates get the run state (state.py)
    MAP = auto()  # a map constant
    MAP_KEY = auto()  # readable memory of the map's key size
    MAP_VALUE = auto()  # readable memory of the map's value size
    MEM = auto()  # readable memory, its length in the next argument
    MEM_OR_NULL = auto()  # the same, or null with length 0
    MEM_UNINIT = auto()  # memory to be written, its length in the next argument
    TEXT = auto()  # readable memory up to a zero byte; no helper of the kernel for XDP takes it
    SIZE = auto()  # length > 0 of the argument before
    SIZE_OR_ZERO = auto()  # length >= 0 of the argument before


class Ret(Enum):
    SCALAR = auto()
    VOID = auto()  # r0 is unreadable afterwards
    MAP_VALUE_OR_NULL = auto()


@dataclass(frozen=True, slots=True)
class Helper:
    """`id` is enum bpf_func_id.  `map_op` names the operation of the map family that runs.

    Template parameters: CTX and memory are `ptr`, everything else `i64`; MAP is not passed.
    A template whose first parameter is the run state although the helper takes no context says
    `needs_state`.  `interpret(machine, *arguments)` returns the new r0.
    """

    id: int
    name: str
    args: tuple[Arg, ...]
    ret: Ret
    interpret: Callable[..., Any]
    template: Template | None = None
    map_op: str | None = None
    needs_state: bool = False
    changes_packet: bool = False  # packet pointers die, as in bpf_helper_changes_pkt_data()
