"""What a program does, noted while the verifier walks it: every use that needs a grant.

Uses hold on all paths.  Where a use depends on a number (how far into the packet, which verdict,
an argument with a constraint) the number is marked precise, so that no path is skipped that has
another.  What is not known to be harmless counts as harmful: a helper that takes a map in a way
not listed here reads and writes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from xdp_runtime import fuel
from xdp_runtime.helper_names import HELPER_NAMES, KERNEL_FUNCTIONS
from xdp_runtime.helpers import HELPERS
from xdp_runtime.helpers.proto import Arg
from xdp_runtime.isa import CallKfunc, MayGoto
from xdp_runtime.object import GlobalKind, Object, ProgramSpec
from xdp_runtime.policy import ALL, READ, VERDICTS, WRITE
from xdp_runtime.verifier import scalar
from xdp_runtime.verifier.domain import Kind, Num, Ptr, Reg, State, mark_precise
from xdp_runtime.verifier.report import as_error, verify
from xdp_runtime.verifier.scalar import Scalar

TAIL_CALL, REDIRECT, ADJUST_HEAD, REDIRECT_MAP, ADJUST_META, ADJUST_TAIL = 12, 23, 44, 51, 54, 65
PERF_EVENT_OUTPUT, LOAD_BYTES, STORE_BYTES = 25, 189, 190
DYNPTR_FROM_XDP = KERNEL_FUNCTIONS["bpf_dynptr_from_xdp"]
MAX_TAIL_CALLS = 33
_CONTEXT = {12: "ingress_ifindex", 16: "rx_queue_index", 20: "egress_ifindex"}
_MAP_ACCESS = {
    "map_lookup_elem": (READ,), "map_update_elem": (WRITE,), "map_delete_elem": (WRITE,),
    "map_push_elem": (WRITE,), "map_pop_elem": (READ, WRITE), "map_peek_elem": (READ,),
    "map_lookup_percpu_elem": (READ,), "for_each_map_elem": (READ,), "tail_call": (READ,),
    "redirect_map": (READ,), "perf_event_output": (WRITE,), "ringbuf_output": (WRITE,),
    "ringbuf_reserve": (WRITE,), "ringbuf_query": (READ,), "ringbuf_reserve_dynptr": (WRITE,),
}
# arguments whose memory the verifier checks, so that `access` sees it, or that are none
_SEEN = (Arg.ANYTHING, Arg.UNCHECKED, Arg.CTX, Arg.MAP, Arg.MAP_KEY, Arg.MAP_VALUE, Arg.MEM,
         Arg.MEM_OR_NULL, Arg.MEM_UNINIT, Arg.SIZE, Arg.SIZE_OR_ZERO)
# what runs a function of the program again and again
_REPEATING = ("loop", "for_each_map_elem", "timer_set_callback", "find_vma", "user_ringbuf_drain",
              "iter_num_next")
# names and C types of arguments, for constraints; others are arg1 ... arg5 of 64 bits
ARGUMENTS: dict[str, dict[int, tuple[str, str]]] = {
    "map_update_elem": {4: ("flags", "u64")},
    "tail_call": {3: ("index", "u32")},
    "redirect": {1: ("ifindex", "u32"), 2: ("flags", "u64")},
    "redirect_map": {2: ("key", "u32"), 3: ("flags", "u64")},
    "xdp_adjust_head": {2: ("delta", "s32")},
    "xdp_adjust_meta": {2: ("delta", "s32")},
    "xdp_adjust_tail": {2: ("delta", "s32")},
    "xdp_load_bytes": {2: ("offset", "u32"), 4: ("length", "u32")},
    "xdp_store_bytes": {2: ("offset", "u32"), 4: ("length", "u32")},
}


def arguments_of(helper: str) -> dict[int, tuple[str, str]]:
    """(name, C type) by position, 1 to 5."""
    named = ARGUMENTS.get(helper, {})
    return {n: named.get(n, (f"arg{n}", "u64")) for n in range(1, 6)}


def helper_name(text: str) -> str:
    """Of a helper or kernel function, without "bpf_"; "" for what the kernel does not have either.
    """
    name = text.removeprefix("bpf_")
    known = f"bpf_{name}" in HELPER_NAMES[1:] or f"bpf_{name}" in KERNEL_FUNCTIONS
    return name if known else ""


@dataclass(frozen=True, slots=True)
class Use:
    """One instruction needs one grant.

    `kind` is packet.read, packet.write, packet.resize, meta.read, meta.write, context, helper,
    map.read, map.write, verdict or instructions; `name` which helper, map, field or verdict;
    `amount` the last byte of the packet, or instructions, -1: no limit is known, -2: nor can
    they be counted while it runs."""

    program: str
    insn: int
    kind: str
    name: str = ""
    amount: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Argument:
    """What is known of an argument of a helper that may have constraints."""

    use: Use
    helper: str
    name: str
    c_type: str
    known: Scalar


@dataclass(frozen=True, slots=True)
class Uses:
    """Of a program and everything it may tail-call, in the order of the instructions."""

    all: tuple[Use, ...]
    arguments: tuple[Argument, ...]

    @property
    def longest(self) -> int:
        return next(use.amount for use in self.all if use.kind == "instructions")


class Recorder:
    """The verifier's observer for one program (env.Observer)."""

    def __init__(self, obj: Object, program: ProgramSpec, watched: Collection[str]) -> None:
        self.obj, self.program, self.watched = obj, program, watched
        self.found: dict[tuple[int, str, str], int] = {}
        self.notes: dict[tuple[int, str, str], str] = {}
        self.known: dict[tuple[int, str, int], Scalar] = {}
        self.moves_inward = False
        self._flags: Scalar | None = None

    def need(self, slot: int, kind: str, name: str = "", amount: int = 0, note: str = "") -> None:
        key = (slot, kind, name)
        self.found[key] = max(self.found.get(key, 0), amount)
        if note:
            self.notes[key] = note

    def access(self, slot: int, ptr: Ptr, off: int, size: int, write: bool) -> None:
        word = WRITE if write else READ
        if not size:
            return
        if ptr.kind is Kind.PACKET:
            far = ptr.off + off + size + (0 if ptr.var is None else ptr.var.umax)
            self.need(slot, f"packet.{word}", amount=min(far, ALL))
        elif ptr.kind is Kind.PACKET_META:
            self.need(slot, f"meta.{word}")
        elif ptr.kind in (Kind.MAP_VALUE, Kind.MAP_KEY, Kind.ARENA):
            self._map(slot, ptr, word)

    def _map(self, slot: int, ptr: Ptr, word: str) -> None:
        spec = self.obj.maps[ptr.map]
        if spec.global_kind not in (GlobalKind.RODATA, GlobalKind.KCONFIG):  # part of the program
            self.need(slot, f"map.{word}", spec.name)

    def context(self, slot: int, off: int) -> None:
        if off in _CONTEXT:
            self.need(slot, "context", _CONTEXT[off])

    def call(self, slot: int, helper: int, state: State) -> None:
        known = HELPERS.get(helper)
        if known is None:
            return  # and the verifier refuses it
        regs = state.top.regs
        self.need(slot, "helper", known.name)
        for position, arg in enumerate(known.args, 1):
            value = regs[position]
            if isinstance(value, Ptr):
                if value.kind is Kind.MAP:
                    for word in _MAP_ACCESS.get(known.name, (READ, WRITE)):
                        self._map(slot, value, word)
                elif arg not in _SEEN:
                    self._anything(slot, value)
            if known.name in self.watched or helper == ADJUST_HEAD:
                self._watch(slot, known.name, position, value)
        if helper in (ADJUST_HEAD, ADJUST_TAIL):
            self.need(slot, "packet.resize")
        if helper == ADJUST_HEAD:
            delta = regs[2]
            self.moves_inward |= not isinstance(delta, Num) or delta.range.s32max > 0
        elif helper == ADJUST_META:
            self.need(slot, "meta.write")
        elif helper == PERF_EVENT_OUTPUT:
            self._appended(slot, regs[3])
        elif helper in (LOAD_BYTES, STORE_BYTES):
            far = _most(regs[2]) + _most(regs[4])
            self.need(slot, "packet.read" if helper == LOAD_BYTES else "packet.write",
                      amount=min(far, ALL))
        elif helper == DYNPTR_FROM_XDP:  # what is done through it has no limits that are known
            self.need(slot, "packet.read", amount=ALL)
            self.need(slot, "packet.write", amount=ALL)
        elif helper == REDIRECT_MAP:
            flags = regs[3]
            self._flags = None
            if isinstance(flags, Num):  # the verdict follows from it
                mark_precise(flags.tokens)
                self._flags = flags.range

    def _anything(self, slot: int, ptr: Ptr) -> None:
        """Memory that a helper may use in any way."""
        for word in (READ, WRITE):
            if ptr.kind is Kind.PACKET:
                self.need(slot, f"packet.{word}", amount=ALL)
            elif ptr.kind is Kind.PACKET_META:
                self.need(slot, f"meta.{word}")
            elif ptr.kind in (Kind.MAP_VALUE, Kind.MAP_KEY):
                self._map(slot, ptr, word)

    def _watch(self, slot: int, helper: str, position: int, value: Reg) -> None:
        if isinstance(value, Num):
            mark_precise(value.tokens)
        known = value.range if isinstance(value, Num) else scalar.UNKNOWN
        key = (slot, helper, position)
        before = self.known.get(key)
        self.known[key] = known if before is None else scalar.union(before, known)

    def _appended(self, slot: int, flags: Reg) -> None:
        """BPF_F_CTXLEN_MASK: so many bytes of the packet go with the record."""
        count = ALL
        if isinstance(flags, Num):
            mark_precise(flags.tokens)
            number = flags.range.const
            count = ALL if number is None else number >> 32 & 0xFFFFF
        if count:
            self.need(slot, "packet.read", amount=min(count, ALL))

    def called(self, slot: int, helper: int, state: State) -> None:
        """The two whose result is a verdict return it, or XDP_ABORTED."""
        regs = state.top.regs
        if helper == REDIRECT:
            regs[0] = Num(scalar.union(scalar.const(0), scalar.const(4)))
        elif helper == REDIRECT_MAP:
            flags = None if self._flags is None else self._flags.const
            if flags is None or flags & ~0x1B:  # BPF_F_ACTION_MASK, BROADCAST, EXCLUDE_INGRESS
                regs[0] = Num(scalar.from_range(0, 4))
            else:
                regs[0] = Num(scalar.union(scalar.const(flags & 3), scalar.const(4)))

    def leave(self, slot: int, verdict: Num) -> None:
        mark_precise(verdict.tokens)
        known = verdict.range
        value, mask = known.value & 0xFFFFFFFF, known.mask & 0xFFFFFFFF
        for number, name in enumerate(VERDICTS):
            if number & ~mask == value and known.u32min <= number <= known.u32max:
                self.need(slot, "verdict", name)
        if known.u32max >= len(VERDICTS):
            self.need(slot, "verdict", VERDICTS[0],
                      note="by a number that is no verdict")

    def uses(self) -> Iterator[Use]:
        for (slot, kind, name), amount in sorted(self.found.items()):
            yield Use(self.program.name, slot, kind, name, amount,
                      self.notes.get((slot, kind, name), ""))

    def arguments(self) -> Iterator[Argument]:
        for (slot, helper, position), known in sorted(self.known.items(), key=lambda item: item[0]):
            name, c_type = arguments_of(helper)[position]
            use = Use(self.program.name, slot, "helper", helper)
            yield Argument(use, helper, name, c_type, known)


