"""What the kernel's refusals mean: our kind of message, and whether memory safety is at stake.

The kernel's words are for people and change from version to version: this table is that of 6.18,
made from the corpus and from what random programs were refused for.
"""

from __future__ import annotations

import re
from typing import Literal

Class = Literal["memory", "control", "type", "other"]

# The first that matches the last line of a log: (pattern, our kind, class).
_TABLE: list[tuple[str, str, Class]] = [
    (r"invalid mem access '\w*_or_null'|pointer arithmetic on \w+_or_null|Possibly NULL|"
     r"type=\w+_or_null expected", "null", "memory"),
    (r"!read_ok", "uninit", "memory"),
    (r"misaligned", "align", "memory"),
    (r"BPF_ATOMIC \w+ (from|into) R\d+ ctx|bpf_context access|modified ctx|ctx access", "context",
     "memory"),
    (r"BPF_ATOMIC \w+ (from|into) R\d+", "type", "memory"),
    (r"tail_calls? (is|are) not allowed|tail_call is only allowed", "call", "control"),
    (r"tail_call .*reference|EXIT .*reference|unreleased|[Uu]nacquired|release func|"
     r"referenced dynptr|initialized (iter_num|dynptr)|(iter|dynptr) as arg|owning", "reference",
     "other"),
    (r"spin_(un)?lock|bpf_timer cannot|while holding a lock|-ed region", "lock", "other"),
    (r"zero-sized read|outside of the|unbounded (min value|memory access)|min value is negative|"
     r"invalid access to map value|invalid access to (packet|memory)|invalid.* access to", "bounds",
     "memory"),
    (r"(R\d+|map) .*(rdonly|read-?only)|cannot write into|map forbidden|change key|"
     r"write to change", "readonly", "memory"),
    (r"same insn cannot be used|invalid mem access|zero-terminated|known constant|"
     r"type=[\w, ]+ expected=", "type", "memory"),
    (r"(write|read|access) (to|from) stack|register (spill|fill)|corrupt|frame pointer|"
     r"stack (pointer|size|depth)|combined stack|frame of the caller|stack frame", "stack",
     "memory"),
    (r"At (program exit|callback return|subprogram exit)|R0 leaks|should have been in", "return",
     "other"),
    (r"infinite loop|back-edge", "loop", "control"),
    (r"program is too large|too complex|too many", "budget", "other"),
    (r"cannot pass map_type|expected prog array|direct value access|bpf_htab is supported|"
     r"bpf_array is supported|only read from|pointer arithmetic on map_ptr|map_ptr must", "map",
     "type"),
    (r"makes \w+ pointer be out of|math between|pointer offset|pointer arithmetic|prohibited|"
     r"tried to subtract|div by zero|invalid shift|pointer operation|sign-extension|"
     r"partial copy", "arithmetic", "type"),
    (r"call stack|Caller passes|func_info|callback|call to invalid|recursive|func#\d+|opcode 8d|"
     r"calls? .*not allowed|subprog", "call", "control"),
    (r"cannot use helper|invalid func|GPL|helper access|unknown func", "helper", "other"),
    (r"unreachable|jump out of range|last insn|middle of ldimm|unknown opcode|reserved fields|"
     r"BPF_LD_IMM", "control", "control"),
    (r"R\d+", "type", "type"),
]
_PATTERNS = [(re.compile(pattern), kind, class_) for pattern, kind, class_ in _TABLE]


def kind_of(line: str) -> str:
    """Our kind of message for a line of the kernel's; control when nothing fits."""
    return next((kind for pattern, kind, _ in _PATTERNS if pattern.search(line)), "control")


def class_of(line: str) -> Class:
    return next((class_ for pattern, _, class_ in _PATTERNS if pattern.search(line)), "other")
