"""What the kernel's refusals mean: our kind of message, and whether memory safety is at stake."""

from __future__ import annotations

import re
from typing import Literal

Class = Literal["memory", "control", "type", "other"]

# The first that matches the last line of a log: (pattern, our kind, class).
_TABLE: list[tuple[str, str, Class]] = [
    (r"invalid mem access '\w*_or_null'", "null", "memory"),
    (r"Possibly NULL pointer passed", "null", "memory"),
    (r"pointer arithmetic on \w+_or_null", "null", "memory"),
    (r"type=\w+_or_null expected", "null", "memory"),
    (r"invalid mem access", "type", "memory"),
    (r"!read_ok", "uninit", "memory"),
    (r"invalid read from stack|invalid indirect read from stack|invalid indirect access to stack",
     "uninit", "memory"),
    (r"invalid (variable-offset |unbounded variable-offset |zero-sized )?(write|read|indirect)?"
     r"\s*(to |from |access to )?stack|attempt to corrupt spilled|corrupted spill|"
     r"cannot spill|invalid size of register (spill|fill)|stack (pointer|frame|depth|size)|"
     r"combined stack size|frame pointer is read only|leaking pointer from stack", "stack",
     "memory"),
    (r"misaligned", "align", "memory"),
    (r"invalid bpf_context access|dereference of modified ctx|ctx access|"
     r"BPF_ATOMIC (loads|stores) (from|into) R\d ctx", "context", "memory"),
    (r"invalid access to|outside of the (allowed memory|array|.*range)|offset is outside|"
     r"min value is (negative|outside)|unbounded|max value is outside|"
     r"unbounded min value|R\d+ invalid .*access|invalid zero-size|is outside", "bounds", "memory"),
    (r"(write|writes|store) .*(forbidden|prohibited|not allowed)|cannot write into|"
     r"into (map|R\d+ )?.*rdonly|cannot access ptr|(read|write) (from|into) map forbidden|"
     r"read-only|rdonly", "readonly", "memory"),
    (r"nreleased reference|reference (has not been|leak)|release|acquired|owning reference|"
     r"unacquired|may be leaked", "reference", "other"),
    (r"spin_lock|lock", "lock", "other"),
    (r"At program exit|At callback return|At subprogram exit|R0 has value|"
     r"R0 not a known value|R0 leaks|R0 .*should have been", "return", "other"),
    (r"infinite loop|back-edge|loop detected|the sequence of \d+ jumps", "loop", "control"),
    (r"too large|BPF program is too|too many|insns processed|cannot allocate", "budget", "other"),
    (r"unreachable insn|jump out of range|last insn is not|jump into the middle|"
     r"invalid BPF_LD_IMM|fall.?through|unknown opcode|invalid jump", "control", "control"),
    (r"unreleased|tail_call|recursive|the call stack|call stack|Global|global|callback|subprog|"
     r"calls? to|Caller passes|func#|function calls|arg#\d|missing btf|kfunc", "call", "control"),
    (r"unknown func|helper|cannot call GPL|program of this type cannot use|func .* not allowed",
     "helper", "other"),
    (r"cannot pass map_type|cannot update sockmap|map_ptr|map_type|max_entries", "map", "type"),
    (r"div(ision)? by zero|invalid shift|pointer arithmetic|pointer operation|"
     r"tried to (add|subtract)|(pointer|ptr) .*prohibited|prohibited|BPF_(MOV|NEG|END|ALU)|"
     r"uses reserved fields|math between|value .* makes .*pointer|arithmetic|sign-extension|"
     r"partial copy of pointer|pointer comparison", "arithmetic", "type"),
    (r"R\d+ type=\w+ expected", "type", "type"),
    (r"R\d+ (must|is not|has|leaks|invalid|doesn't)", "type", "type"),
    (r"dynptr|iter", "type", "type"),
]
_PATTERNS = [(re.compile(pattern), kind, klass) for pattern, kind, klass in _TABLE]


def kind_of(line: str) -> str:
    """Our kind of message for a line of the kernel's; control when nothing fits."""
    return next((kind for pattern, kind, _ in _PATTERNS if pattern.search(line)), "control")


def class_of(line: str) -> Class:
    return next((klass for pattern, _, klass in _PATTERNS if pattern.search(line)), "other")