def _most(value: Reg) -> int:
    if not isinstance(value, Num):
        return ALL
    mark_precise(value.tokens)
    return value.range.u32max


def find_uses(obj: Object, program: ProgramSpec, watched: Collection[str] = ()) -> Uses:
    """Everything the program and those it may tail-call do.  `watched` helpers have constraints
    on arguments.  Raises VerifyError: an unsafe program has no uses one could trust."""
    from xdp_runtime.compiler.link import tail_call_targets

    uses: list[Use] = []
    arguments: list[Argument] = []
    lengths: dict[str, int] = {}
    chains: set[str] = set()
    endless, holding, inward = "", "", False
    for one in tail_call_targets(obj, program):
        recorder = Recorder(obj, one, watched)
        report = verify(obj, one, observer=recorder)
        if report.errors:
            raise as_error(one, report.errors[0])
        assert report.facts is not None
        visited = report.facts.visited
        for slot, insn in enumerate(one.insns):
            if isinstance(insn, CallKfunc) and visited[slot]:
                recorder.need(slot, "helper", f"kfunc {insn.btf_id}")
                recorder.need(slot, "packet.read", amount=ALL)
                recorder.need(slot, "packet.write", amount=ALL)
                endless = endless or f"instruction {slot} calls a kernel function"
            if isinstance(insn, MayGoto) and visited[slot]:
                endless = endless or f"instruction {slot} is may_goto"
        for slot, kind, name in recorder.found:
            if kind == "helper" and name in _REPEATING:
                endless = endless or f"instruction {slot} calls {name}"
            if kind == "helper" and name == "tail_call":
                chains.add(one.name)
        holding = holding or fuel.why_not(one.insns)
        if report.facts.longest < 0:
            endless = endless or "its paths join in a loop"
        lengths[one.name] = report.facts.longest
        inward |= recorder.moves_inward
        uses += recorder.uses()
        arguments += recorder.arguments()
    if inward:
        uses = [_unlimited(use) for use in uses]
    longest = -1 if endless else _longest(program.name, lengths, chains)
    if endless and holding:
        longest, endless = -2, f"{endless}, and {holding}"
    uses.append(Use(program.name, 0, "instructions", amount=longest, note=endless))
    return Uses(tuple(uses), tuple(arguments))


def _unlimited(use: Use) -> Use:
    """Once the packet's start has moved inward, the first N bytes can be any."""
    if use.kind not in ("packet.read", "packet.write"):
        return use
    return Use(use.program, use.insn, use.kind, use.name, ALL,
               "xdp_adjust_head may have moved its start inward")


def _longest(entry: str, lengths: dict[str, int], chains: set[str]) -> int:
    """Instructions from the entry on, through as many tail calls as there may be."""
    after = 0
    if entry in chains:
        for _ in range(MAX_TAIL_CALLS):
            after = max(length + (after if name in chains else 0)
                        for name, length in lengths.items())
    return lengths[entry] + after
