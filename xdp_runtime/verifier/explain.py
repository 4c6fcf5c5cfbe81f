"""What the verifier knows of each instruction, for people and for editors.

    facts = NotedFacts(len(program.insns))
    report = verify(obj, program, facts=facts)
    notes = explain(obj, program, facts)          # one dict an instruction, ready for JSON
    print(annotated(program, notes))

A note says what had to hold (obligations.py) and what was known before the instruction, united
over all paths (facts.py).  The range of a number that nothing depended on is left out: a path may
have been pruned on which it is another one.
"""

from __future__ import annotations

from typing import Any, assert_never

from xdp_runtime.disasm import format_insn, format_line
from xdp_runtime.isa import Exit, Imm, Insn, JumpIf, Operand
from xdp_runtime.object import Line, Object, ProgramSpec
from xdp_runtime.verifier import obligations as must
from xdp_runtime.verifier import scalar
from xdp_runtime.verifier.domain import Kind, Num, Ptr, Reg, Token
from xdp_runtime.verifier.env import Finding
from xdp_runtime.verifier.facts import NULLABLE, NUMBER, POINTER, Facts
from xdp_runtime.verifier.report import line_of

Note = dict[str, Any]
_COLUMN = 44  # where remarks begin


class Pointers:
    """What the pointers had in common that were in an operand."""

    __slots__ = ("kinds", "offsets", "proven", "var")

    def __init__(self, ptr: Ptr) -> None:
        self.kinds, self.offsets = {(ptr.kind, ptr.map)}, {ptr.off}
        self.var, self.proven = ptr.var, ptr.range

    def add(self, ptr: Ptr) -> None:
        self.kinds.add((ptr.kind, ptr.map))
        self.offsets.add(ptr.off)
        self.proven = min(self.proven, ptr.range)
        if ptr.var is not self.var:
            self.var = scalar.union(self.var or scalar.const(0), ptr.var or scalar.const(0))


class NotedFacts(Facts):
    """Facts with the pointers' objects, and which ranges hold on pruned paths, too."""

    __slots__ = ("pointers", "tokens")

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.tokens: dict[tuple[int, int], set[Token]] = {}
        self.pointers: dict[tuple[int, int], Pointers] = {}

    def see(self, slot: int, number: int, value: Reg) -> None:
        super().see(slot, number, value)
        if isinstance(value, Num) and value.tokens:
            self.tokens.setdefault((slot, number), set()).update(value.tokens)
        elif isinstance(value, Ptr):
            known = self.pointers.get((slot, number))
            if known is None:
                self.pointers[slot, number] = Pointers(value)
            else:
                known.add(value)

    def range_of(self, slot: int, number: int) -> scalar.Scalar | None:
        """The number's values on all paths, None if they were not all looked at."""
        if any(not token.precise for token in self.tokens.get((slot, number), ())):
            return None
        return self.ranges.get((slot, number))


def describe_line(program: ProgramSpec, slot: int) -> Note | None:
    line = line_of(program, slot)
    if line is None:
        return None
    return {"file": line.file, "line": line.line, "column": line.column,
            "text": line.text.strip()}


def explain(obj: Object, program: ProgramSpec, facts: NotedFacts) -> list[Note]:
    return [_note(obj, program, facts, slot, insn)
            for slot, insn in enumerate(program.insns) if insn is not None]


def _note(obj: Object, program: ProgramSpec, facts: NotedFacts, slot: int, insn: Insn) -> Note:
    note: Note = {
        "insn": slot,
        "text": format_insn(insn, slot, obj),
        "line": describe_line(program, slot),
        "visited": bool(facts.visited[slot]),
        "obligations": [say(one, obj) for one in must.obligations(insn)],
        "operands": {},
    }
    for number in range(11):
        if (slot, number) in facts.shape:
            note["operands"][f"r{number}"] = _operand(obj, facts, slot, number)
    if isinstance(insn, JumpIf) and facts.visited[slot]:
        falls, taken = facts.falls[slot], facts.taken[slot]
        note["branch"] = "open" if falls and taken else "always" if taken else "never"
    constant = facts.constants.get(slot)
    if constant is not None:
        note["constant"] = constant
    if facts.context_at.get(slot):
        note["context"] = True
    return note


def _operand(obj: Object, facts: NotedFacts, slot: int, number: int) -> Note:
    shape = facts.shape[slot, number]
    kinds = [word for bit, word in ((NUMBER, "number"), (POINTER, "pointer"), (NULLABLE, "null"))
             if shape & bit]
    operand: Note = {"kinds": kinds}
    known = facts.range_of(slot, number)
    if known is not None:
        operand |= {"range": scalar.describe(known), "umin": known.umin, "umax": known.umax,
                    "smin": known.smin, "smax": known.smax, "mask": known.mask}
    pointers = facts.pointers.get((slot, number))
    if pointers is not None:
        operand["to"] = sorted(_object_name(obj, *kind) for kind in pointers.kinds)
        if len(pointers.offsets) == 1:
            operand["offset"] = min(pointers.offsets)
        if pointers.var is not None:
            operand["further"] = {"umin": pointers.var.umin, "umax": pointers.var.umax,
                                  "smin": pointers.var.smin, "smax": pointers.var.smax,
                                  "mask": pointers.var.mask}
        if {kind for kind, _ in pointers.kinds} <= {Kind.PACKET, Kind.PACKET_META}:
            operand["proven"] = pointers.proven
    return operand


