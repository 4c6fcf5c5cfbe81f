"""Measure in the kernel what a program costs that changes its packet.

BPF_PROG_TEST_RUN with repeat=N fills one buffer once: the second run sees what the first one left,
pointers included.  An encapsulation would encapsulate once and then pass its own output N - 1
times.  So a *wrapper* runs instead: it puts the packet back as it was and tail-calls the program.

    1. is the packet what the program should have made of it?  If not: return XDP_ABORTED, and
       touch nothing, so that every later run aborts, too, and the last verdict tells
    2. count the run
    3. undo the changes of metadata, tail and head, and write the overwritten bytes back
    4. tail-call the program under test

All this is generated from one single run (`observe`).  What the wrapper itself costs is measured
with a *stand-in* in the program's place, which moves the packet's edges by as much and does nothing
else:

    net = wrapper with the program - wrapper with the stand-in + those moves alone (`load_moves`)

Sound is a figure only if `Repeated.is_sound`: N runs counted, the verdict of the last one right,
and the packet byte for byte that of the single run.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from xdp_runtime.asm import assemble
from xdp_runtime.bpf_syscall import AttachType, btf_load, map_update, prog_load, prog_test_run
from xdp_runtime.errors import XdpuError
from xdp_runtime.isa import Insns, encode
from xdp_runtime.kernel import KernelProgram, load_raw
from xdp_runtime.kernel_calls import for_kernel
from xdp_runtime.kernel_functions import typed
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.object import MapSpec, MapType

_PROGRAMS = MapSpec("targets", MapType.PROG_ARRAY, 4, 4, 1)
_COUNTER = MapSpec("runs", MapType.ARRAY, 4, 8, 1)
_ZERO_KEY = bytes(4)
_XDP_MD = struct.Struct("=6I")
_ROOM_BYTES = 4096
_EDGES_BYTES = 256  # no program moves an edge further out; a tail may be cut by more
ABORTED, PASS = 0, 2


@dataclass(frozen=True, slots=True)
class Change:
    """What one run does to a packet: by how much it grew at its head and tail, and its bytes."""

    before: bytes
    after: bytes
    meta: bytes = b""  # what lies in front of the packet afterwards
    head: int = 0
    tail: int = 0

    @property
    def moves(self) -> bool:
        return bool(self.head or self.tail or self.meta)

    @property
    def is_none(self) -> bool:
        return self.before == self.after and not self.moves

    def undone(self) -> list[int | None]:
        """The packet once its edges are back: its bytes, None for those that are then unknown."""
        at = range(self.head, self.head + len(self.before))
        return [self.after[i] if 0 <= i < len(self.after) else None for i in at]

    def overwritten(self) -> list[tuple[int, int]]:
        """Spans (start, end) of `before` to write back; near ones are one, for wide stores."""
        spans: list[tuple[int, int]] = []
        for at, (was, now) in enumerate(zip(self.before, self.undone(), strict=True)):
            if was == now:
                continue
            if spans and at - spans[-1][1] < 8:
                spans[-1] = (spans[-1][0], at + 1)
            else:
                spans.append((at, at + 1))
        return spans

    def moved_only(self) -> bytes:
        """The packet if only its edges had moved: what the stand-in makes of it."""
        grown = bytes(max(self.head, 0)) + self.before[max(-self.head, 0):]
        return grown[:len(self.after)].ljust(len(self.after), b"\0")


def candidates(before: bytes, after: bytes, meta: bytes = b"") -> Iterator[Change]:
    """How `after` may have come from `before`, the likeliest first.

    The kernel tells only how much longer a packet is.  Where it grew is where most bytes then are
    in their place; a wrong guess gives a wrong last packet, which `Repeated` shows.
    """
    growth = len(after) - len(before)
    heads = {0, growth, *range(-_EDGES_BYTES, _EDGES_BYTES + 1)}
    guesses = [Change(before, after, meta, head, growth - head) for head in heads
               if growth - head <= _EDGES_BYTES]
    guesses.sort(key=lambda c: (_rewritten(c), abs(c.head) + abs(c.tail)))
    yield from guesses[:4]


def _rewritten(change: Change) -> int:
    return sum(was != now for was, now in zip(change.before, change.undone(), strict=True))


@dataclass(frozen=True, slots=True)
class Repeated:
    """Many runs of a wrapper, and what they should have come to."""

    ns: int
    verdict: int
    packet: bytes
    meta: bytes
    runs: int
    wanted: tuple[int, bytes, bytes, int]  # verdict, packet, meta, runs

    @property
    def is_sound(self) -> bool:
        return (self.verdict, self.packet, self.meta, self.runs) == self.wanted

    def complaint(self) -> str:
        verdict, packet, meta, runs = self.wanted
        if self.runs != runs:
            return f"{self.runs} of {runs} runs saw the packet as it should be"
        if self.verdict != verdict:
            return f"the last verdict is {self.verdict}, not {verdict}"
        if self.packet != packet or self.meta != meta:
            return "the last packet is not that of a single run"
        return ""


@dataclass(frozen=True, slots=True)
class Function:
    """A program as a function of a wrapper (`call target`), with file descriptors of its maps."""

    insns: Insns
    map_fds: Sequence[int] = ()


class Wrapper:
    """The wrapper for one change of one program, in the kernel; close it.

    `target` is the file descriptor of the program under test; None puts the stand-in there.  What
    `first`, `last`, `ending` and `spans` are, `wrapper_text` says; `maps` are those that they name.
    With a `function` there is no tail call: what `ending` makes of it decides.
    """

    def __init__(self, change: Change, verdict: int, target: int | None = None, *,
                 maps: Sequence[KernelMap] = (), first: Sequence[str] = (),
                 last: Sequence[str] = (), ending: Sequence[str] = (),
                 function: Function | None = None,
                 spans: Sequence[tuple[int, int]] | None = None) -> None:
        self.change, self.verdict = change, verdict
        self._after = change.after if target is not None else change.moved_only()
        self._any_bytes = target is None or spans is not None
        with ExitStack() as undo:
            programs, counter = KernelMap(_PROGRAMS), KernelMap(_COUNTER)
            undo.callback(programs.close)
            undo.callback(counter.close)
            self._counter = counter
            text = wrapper_text(change, self._after, first=first, last=last, ending=ending,
                                spans=spans)
            self.fd = _load(text, "wrapper", (programs, counter, *maps), function)
            undo.callback(os.close, self.fd)
            if function is not None:
                self._undo = undo.pop_all()
                return
            if target is None:
                target = _load(stand_in_text(change, verdict), "stand_in")
                undo.callback(os.close, target)
            map_update(programs.fd, _ZERO_KEY, target.to_bytes(4, "little"))
            self._undo = undo.pop_all()

    def run(self, count: int) -> Repeated:
        self._counter.update(_ZERO_KEY, bytes(8))
        meta = self.change.meta
        data = meta + self._after
        context = _XDP_MD.pack(len(meta), len(data), 0, 0, 0, 0)
        done = prog_test_run(self.fd, data, count, context, len(data) + _ROOM_BYTES)
        front = _XDP_MD.unpack(done.ctx_out)[0]
        runs = int.from_bytes(self._counter.lookup(_ZERO_KEY) or b"", "little")
        packet, found = done.data_out[front:], done.data_out[:front]
        self.last = packet
        if self._any_bytes:  # the stand-in writes none, and flows differ: only the edges count
            found = meta if len(found) == len(meta) else found
            packet = self._after if len(packet) == len(self._after) else packet
        return Repeated(done.duration_ns, done.retval, packet, found, runs,
                        (self.verdict, self._after, meta, count))

    def close(self) -> None:
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def observe(program: KernelProgram, packet: bytes, runs: int = 64) -> tuple[Change, int]:
    """What the program does to the packet, proven by repeating it, and its verdict.

    Raises XdpuError when no wrapper reproduces the single run: a program whose output depends on
    more than the packet (time, random numbers, what it counted).
    """
    single = program.run(packet)
    if single.data_out == packet and not single.meta:
        return Change(packet, packet), single.retval
    why = ""
    for change in candidates(packet, single.data_out, single.meta):
        with Wrapper(change, single.retval, program.fd) as wrapper:
            repeated = wrapper.run(runs)
        if repeated.is_sound:
            return change, single.retval
        why = why or repeated.complaint()
    raise XdpuError(f"program {program.spec.name}", f"cannot be repeated on this packet: {why}")


# ---- programs ------------------------------------------------------------------------------------

def wrapper_text(change: Change, after: bytes, *, first: Sequence[str] = (),
                 last: Sequence[str] = (), ending: Sequence[str] = (),
                 spans: Sequence[tuple[int, int]] | None = None) -> str:
    """The wrapper as assembly; `after` is the packet that each run has to find.

    `first` and `last` are more of it: with the context in r6, before anything else; and before the
    tail call, with the packet in r7 and its `before` proven; `ending` is instead of the tail call.
    `spans` are what to write back, if not what this change overwrote; then `after` tells lengths
    only.
    """
    lines = [
        "r6 = r1",
        *first,
        *_edges(),
        "r2 = r8", "r2 -= r7", f"if r2 != {len(after)} goto fail",
        "r2 = *(u32 *)(r6 + 8)", "r3 = r7", "r3 -= r2", f"if r3 != {len(change.meta)} goto fail",
        f"r3 = r7\nr3 += {len(after)}\nif r3 > r8 goto fail",
    ]
    witness = _witness(change, after) if spans is None else None
    if witness is not None:
        lines += [f"r2 = *(u8 *)(r7 + {witness})", f"if r2 != {after[witness]} goto fail"]
    lines += ["r1 = map_value[runs] ll", "r2 = *(u64 *)(r1 + 0)", "r2 += 1",
              "*(u64 *)(r1 + 0) = r2"]
    lines += _move("adjust_meta", len(change.meta))
    lines += _move("adjust_tail", -change.tail)
    lines += _move("adjust_head", change.head)
    if change.moves:
        lines += _edges()
    lines += [f"r3 = r7\nr3 += {len(change.before)}\nif r3 > r8 goto fail"]
    for start, end in change.overwritten() if spans is None else spans:
        lines += _stores(start, change.before[start:end])
    return "\n".join([*lines, *last, *(ending or _TAIL_CALL), "fail:", f"r0 = {ABORTED}", "exit",
                      "target:"])


def stand_in_text(change: Change, verdict: int) -> str:
    """Moves the packet's edges as the program does, and returns its verdict."""
    return _moving(verdict, *moved(change))


