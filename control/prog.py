"""xdpu prog run: one packet through a program, by the compiler, the interpreter or the kernel."""

from __future__ import annotations

import binascii
import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from control import objects, policy, setmap
from xdp_runtime.errors import ConfigError, LoadError, PortError, VerifyError
from xdp_runtime.object import Object, ProgramSpec

Settings = Sequence[setmap.Setting]
_LONGEST_BYTES = 3480  # what fits a page beside head room and tail room, as in the kernel


@dataclass(frozen=True, slots=True)
class Outcome:
    retval: int
    data_out: bytes
    duration_ns: float


def run(args: Namespace) -> int:
    packet = read_packet(args.data_in)
    obj = objects.read(args)
    spec = obj.program(args.prog_name)
    args.grants, args.fuel = policy.chosen(args), policy.bind(args, obj, spec)
    settings = [setmap.parse(text, obj) for text in args.set_map]
    engine = {"jit": run_compiled, "interp": run_interpreted, "kernel": run_in_kernel}[args.engine]
    outcome = engine(obj, spec, packet, settings, args)
    if args.data_out not in (None, "-"):
        _write(args.data_out, outcome.data_out)
    if args.json:
        print(json.dumps({"retval": outcome.retval, "data_out": outcome.data_out.hex(),
                          "duration": _round(outcome.duration_ns)}))
        return 0
    if args.data_out == "-":
        print(hex_lines(outcome.data_out), end="")
    print(f"Return value: {outcome.retval}, duration (average): {_round(outcome.duration_ns)}ns")
    return 0


def run_compiled(obj: Object, spec: ProgramSpec, packet: bytes, settings: Settings,
                 args: Namespace) -> Outcome:
    from control.watch import note
    from dataplane import fibmirror
    from xdp_runtime.maps import budget
    from xdp_runtime.program import load

    budget.check(obj.name, obj.maps, 1, limit_bytes=args.max_map_memory)
    with load(obj, spec.name, opt=args.opt, grants=args.grants) as program:
        setmap.apply(program, settings)
        fibmirror.fill(program.fib, note)
        result = program.repeat(packet, args.repeat, ingress_ifindex=args.ifindex)
    return Outcome(result.retval, result.data_out, result.duration_ns)


def run_interpreted(obj: Object, spec: ProgramSpec, packet: bytes, settings: Settings,
                    args: Namespace) -> Outcome:
    from control.watch import note
    from dataplane.fibmirror import describe, read_now
    from xdp_runtime.helpers.fib import asks_host
    from xdp_runtime.interp import Machine, Trap

    if not spec.is_xdp:
        raise LoadError(f"program {spec.name}", f"section {spec.section!r} is not XDP",
                        'put it in SEC("xdp")')
    machine = Machine(obj, spec, fuel=args.fuel)
    for name, key, value in setmap.encoded(obj, settings):
        code = machine.maps[obj.map_index(name)].update(key, value)
        if code:
            raise _refused(name, key, -code)
    if asks_host(obj):
        machine.host = read_now()
        note(describe(machine.host) + ", as they are now")
    started = time.perf_counter_ns()
    try:
        for _ in range(args.repeat):
            result = machine.run(packet, ingress_ifindex=args.ifindex)
    except Trap as trap:
        where = f"instruction {trap.insn}{source_line(spec, trap.insn)}"
        raise VerifyError(f"program {spec.name}", f"the interpreter stopped at {where}, "
                          f"{trap.kind.value}: {trap.text}", insn=trap.insn) from trap
    elapsed = time.perf_counter_ns() - started
    return Outcome(result.verdict, result.data_out, elapsed / args.repeat)


def run_in_kernel(obj: Object, spec: ProgramSpec, packet: bytes, settings: Settings,
                  args: Namespace) -> Outcome:
    from xdp_runtime.kernel import load_into_kernel

    if args.fuel is not None:
        raise ConfigError("--engine kernel", "counts no instructions, as this class asks for",
                          "use --engine jit")
    try:
        with load_into_kernel(obj, spec.name) as program:
            for name, key, value in setmap.encoded(obj, settings):
                try:
                    program.maps[name].update(key, value)
                except OSError as error:
                    raise _refused(name, key, error.errno or 0) from error
            result = program.run(packet, args.repeat, args.ifindex or None)
    except OSError as error:
        mend = "run as root, or with CAP_BPF and CAP_NET_ADMIN" if error.errno in (1, 13) else ""
        raise LoadError(f"program {spec.name}", f"the kernel refuses: {error.strerror or error}",
                        mend) from error
    return Outcome(result.retval, result.data_out, result.duration_ns)


def _refused(name: str, key: bytes, code: int) -> ConfigError:
    return ConfigError(f"--set-map {name}", f"key {key.hex()} is refused, {os.strerror(code)}")


def source_line(spec: ProgramSpec, insn: int) -> str:
    """" (text @ file:line)" of the instruction, "" where the object does not say."""
    from xdp_runtime.disasm import format_line

    before = [line for line in spec.lines if line.slot <= insn]
    if not before:
        return ""
    return f" ({format_line(max(before, key=lambda line: line.slot)).removeprefix('; ')})"


def read_packet(where: str) -> bytes:
    """A file of bytes, standard input, or the bytes themselves as hex."""
    if where.startswith("hex:"):
        try:
            packet = binascii.unhexlify("".join(where[4:].split()).replace(":", ""))
        except (binascii.Error, ValueError) as error:
            raise ConfigError("--data-in", f"not hexadecimal bytes, {error}",
                              "as in hex:ffffffffffff") from error
        name = "--data-in"
    else:
        name = where
        try:
            packet = sys.stdin.buffer.read() if where == "-" else Path(where).read_bytes()
        except OSError as error:
            raise ConfigError(f"--data-in {where}", error.strerror or str(error)) from error
    if not 14 <= len(packet) <= _LONGEST_BYTES:
        raise ConfigError(name, f"{len(packet)} bytes, a packet has 14 to {_LONGEST_BYTES}")
    return packet


def hex_lines(data: bytes) -> str:
    out = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        text = "".join(chr(c) if 0x20 <= c < 0x7F else "." for c in row)
        out.append(f"{at:04x}: {row.hex(' '):<47}  {text}\n")
    return "".join(out)


def _write(path: str, data: bytes) -> None:
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise PortError(path, f"cannot be written: {error.strerror or error}") from error


def _round(duration_ns: float) -> float | int:
    return round(duration_ns) if duration_ns >= 100 else round(duration_ns, 1)
