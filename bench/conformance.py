"""Run a folder of conformance cases: python -m bench.conformance DIR [--engine interp|jit] ...

Every `*.data` file below DIR is one case (xdp_runtime/assembler.py): a program, its memory and the
r0 it must return.  What fails is named with the reason; the last line is `N passed, M failed`.

    --engine interp     the interpreter; `jit` (the default) compiles, optimised as --opt says
    --verify            first the verifier; what it refuses does not run.  It counts as passed if
                        the kernel refuses it by the same rule, and the summary says how many

Compiled cases are one module, run in a process of their own: a program that nothing has proven
may well crash it, which is then that case's failure, and the others go on.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdp_runtime.assembler import Case, read_case
from xdp_runtime.entry import Entry, raw_entry
from xdp_runtime.errors import XdpuError
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.interp import Machine, Pointer, Trap
from xdp_runtime.isa import Alu, AluOp, CallReg, Imm
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.template import Template
from xdp_runtime.verifier.env import Finding
from xdp_runtime.verifier.facts import Facts
from xdp_runtime.verifier.report import verify

U64 = (1 << 64) - 1
_SILENCE_S = 60.0  # a compiled case that runs longer is endless
_SHIFTS = (AluOp.LSH, AluOp.RSH, AluOp.ARSH)


# --- the suite's own helpers ---------------------------------------------------------------------
def _gather_bytes(m: Any) -> Callable[..., Any]:
    def gather_bytes(a, b, c, d, e):  # type: ignore
        return ((a & 255) << 32) | ((b & 255) << 24) | ((c & 255) << 16) | (
            (d & 255) << 8) | (e & 255)

    return gather_bytes


def _memfrob(m: Any) -> Callable[..., Any]:
    def memfrob(where, count):  # type: ignore
        for i in range(count):
            m.store_u8(where, i, m.load_u8(where, i) ^ 42)
        return m.address(where)

    return memfrob


def _no_op(m: Any) -> Callable[..., Any]:
    def no_op():  # type: ignore
        return 0

    return no_op


def _sqrti(m: Any) -> Callable[..., Any]:
    def sqrti(number):  # type: ignore
        root = 0
        for i in range(32):
            more = root | m.lshr(1 << 31, i)
            if not m.ult(number, m.mul(more, more)):
                root = more
        return root

    return sqrti


def _strcmp(m: Any) -> Callable[..., Any]:
    def strcmp(one, other):  # type: ignore
        i = 0
        while m.load_u8(one, i) == m.load_u8(other, i) and m.load_u8(one, i) != 0:
            i += 1
        return m.load_u8(one, i) - m.load_u8(other, i)

    return strcmp


def _unwind(m: Any) -> Callable[..., Any]:
    def unwind(number):  # type: ignore
        return number

    return unwind


def _text(place: Pointer) -> bytes:
    """The string there, without its end; a Trap where it has none in its object."""
    out = bytearray()
    while byte := place.moved(len(out)).load(1):
        assert isinstance(byte, int)
        out.append(byte)
    return bytes(out)


def _interpret_gather(machine: Machine, *numbers: int) -> int:
    return int.from_bytes(bytes(n & 255 for n in numbers), "big")


def _interpret_memfrob(machine: Machine, place: Pointer, count: int) -> Pointer:
    for i in range(count):
        byte = place.moved(i)
        old = byte.load(1)
        assert isinstance(old, int)
        byte.store(1, old ^ 42)
    return place


def _interpret_strcmp(machine: Machine, one: Pointer, other: Pointer) -> int:
    a, b = _text(one) + b"\0", _text(other) + b"\0"
    return next((x - y for x, y in zip(a, b, strict=False) if x != y), 0)


def _helper(id: int, name: str, args: tuple[Arg, ...], interpret: Callable[..., Any],
            factory: Callable[[Any], Callable[..., Any]]) -> Helper:
    kinds = ", ".join("i64" if a in (Arg.ANYTHING, Arg.SIZE_OR_ZERO) else "ptr" for a in args)
    return Helper(id, name, args, Ret.SCALAR, interpret,
                  Template(f"suite_{name}", factory, f"i64({kinds})"))


_ANY = Arg.ANYTHING
SUITE_HELPERS: Mapping[int, Helper] = {helper.id: helper for helper in (
    _helper(0, "gather_bytes", (_ANY,) * 5, _interpret_gather, _gather_bytes),
    _helper(1, "memfrob", (Arg.MEM_UNINIT, Arg.SIZE_OR_ZERO), _interpret_memfrob, _memfrob),
    _helper(2, "no_op", (), lambda machine: 0, _no_op),
    _helper(3, "sqrti", (_ANY,), lambda machine, number: math.isqrt(number), _sqrti),
    _helper(4, "strcmp", (Arg.TEXT, Arg.TEXT), _interpret_strcmp, _strcmp),
    _helper(5, "unwind", (_ANY,), lambda machine, number: number, _unwind),
)}


# --- one case ------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Outcome:
    """`refused`: the verifier did, by a rule that the kernel has as well."""

    name: str
    ok: bool
    why: str = ""
    refused: bool = False


def entry_of(case: Case) -> Entry:
    return raw_entry(len(case.memory), SUITE_HELPERS)


def object_of(case: Case) -> Object:
    return Object(case.name, (ProgramSpec(case.name, "raw", "raw", case.insns),), (), "GPL")


def proof(case: Case) -> tuple[Facts, Finding | None]:
    """What the verifier found out, or nothing and why it refuses."""
    obj = object_of(case)
    report = verify(obj, obj.programs[0], entry=entry_of(case))
    if report.ok and report.facts is not None:
        return report.facts, None
    return Facts.assume_nothing(len(case.insns)), report.errors[0]


def kernel_refuses(case: Case, finding: Finding) -> bool:
    """Is this refusal one of the kernel's: an immediate shift out of range, a call by register?"""
    match case.insns[finding.insn]:
        case Alu(op, is64, _, Imm(amount)):
            return op in _SHIFTS and not 0 <= amount < (64 if is64 else 32)
        case CallReg():
            return True
    return False