def moved(change: Change) -> list[str]:
    """Moves the edges of the packet, its context in r6, as the program does."""
    return [*_move("adjust_head", -change.head), *_move("adjust_tail", change.tail),
            *_move("adjust_meta", -len(change.meta))]


def moves_text(change: Change) -> str:
    """Every move of the change, and back: twice what the program's own moves cost."""
    return _moving(
        PASS, *_move("adjust_head", -change.head), *_move("adjust_head", change.head),
        *_move("adjust_tail", change.tail), *_move("adjust_tail", -change.tail),
        *_move("adjust_meta", -len(change.meta)), *_move("adjust_meta", len(change.meta)))


def _moving(verdict: int, *moves: str) -> str:
    failing = ["fail:", f"r0 = {ABORTED}", "exit"] if moves else []  # or it is unreachable
    return "\n".join(["r6 = r1", *moves, f"r0 = {verdict}", "exit", *failing])


def load_moves(change: Change) -> int:
    """File descriptor of a program that makes the moves of a change, and undoes them."""
    return _load(moves_text(change), "moves")


_TAIL_CALL = ("r1 = r6", "r2 = map[targets] ll", "r3 = 0", "call 12")
_HELPERS = {"adjust_head": 44, "adjust_meta": 54, "adjust_tail": 65}


