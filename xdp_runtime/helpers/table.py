"""docs/helpers.md, from the records: python -m xdp_runtime.helpers.table > docs/helpers.md"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from xdp_runtime import state
from xdp_runtime.helper_names import FIRST_FUNCTION, KERNEL_FUNCTIONS
from xdp_runtime.helpers import HELPERS
from xdp_runtime.helpers.proto import Helper
from xdp_runtime.helpers.refused import REFUSED
from xdp_runtime.refused_functions import REFUSED_FUNCTIONS

_HEAD = """# Helpers

What Linux 6.18 lets an XDP program call. All are verified as the kernel does; what their state
says:

- **runs**: in the interpreter and compiled; what is known to be missing is in the last column.
- **verified only**: there is no code for it yet; a program that calls it is refused when it is
  loaded.
- **refused**: it cannot exist outside the kernel; a program that calls it is refused when it is
  loaded, with the reason.

"GPL" marks those for programs under that licence alone. This page is written from the records:
`python -m xdp_runtime.helpers.table > docs/helpers.md`. A test compares, and another asks the
kernel's verifier which helpers it allows.
"""

_FORMS = ("`%p` and `%pK` print the number, not a hash of it; `%pS`, `%ps` and `%pB` know no "
          "symbols; `%s`, `%pks`, `%pI4` and their like read this process, and nothing is "
          "behind a `%pus`")
LIMITS = {  # what the kernel's helper does and ours does not
    6: f"{_FORMS}; {state.TRACE_RECORD_BYTES - 8} characters are kept",
    51: "`BPF_F_BROADCAST` on a map found in a map of maps is answered with `XDP_ABORTED`; "
        "`XDP_REDIRECT` after a call that found nothing goes nowhere (in the kernel to the "
        "interface of the number that a call before was given)",
    69: "of a multipath route the kernel's leg where `net.ipv4.fib_multipath_hash_seed` is set "
        "(else the kernel's seed is secret); not known: path MTUs learnt by ICMP, buckets of "
        "resilient nexthop groups, the headroom of BPF encapsulations, type, MTU and source of "
        "legs that IPv6 routes got one by one, what source a nexthop object keeps when "
        "addresses change; a change of the host is there after some 20 ms, one that the kernel "
        "does not announce (`ip addrlabel`, an interface's MTU of IPv6) within 15 s",
    118: "a tick is counted when it is due, by the kernel some time later",
    163: "a header has 14 bytes on Ethernet and loopback, else none",
    165: _FORMS,
    169: "not in a map that was found in a map of maps",
    171: "an absolute time is not followed when the clock is set; a timer ends with the program "
         "that set it",
    177: "as `bpf_trace_printk`",
}


_METADATA = ("what the port knows, else `-EOPNOTSUPP`; any program may call it, not only one bound "
             "to a device")
_TEXT = ("a text ends, with `-EFAULT`, where the memory ends that the pointer points into; that "
         "has to be memory and, but for the packet, the stack, values of arrays and global "
         "variables, at a constant offset; of one size on all paths, but for one array")
_NOTHING = "does nothing; that it is left again is proven"
FUNCTION_LIMITS = {  # what the kernel's function does and ours does not, or the other way round
    "bpf_xdp_metadata_rx_timestamp": _METADATA, "bpf_xdp_metadata_rx_hash": _METADATA,
    "bpf_xdp_metadata_rx_vlan_tag": _METADATA,
    "bpf_dynptr_slice": "a slice of a ring buffer's record ends with the record",
    "bpf_dynptr_slice_rdwr": "a slice of a ring buffer's record ends with the record",
    "bpf_dynptr_clone": "not over the dynptr itself",
    "bpf_dynptr_copy": "between overlapping parts of a packet in several buffers the kernel copies "
                       "in no particular direction; here nothing is lost",
    **{f"bpf_{name}": _NOTHING for name in (
        "rcu_read_lock", "rcu_read_unlock", "preempt_disable", "preempt_enable",
        "local_irq_save", "local_irq_restore")},
    **{f"bpf_{name}": _TEXT for name in (
        "strcmp", "strcasecmp", "strchr", "strchrnul", "strnchr", "strrchr", "strlen", "strnlen",
        "strspn", "strcspn", "strstr", "strnstr")},
}

_FUNCTIONS_HEAD = """
## Kernel functions

Kernel functions (kfuncs) have no numbers of their own; programs declare them
`extern ... __ksym`, and must be under the GPL. These are all that Linux 6.18 lets an XDP program
call, which a test asks it. A program is refused where a path of it leads to a refused one; of one
that is declared `__weak` it may ask first: `if (bpf_ksym_exists(bpf_throw))` is false here.
"""


class State(Enum):
    RUNS = "runs"
    VERIFIED = "verified only"
    REFUSED = "refused"


def state_of(helper: Helper) -> State:
    if helper.runs:
        return State.RUNS
    return State.REFUSED if helper.id in REFUSED else State.VERIFIED


def in_xdp() -> list[Helper]:
    """The kernel's helpers for XDP by number; kernel functions have no number of their own."""
    return [HELPERS[number] for number in sorted(HELPERS)
            if HELPERS[number].xdp and number < FIRST_FUNCTION]


def write() -> Iterator[str]:
    """The page, line by line."""
    yield from _HEAD.splitlines()
    states = [state_of(helper) for helper in in_xdp()]
    counts = ", ".join(f"{one.value}: {states.count(one)}" for one in State)
    yield f"\n{len(states)} in all; {counts}.\n"
    yield "| number | helper | GPL | state | why, or what is missing |"
    yield "|---|---|---|---|---|"
    for helper, now in zip(in_xdp(), states, strict=True):
        why = REFUSED[helper.id] if now is State.REFUSED else LIMITS.get(helper.id, "")
        gpl = "GPL" if helper.gpl_only else ""
        yield f"| {helper.id} | `bpf_{helper.name}` | {gpl} | {now.value} | {why} |"
    yield from _FUNCTIONS_HEAD.splitlines()
    runs, refused = len(KERNEL_FUNCTIONS), len(REFUSED_FUNCTIONS)
    yield f"\n{runs + refused} in all; runs: {runs}, refused: {refused}.\n"
    yield "| function | state | why, or what is different |"
    yield "|---|---|---|"
    for name in sorted({*KERNEL_FUNCTIONS, *REFUSED_FUNCTIONS}):
        now, why = State.RUNS, FUNCTION_LIMITS.get(name, "")
        if name in REFUSED_FUNCTIONS:
            now, why = State.REFUSED, REFUSED_FUNCTIONS[name]
        yield f"| `{name}` | {now.value} | {why} |"


if __name__ == "__main__":
    print("\n".join(write()))