def _object_name(obj: Object, kind: Kind, index: int) -> str:
    name = kind.name.lower().replace("_", " ").replace("ctx", "context")
    if kind in (Kind.MAP, Kind.MAP_VALUE) and 0 <= index < len(obj.maps):
        return f"{name} of {obj.maps[index].name}" if kind is Kind.MAP_VALUE else (
            f"{name} {obj.maps[index].name}")
    return name


def say(obligation: must.Obligation, obj: Object | None = None) -> str:
    """An obligation in words."""
    match obligation:
        case must.Readable(reg):
            return f"r{reg} holds a value"
        case must.Writable(reg):
            return f"r{reg} may be written"
        case must.HasArena():
            return "the program has an arena"
        case must.IsNumber(reg):
            return f"r{reg} is a number"
        case must.Summable(op, _, dst, src):
            return f"{op.name.lower()} of r{dst} and {_operand_text(src)} is defined"
        case must.ShiftInRange(amount, bits):
            return f"a shift by {amount} is narrower than {bits} bits"
        case must.NonZeroDivisor(divisor):
            return f"the divisor {divisor} is not zero"
        case must.Comparable(_, _, dst, src):
            return f"r{dst} and {_operand_text(src)} may be compared"
        case must.ValidAccess(reg, off, size, write, atomic):
            what = "1 byte" if size == 1 else f"{size} bytes"
            how = "written" if write else "read"
            return (f"{what} at r{reg}{off:+d} may be {how}" + (" atomically" if atomic else ""))
        case must.ValidMap(index, offset):
            name = obj.maps[index].name if obj is not None and 0 <= index < len(
                obj.maps) else str(index)
            inside = f" and has a byte {offset} to point at" if offset >= 0 else ""
            return f"map {name} exists{inside}"
        case must.ValidCall(helper):
            return f"helper {helper} may be called with these arguments"
        case must.ValidKfunc(btf_id):
            return f"kernel function {btf_id} may be called"
        case must.Returnable():
            return "r0 is fit to be returned and nothing is still held"
        case must.CallDepth():
            return "one more frame fits"
        case must.NotAllowed(why):
            return f"refused: {why}"
        case _:
            assert_never(obligation)


def _operand_text(src: Operand) -> str:
    return str(src.value) if isinstance(src, Imm) else f"r{src.n}"


def annotated(program: ProgramSpec, notes: list[Note], error: Finding | None = None) -> str:
    """The disassembly with what was known, to the right; what never runs is marked with `-`."""
    names = {f.start: f.name for f in program.functions}
    lines: dict[int, list[Line]] = {}
    for line in program.lines:
        lines.setdefault(line.slot, []).append(line)
    out: list[str] = []
    shown: tuple[str, int] | None = None
    for note in notes:
        slot = note["insn"]
        if slot in names:
            out += [""] * bool(out) + [f"{names[slot]}:"]
            shown = None
        for line in lines.get(slot, ()):
            if (line.file, line.line) != shown:
                shown = line.file, line.line
                out.append(format_line(line))
        mark = " " if note["visited"] else "-"
        left = f"{mark}{slot:5}: {note['text']}"
        remark = _remark(program.insns[slot], note)
        out.append(f"{left:<{_COLUMN}} | {remark}" if remark else left)
        if error is not None and error.insn == slot:
            out.append(f"       ^ {error.text}")
    return "\n".join(out) + "\n"


def _remark(insn: Insn | None, note: Note) -> str:
    if not note["visited"]:
        return "never runs" if not isinstance(insn, Exit) else ""
    words = [f"{name}={_say_operand(operand)}" for name, operand in note["operands"].items()]
    if "constant" in note:
        words.append(f"loads {note['constant']}")
    if note.get("branch", "open") != "open":
        words.append(f"{note['branch']} taken")
    return "  ".join(words)


def _say_operand(operand: Note) -> str:
    """ "packet+14+(0..60), 34 proven" """
    words = []
    for kind in operand["kinds"]:
        if kind == "number":
            words.append(_say_range(operand) if "range" in operand else "number")
        elif kind == "null":
            words.append("null")
        else:
            place = "/".join(operand["to"]) + _say_offset(operand)
            words.append(f"{place}, {operand['proven']} proven" if "proven" in operand else place)
    return " or ".join(words)


def _say_offset(operand: Note) -> str:
    text = "+?" if "offset" not in operand else (
        f"{operand['offset']:+d}" if operand["offset"] else "")
    return text + (f"+({_say_range(operand['further'])})" if "further" in operand else "")


def _say_range(known: Note) -> str:
    """ "7", "0..255", "-1..5", "number"; `&` says which bits may be set, where that says more. """
    low, high = known["smin"], known["smax"]
    if low == high:
        return str(low)
    if low < 0:
        return "number" if (low, high) == (-1 << 63, (1 << 63) - 1) else f"{low}..{high}"
    mask = "" if known["mask"] == (1 << high.bit_length()) - 1 else f" &{known['mask']:#x}"
    return f"{low}..{high}{mask}"
