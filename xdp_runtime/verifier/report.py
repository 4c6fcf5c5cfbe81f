"""The verdict on a program, as data and in words."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass

from xdp_runtime.entry import XDP, Entry
from xdp_runtime.errors import VerifyError
from xdp_runtime.object import Line, Object, ProgramSpec
from xdp_runtime.verifier import flow, scalar
from xdp_runtime.verifier.domain import Num, Ptr, Reg, State, name_of
from xdp_runtime.verifier.env import Env, Finding, Observer, Refused
from xdp_runtime.verifier.explore import Explorer
from xdp_runtime.verifier.facts import Facts

TIME_BUDGET_S = 60.0


@dataclass(frozen=True, slots=True)
class Report:
    """`errors` is empty for a program that is safe; `facts` are complete only then."""

    program: str
    errors: tuple[Finding, ...]
    facts: Facts | None
    steps: int  # instructions walked over all paths
    states: int  # states remembered
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.errors


def verify(obj: Object, program: ProgramSpec, time_budget_s: float = TIME_BUDGET_S,
           observer: Observer | None = None, entry: Entry = XDP,
           facts: Facts | None = None) -> Report:
    """Prove `program` safe when it is entered that way, or say why it could not be proven.

    `facts`: fill these, instead of new ones; `time_budget_s` is of this thread's CPU time."""
    started = time.monotonic()
    env = Env(obj, program, observer, entry)
    try:
        shape = flow.analyse(program.insns, entry.helpers)
    except flow.FlowError as error:
        finding = Finding(error.insn, error.kind, error.text)
        return Report(program.name, (finding,), None, 0, 0, time.monotonic() - started)
    except VerifyError as error:
        finding = Finding(error.insn or 0, "control", error.why or error.what)
        return Report(program.name, (finding,), None, 0, 0, time.monotonic() - started)
    explorer = Explorer(env, shape, time_budget_s)
    if facts is not None:
        facts.take(env)
        explorer.facts = facts
    explorer.facts.live = shape.live
    errors: tuple[Finding, ...] = ()
    collecting = gc.isenabled()
    gc.disable()  # states live to the end; at a million instructions it is half the time
    try:
        explorer.run()
    except Refused as error:
        known = describe(explorer.state, error.regs)
        errors = (Finding(explorer.slot, error.kind, error.text, known, error.mend),)
    finally:
        if collecting:
            gc.enable()
    return Report(program.name, errors, explorer.facts, explorer.steps, explorer.remembered,
                  time.monotonic() - started)


def describe(state: State | None, regs: tuple[int, ...]) -> str:
    """What was known of some registers, in one line."""
    if state is None:
        return ""
    return ", ".join(f"r{n}={describe_reg(state.frames[-1].regs[n])}" for n in regs)


def describe_reg(value: Reg) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Num):
        return scalar.describe(value.range)
    return _pointer(value)


def _pointer(ptr: Ptr) -> str:
    parts = [name_of(ptr)]
    if ptr.off:
        parts.append(f"off={ptr.off}")
    if ptr.var is not None:
        parts.append(f"var={scalar.describe(ptr.var)}")
    if ptr.range:
        parts.append(f"proven={ptr.range}")
    return parts[0] if len(parts) == 1 else f"{parts[0]} ({', '.join(parts[1:])})"


def line_of(program: ProgramSpec, slot: int) -> Line | None:
    """The source line an instruction came from."""
    return next((line for line in reversed(program.lines) if line.slot <= slot), None)


def place_of(program: ProgramSpec, slot: int) -> str:
    """"instruction 17 (file.c:33: source line)", in printable characters whatever is in there."""
    line = line_of(program, slot)
    if line is None:
        return f"instruction {slot}"
    source = f"{line.file.rsplit('/', 1)[-1]}:{line.line}: {line.text.strip()}".rstrip(": ")
    return f"instruction {slot} ({''.join(c if c.isprintable() else ' ' for c in source)})"


def as_error(program: ProgramSpec, finding: Finding) -> VerifyError:
    """A finding as the exception that `load` raises."""
    detail = f"known: {finding.state}" if finding.state else ""
    return VerifyError(f"{program.name}: {place_of(program, finding.insn)}", finding.text,
                       finding.mend, detail, insn=finding.insn)
