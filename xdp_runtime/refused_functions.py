"""Kernel functions (kfuncs) that XDP programs may call in the kernel and not here, and why.

A program is refused where a path of it leads to one.  Those that run are in helper_names.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

TASK = "the kernel answers for the task that a softirq happened to interrupt; a worker has none"
CGROUP = "packets here belong to no task, so to no cgroup"
KERNEL_MEMORY = "the memory of the kernel cannot be read from a process"
USER_MEMORY = "a packet does not come from a process whose memory could be read"
_ALLOCATED = ("objects that a program allocates, with their lists, trees and counts, are the "
              "kernel's allocator's")
_TYPES = "what it gives has a type of the kernel's, whose memory a process cannot read"
_ANY_ADDRESS = "it reads from any address, which nobody can prove"
_CONNECTIONS = "connection tracking is the kernel's, and its entries are its objects"
_XFRM = "the state of IPsec is an object of the kernel, which no process can hold"
_KEYS = "key rings are the kernel's"
_CRYPTO = "the cipher's context is an object of the kernel, made by a program of another type"
_RES_LOCK = "locks that find deadlocks are not there yet; bpf_spin_lock is"
_WORK = "work queues run in the kernel, where a callback may sleep; bpf_timer runs"
_STREAM = "a program's streams are read through the kernel; bpf_trace_vprintk runs"
_COUNT = "the elements of a hash are not counted here; `xdpu map` and Map.items go through them"
_THROW = "exceptions are not there yet; return a verdict instead"
_TRAP = "the compiler put it where a variable is used before it has a value"
_TEST = "it is there for the kernel's own tests"

_FUNCTIONS = {
    TASK: """task_acquire task_from_pid task_from_vpid task_get_cgroup1 task_release
        task_under_cgroup task_work_schedule_resume_impl task_work_schedule_signal_impl
        send_signal_task iter_task_new iter_task_next iter_task_destroy iter_task_vma_new
        iter_task_vma_next iter_task_vma_destroy""",
    CGROUP: """cgroup_acquire cgroup_ancestor cgroup_from_id cgroup_read_xattr cgroup_release
        iter_css_new iter_css_next iter_css_destroy iter_css_task_new iter_css_task_next
        iter_css_task_destroy""",
    KERNEL_MEMORY: """probe_read_kernel_dynptr probe_read_kernel_str_dynptr get_kmem_cache""",
    USER_MEMORY: "probe_read_user_dynptr probe_read_user_str_dynptr",
    _ALLOCATED: """obj_new_impl obj_drop_impl percpu_obj_new_impl percpu_obj_drop_impl
        refcount_acquire_impl list_front list_back list_push_front_impl list_push_back_impl
        list_pop_front list_pop_back rbtree_add_impl rbtree_first rbtree_left rbtree_right
        rbtree_root rbtree_remove""",
    _TYPES: "cast_to_kern_ctx rdonly_cast",
    _ANY_ADDRESS: "iter_bits_new iter_bits_next iter_bits_destroy",
    _CONNECTIONS: """xdp_ct_alloc xdp_ct_lookup ct_insert_entry ct_release ct_set_timeout
        ct_change_timeout ct_set_status ct_change_status ct_set_nat_info skb_ct_alloc
        skb_ct_lookup""",
    _XFRM: "xdp_get_xfrm_state xdp_xfrm_state_release",
    _KEYS: "lookup_system_key key_put",
    _CRYPTO: "crypto_encrypt crypto_decrypt",
    _RES_LOCK: """res_spin_lock res_spin_unlock res_spin_lock_irqsave
        res_spin_unlock_irqrestore""",
    _WORK: "wq_init wq_set_callback_impl wq_start",
    _STREAM: "stream_vprintk_impl",
    _COUNT: "map_sum_elem_count",
    _THROW: "throw",
    _TEST: "modify_return_test_tp",
}

REFUSED_FUNCTIONS: Mapping[str, str] = MappingProxyType({
    "__bpf_trap": _TRAP,
    **{f"bpf_{name}": reason for reason, names in _FUNCTIONS.items() for name in names.split()}})

# Nor may an XDP program in the kernel call these.
ARENA_FUNCTIONS: Mapping[str, str] = MappingProxyType(dict.fromkeys(
    ("bpf_arena_alloc_pages", "bpf_arena_free_pages", "bpf_arena_reserve_pages"),
    "it is for programs that may sleep, an XDP program may not; user space makes the pages: "
    "Map.pages"))