def _edges() -> list[str]:
    return ["r7 = *(u32 *)(r6 + 0)", "r8 = *(u32 *)(r6 + 4)"]


def _move(helper: str, by: int) -> list[str]:
    if not by:
        return []
    return ["r1 = r6", f"r2 = {by}", f"call {_HELPERS[helper]}", "if r0 != 0 goto fail"]


def _stores(at: int, content: bytes) -> list[str]:
    lines: list[str] = []
    for size in (8, 4, 2, 1):
        while len(content) >= size:
            value = int.from_bytes(content[:size], "little")
            lines += [f"r3 = {value} ll", f"*(u{size * 8} *)(r7 + {at}) = r3"]
            at, content = at + size, content[size:]
    return lines


def _witness(change: Change, after: bytes) -> int | None:
    """Where a byte shows that the program ran, if neither length nor metadata do."""
    if len(after) != len(change.before) or change.meta or change.head:
        return None
    for start, _ in change.overwritten():
        return start
    return None


def _load(text: str, name: str, maps: Sequence[KernelMap] = (),
          function: Function | None = None) -> int:
    insns = assemble(text, [m.spec.name for m in maps])
    code = encode(insns, [m.fd for m in maps])
    if function is None:
        return load_raw(code, name=name)
    types, func_info = typed((*insns, *function.insns))
    btf_fd = btf_load(types) if types else 0
    try:
        return prog_load(code + encode(for_kernel(function.insns), function.map_fds), name=name,
                         license="GPL", expected_attach_type=AttachType.XDP, btf_fd=btf_fd,
                         func_info=func_info)
    finally:
        if btf_fd:
            os.close(btf_fd)
