"""The task at hand, its memory, and events: what tracing asks for.

Those with `xdp` False are for tracing programs only; the others XDP programs may call as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.object import MapType

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine, Pointer
    from xdp_runtime.maps.model import ModelEvents

E2BIG, EFAULT, EINVAL, EOPNOTSUPP = 7, 14, 22, 95


def _interpret_perf_event_output(machine: Machine, ctx: Pointer, map: ModelEvents, flags: int,
                                 data: bytes, size: int) -> int:
    packet, index, length = machine.packet, flags & 0xFFFFFFFF, flags >> 32
    if length > 0xFFFFF:
        return -EINVAL
    if length > packet.length:
        return -EFAULT
    if index == 0xFFFFFFFF:
        index = machine.cpu
    if index >= (map.spec.max_entries or machine.cpus):
        return -E2BIG
    if index != machine.cpu:
        return -EOPNOTSUPP
    map.records.append(data + packet.content()[:length])
    return 0


_EVENTS = frozenset({MapType.PERF_EVENT_ARRAY})
_READ = (Arg.MEM_UNINIT, Arg.SIZE_OR_ZERO, Arg.ANYTHING)

HELPERS = (
    Helper(4, "probe_read", _READ, Ret.SCALAR, gpl_only=True, xdp=False),
    Helper(14, "get_current_pid_tgid", (), Ret.SCALAR),
    Helper(15, "get_current_uid_gid", (), Ret.SCALAR),
    Helper(16, "get_current_comm", (Arg.MEM_UNINIT, Arg.SIZE), Ret.SCALAR),
    Helper(17, "get_cgroup_classid", (), Ret.SCALAR),
    Helper(22, "perf_event_read", (Arg.MAP, Arg.ANYTHING), Ret.SCALAR, maps=_EVENTS,
           gpl_only=True),
    Helper(25, "perf_event_output",
           (Arg.CTX, Arg.MAP, Arg.ANYTHING, Arg.MEM, Arg.SIZE_OR_ZERO), Ret.SCALAR,
           _interpret_perf_event_output, map_op="perf_output", maps=_EVENTS, gpl_only=True),
    Helper(27, "get_stackid", (Arg.CTX, Arg.MAP, Arg.ANYTHING), Ret.SCALAR,
           maps=frozenset({MapType.STACK_TRACE}), gpl_only=True, xdp=False),
    Helper(35, "get_current_task", (), Ret.SCALAR, gpl_only=True),
    Helper(36, "probe_write_user", (Arg.ANYTHING, Arg.MEM, Arg.SIZE), Ret.SCALAR, gpl_only=True,
           xdp=False),
    Helper(37, "current_task_under_cgroup", (Arg.MAP, Arg.ANYTHING), Ret.SCALAR,
           maps=frozenset({MapType.CGROUP_ARRAY})),
    Helper(45, "probe_read_str", _READ, Ret.SCALAR, returns_size=True, gpl_only=True, xdp=False),
    Helper(55, "perf_event_read_value", (Arg.MAP, Arg.ANYTHING, Arg.MEM_UNINIT, Arg.SIZE),
           Ret.SCALAR, maps=_EVENTS, gpl_only=True),
    Helper(58, "override_return", (Arg.CTX, Arg.ANYTHING), Ret.SCALAR, gpl_only=True, xdp=False),
    Helper(67, "get_stack", (Arg.CTX, Arg.MEM_UNINIT, Arg.SIZE_OR_ZERO, Arg.ANYTHING), Ret.SCALAR,
           returns_size=True, gpl_only=True, xdp=False),
    Helper(80, "get_current_cgroup_id", (), Ret.SCALAR),
    Helper(109, "send_signal", (Arg.ANYTHING,), Ret.SCALAR),
    Helper(112, "probe_read_user", _READ, Ret.SCALAR, gpl_only=True),
    Helper(113, "probe_read_kernel", _READ, Ret.SCALAR, gpl_only=True),
    Helper(114, "probe_read_user_str", _READ, Ret.SCALAR, returns_size=True, gpl_only=True),
    Helper(115, "probe_read_kernel_str", _READ, Ret.SCALAR, returns_size=True, gpl_only=True),
    Helper(117, "send_signal_thread", (Arg.ANYTHING,), Ret.SCALAR),
    Helper(120, "get_ns_current_pid_tgid",
           (Arg.ANYTHING, Arg.ANYTHING, Arg.MEM_UNINIT, Arg.SIZE), Ret.SCALAR),
    # as perf_event_output, for programs that trace XDP ones; the packet is an object of the kernel
    Helper(121, "xdp_output",
           (Arg.OBJECT, Arg.MAP, Arg.ANYTHING, Arg.MEM, Arg.SIZE_OR_ZERO), Ret.SCALAR,
           maps=_EVENTS, gpl_only=True, xdp=False),
    Helper(123, "get_current_ancestor_cgroup_id", (Arg.ANYTHING,), Ret.SCALAR),
    Helper(141, "get_task_stack",
           (Arg.OBJECT, Arg.MEM_UNINIT, Arg.SIZE_OR_ZERO, Arg.ANYTHING), Ret.SCALAR,
           returns_size=True),
    Helper(148, "copy_from_user", _READ, Ret.SCALAR, xdp=False),  # may sleep
    Helper(153, "per_cpu_ptr", (Arg.OBJECT, Arg.ANYTHING), Ret.OBJECT),
    Helper(154, "this_cpu_ptr", (Arg.OBJECT,), Ret.OBJECT),
    Helper(156, "task_storage_get", (Arg.MAP, Arg.OBJECT, Arg.ANYTHING, Arg.ANYTHING), Ret.OBJECT,
           maps=frozenset({MapType.TASK_STORAGE})),
    Helper(157, "task_storage_delete", (Arg.MAP, Arg.OBJECT), Ret.SCALAR,
           maps=frozenset({MapType.TASK_STORAGE})),
    Helper(158, "get_current_task_btf", (), Ret.OBJECT, gpl_only=True),
    Helper(173, "get_func_ip", (Arg.CTX,), Ret.SCALAR, gpl_only=True, xdp=False),
    Helper(174, "get_attach_cookie", (Arg.CTX,), Ret.SCALAR, xdp=False),
    Helper(175, "task_pt_regs", (Arg.OBJECT,), Ret.OBJECT, gpl_only=True),
    Helper(176, "get_branch_snapshot", (Arg.MEM_UNINIT, Arg.SIZE_OR_ZERO, Arg.UNCHECKED),
           Ret.SCALAR, gpl_only=True),
    Helper(180, "find_vma",
           (Arg.OBJECT, Arg.ANYTHING, Arg.CALLBACK, Arg.STACK_OR_NULL, Arg.ANYTHING), Ret.SCALAR),
    Helper(183, "get_func_arg", (Arg.CTX, Arg.ANYTHING, Arg.FIXED_UNINIT), Ret.SCALAR,
           sizes=((3, 8),), xdp=False),
    Helper(184, "get_func_ret", (Arg.CTX, Arg.FIXED_UNINIT), Ret.SCALAR, sizes=((2, 8),),
           xdp=False),
    Helper(185, "get_func_arg_cnt", (Arg.CTX,), Ret.SCALAR, xdp=False),
    Helper(191, "copy_from_user_task",
           (Arg.MEM_UNINIT, Arg.SIZE_OR_ZERO, Arg.ANYTHING, Arg.OBJECT, Arg.ANYTHING), Ret.SCALAR,
           gpl_only=True, xdp=False),  # may sleep
    Helper(194, "kptr_xchg", (Arg.OBJECT, Arg.OBJECT), Ret.OBJECT),
    Helper(210, "cgrp_storage_get", (Arg.MAP, Arg.OBJECT, Arg.ANYTHING, Arg.ANYTHING), Ret.OBJECT,
           maps=frozenset({MapType.CGRP_STORAGE})),
    Helper(211, "cgrp_storage_delete", (Arg.MAP, Arg.OBJECT), Ret.SCALAR,
           maps=frozenset({MapType.CGRP_STORAGE})),
)
