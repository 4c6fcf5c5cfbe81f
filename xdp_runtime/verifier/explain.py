"""What the verifier knows of each instruction, for people and for editors.

    notes = explain(obj, program, report)      # one dict an instruction, ready for JSON
    print(annotated(obj, program, notes))

A note says what had to hold (obligations.py) and what was known before the instruction, united
over all paths (facts.py).
"""

from __future__ import annotations

from typing import Any, assert_never

from xdp_runtime.disasm import format_insn, format_line
from xdp_runtime.isa import Exit, Imm, Insn, JumpIf, Operand
from xdp_runtime.object import Line, Object, ProgramSpec
from xdp_runtime.verifier import obligations as must
from xdp_runtime.verifier import scalar
from xdp_runtime.verifier.env import Finding
from xdp_runtime.verifier.facts import NULLABLE, NUMBER, POINTER, Facts
from xdp_runtime.verifier.report import line_of

Note = dict[str, Any]
_COLUMN = 44  # where remarks begin


def describe_line(program: ProgramSpec, slot: int) -> Note | None:
    line = line_of(program, slot)
    if line is None:
        return None
    return {"file": line.file, "line": line.line, "column": line.column,
            "text": line.text.strip()}


def explain(obj: Object, program: ProgramSpec, facts: Facts) -> list[Note]:
    return [_note(obj, program, facts, slot, insn)
            for slot, insn in enumerate(program.insns) if insn is not None]


def _note(obj: Object, program: ProgramSpec, facts: Facts, slot: int, insn: Insn) -> Note:
    note: Note = {
        "insn": slot,
        "text": format_insn(insn, slot, obj),
        "line": describe_line(program, slot),
        "visited": bool(facts.visited[slot]),
        "obligations": [say(one, obj) for one in must.obligations(insn)],
        "operands": {},
    }
    for number in range(11):
        shape = facts.shape.get((slot, number), 0)
        if shape:
            note["operands"][f"r{number}"] = _operand(shape, facts.ranges.get((slot, number)))
    if isinstance(insn, JumpIf) and facts.visited[slot]:
        falls, taken = facts.falls[slot], facts.taken[slot]
        note["branch"] = "open" if falls and taken else "always" if taken else "never"
    constant = facts.constants.get(slot)
    if constant is not None:
        note["constant"] = constant
    if facts.context_at.get(slot):
        note["context"] = True
    return note


def _operand(shape: int, known: scalar.Scalar | None) -> Note:
    kinds = [word for bit, word in ((NUMBER, "number"), (POINTER, "pointer")) if shape & bit]
    if shape & NULLABLE:
        kinds.append("null")
    operand: Note = {"kinds": kinds}
    if known is not None:
        operand |= {"range": scalar.describe(known), "umin": known.umin, "umax": known.umax,
                    "smin": known.smin, "smax": known.smax}
    return operand


def say(obligation: must.Obligation, obj: Object | None = None) -> str:
    """An obligation in words."""
    match obligation:
        case must.Readable(reg):
            return f"r{reg} holds a value"
        case must.Writable(reg):
            return f"r{reg} may be written"
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
    if note.get("context"):
        words.append("context")
    if note.get("branch", "open") != "open":
        words.append(f"{note['branch']} taken")
    return "  ".join(words)


def _say_operand(operand: Note) -> str:
    kinds = list(operand["kinds"])
    if "number" in kinds:
        kinds[kinds.index("number")] = operand.get("range", "number")
    return " or ".join(kinds)