def judge(case: Case, r0: int) -> Outcome:
    if r0 == case.result:
        return Outcome(case.name, True)
    return Outcome(case.name, False, f"r0 is {r0:#x}, not {case.result:#x}")


def interpret(case: Case) -> Outcome:
    obj = object_of(case)
    machine = Machine(obj, obj.programs[0], (), entry=entry_of(case))
    try:
        return judge(case, machine.run(case.memory).r0)
    except Trap as trap:
        return Outcome(case.name, False, str(trap))


# --- compiled ------------------------------------------------------------------------------------
def compile_cases(cases: Sequence[tuple[Case, Facts]], opt: int) -> list[Any]:
    """For each case a function of its memory's address, or the XdpuError that says why not."""
    from xdp_runtime.compiler import link, target, templates
    from xdp_runtime.compiler.lower import Lowering
    from xdp_runtime.compiler.scopes import alias_scopes

    bodies: list[str] = []
    needed: dict[str, Template] = {}
    out: list[Any] = []
    for number, (case, facts) in enumerate(cases):
        program = object_of(case).programs[0]
        try:
            lowered = Lowering(program, number, (), 1, (number,), facts, entry_of(case)).lower()
        except XdpuError as error:
            out.append(error)
            continue
        needed |= lowered.templates
        bodies += [lowered.text, f'define i64 @"case.{number}"(ptr %memory) {{\n'
                   f'  %r0 = call i64 @"prog.{number}"(ptr null, ptr %memory)\n  ret i64 %r0\n}}\n']
        out.append(f"case.{number}")
    names = [name for name in out if isinstance(name, str)]
    wanted = templates.closure(needed.values())
    text = "\n".join([link.intrinsics(), *map(templates.declaration, wanted), *bodies,
                      alias_scopes(0), ""])
    module = target.link(text, templates.bitcodes(wanted), names)
    target.optimise(module, opt)
    code = target.Code(target.emit_object(module, opt), {}, names)
    functions = [code.function(one, ctypes.c_uint64, ctypes.c_char_p) if isinstance(one, str)
                 else one for one in out]
    for function in functions:
        if not isinstance(function, XdpuError):
            function.code = code  # they live as long as it does
    return functions


