"""Sections in which the kernel keeps objects alive or is not interrupted: RCU, preemption, IRQs.

The verifier sees to it that each is left again as in the kernel (verifier/kfuncs.py).  Here they
are nothing: what a program finds in a map stays until the end of its batch anyway, and a process
cannot keep the kernel from interrupting it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xdp_runtime.helper_names import KERNEL_FUNCTIONS
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine, Pointer

Factory = Callable[..., Any]


def _interpret(machine: Machine) -> int:
    return 0


def _interpret_flags(machine: Machine, flags: Pointer) -> int:
    flags.write(bytes(8))
    return 0


def _enter(m: Any) -> Factory:
    def section_edge():  # type: ignore
        return 0

    return section_edge


def _flags(m: Any) -> Factory:
    def section_flags(flags):  # type: ignore
        m.store_u64(flags, 0, 0)
        return 0

    return section_flags


_EDGE = Template("section_edge", _enter, "i64()")
_FLAGS = Template("section_flags", _flags, "i64(ptr)")


def _edge(name: str) -> Helper:
    return Helper(KERNEL_FUNCTIONS[f"bpf_{name}"], name, (), Ret.VOID, _interpret, _EDGE)


HELPERS = (
    _edge("rcu_read_lock"), _edge("rcu_read_unlock"),
    _edge("preempt_disable"), _edge("preempt_enable"),
    Helper(KERNEL_FUNCTIONS["bpf_local_irq_save"], "local_irq_save", (Arg.IRQ_FLAGS_UNINIT,),
           Ret.VOID, _interpret_flags, _FLAGS),
    Helper(KERNEL_FUNCTIONS["bpf_local_irq_restore"], "local_irq_restore", (Arg.IRQ_FLAGS,),
           Ret.VOID, _interpret_flags, _FLAGS),
)