def run_compiled(cases: Sequence[tuple[Case, Facts]], opt: int) -> Iterable[Outcome]:
    """In processes of their own: one that dies takes one case with it."""
    functions = compile_cases(cases, opt)
    done = 0
    while done < len(cases):
        here, there = os.pipe()
        child = os.fork()
        if child == 0:
            _report(cases, functions, done, there)
        os.close(there)
        with os.fdopen(here, "rb", 0) as results:
            while done < len(cases):
                ready = select.select([results], [], [], _SILENCE_S)[0]
                line = results.read(8) if ready else None
                if not line:
                    break
                one = functions[done]
                yield (Outcome(cases[done][0].name, False, str(one))
                       if isinstance(one, XdpuError)
                       else judge(cases[done][0], int.from_bytes(line, "little")))
                done += 1
            if done < len(cases):
                os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if done < len(cases):
            why = (f"does not end within {_SILENCE_S:g} s" if line is None
                   else f"crashed ({signal.Signals(os.WTERMSIG(status)).name})"
                   if os.WIFSIGNALED(status) else f"ended with {os.WEXITSTATUS(status)}")
            yield Outcome(cases[done][0].name, False, why)
            done += 1


def _report(cases: Sequence[tuple[Case, Facts]], functions: Sequence[Any], first: int,
            pipe: int) -> None:
    """The child: r0 of each case from `first` on, eight bytes each."""
    try:
        for (case, _), function in zip(cases[first:], functions[first:], strict=True):
            r0 = 0
            if not isinstance(function, XdpuError):
                r0 = function(ctypes.create_string_buffer(case.memory, len(case.memory) or 1))
            os.write(pipe, r0.to_bytes(8, "little"))
    finally:
        os._exit(0)


# --- a folder ------------------------------------------------------------------------------------
def run(paths: Iterable[Path], engine: str = "jit", opt: int = 3, verified: bool = False
        ) -> list[Outcome]:
    """The outcome of each case file, in order."""
    outcomes: dict[str, Outcome] = {}
    todo: list[tuple[Case, Facts]] = []
    for path in paths:
        name = path.stem if path.stem not in outcomes else str(path)
        outcomes[name] = Outcome(name, False, "did not run")
        try:
            case = read_case(path.read_text("utf-8", "replace"), name)
        except XdpuError as error:
            outcomes[name] = Outcome(name, False, str(error))
            continue
        except OSError as error:
            outcomes[name] = Outcome(name, False, f"cannot be read: {error.strerror}")
            continue
        facts, finding = (Facts.assume_nothing(len(case.insns)), None) if (
            engine == "interp" and not verified) else proof(case)
        if verified and finding is not None:
            expected = kernel_refuses(case, finding)
            outcomes[name] = Outcome(name, expected, "refused"
                                     f"{' as expected' if expected else ''}: instruction "
                                     f"{finding.insn}: {finding.text}", expected)
        elif engine == "interp":
            outcomes[name] = interpret(case)
        else:
            todo.append((case, facts))
    if todo:
        outcomes |= {one.name: one for one in run_compiled(todo, opt)}
    return list(outcomes.values())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.conformance",
                                     description="Run a folder of conformance cases.")
    parser.add_argument("directory", type=Path, help="or one case")
    parser.add_argument("--engine", choices=("interp", "jit"), default="jit")
    parser.add_argument("--opt", type=int, choices=(0, 3), default=3)
    parser.add_argument("--verify", action="store_true", help="refuse what the verifier refuses")
    options = parser.parse_args(arguments)
    paths = ([options.directory] if options.directory.is_file()
             else sorted(options.directory.rglob("*.data")))
    if not paths:
        parser.error(f"{options.directory}: no *.data file there")
    outcomes = run(paths, options.engine, options.opt, options.verify)
    for one in outcomes:
        if not one.ok or one.refused:
            print(f"{one.name}: {one.why}")
    refused = sum(one.refused for one in outcomes)
    if refused:
        print(f"{refused} of those that passed: refused as expected")
    failed = sum(not one.ok for one in outcomes)
    print(f"{len(outcomes) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
