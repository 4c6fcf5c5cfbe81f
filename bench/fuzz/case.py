"""A disagreement as a text file: maps, packets, map operations, assembly.  Both ways.

    map table 1 8 16 64 0        name, type, key, value, entries, flags, and what slots hold
    holds words 1 2564...        a section's kind (GlobalKind) and content, of the map before
    inner 2 4 64 4 0             what a map of maps takes, of the map before
    packet 00ff...
    step table update KEY VALUE 1
    program first
    r0 = 2
    exit
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench.fuzz.engines import Step
from xdp_runtime.asm import assemble
from xdp_runtime.btf import Btf
from xdp_runtime.disasm import format_program
from xdp_runtime.isa import CallLocal, Insns, LoadFunc
from xdp_runtime.kernel_functions import typed
from xdp_runtime.object import Function, GlobalKind, MapSpec, Object, ProgramSpec

Case = tuple[Object, list[bytes], list[Step]]


def write_case(obj: Object, packets: Sequence[bytes], steps: Sequence[Step]) -> str:
    out = []
    for m in obj.maps:
        slots = "".join(f" {index}={name}" for index, name in m.slots)
        out.append(f"map {m.name} {int(m.type)} {m.key_size} {m.value_size} {m.max_entries} "
                   f"{m.flags}{slots}")
        if m.global_kind is not GlobalKind.NONE:
            out.append(f"holds {m.name} {int(m.global_kind)} {m.initial.hex() or '-'}")
        if m.inner is not None:
            out.append(f"inner {int(m.inner.type)} {m.inner.key_size} {m.inner.value_size} "
                       f"{m.inner.max_entries} {m.inner.flags}")
    out += [f"packet {packet.hex()}" for packet in packets]
    out += [f"step {name} {operation} {key.hex() or '-'} {value.hex() or '-'} {flags}"
            for name, operation, key, value, flags in steps]
    for program in obj.programs:
        out += [f"program {program.name}", format_program(program, obj)]
    return "\n".join(out)


def read_case(text: str) -> Case:
    maps: list[MapSpec] = []
    packets: list[bytes] = []
    steps: list[Step] = []
    bodies: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        words = line.split()
        match words[:1]:
            case ["map"] if not bodies:
                slots = tuple((int(index), name) for index, _, name in
                              (word.partition("=") for word in words[7:]))
                kind, key, value, entries, flags = (int(word) for word in words[2:7])
                maps.append(MapSpec(words[1], kind, key, value, entries, flags, slots=slots))
            case ["holds"] if not bodies:
                maps[-1] = replace(maps[-1], initial=_bytes(words[3]),
                                   global_kind=GlobalKind(int(words[2])))
            case ["inner"] if not bodies:
                kind, key, value, entries, flags = (int(word) for word in words[1:6])
                maps[-1] = replace(maps[-1], inner=MapSpec("inner", kind, key, value, entries,
                                                           flags))
            case ["packet"] if not bodies:
                packets.append(bytes.fromhex(words[1]))
            case ["step"] if not bodies:
                steps.append((words[1], words[2], _bytes(words[3]), _bytes(words[4]),
                              int(words[5])))
            case ["program"]:
                bodies.append((words[1], []))
            case _ if bodies:
                bodies[-1][1].append(line)
    names = [spec.name for spec in maps]
    programs = tuple(program_of(name, assemble("\n".join(lines), names))
                     for name, lines in bodies)
    return with_types(Object("case", programs, tuple(maps), "GPL")), packets, steps


def with_types(obj: Object) -> Object:
    """With BTF where the verifiers ask for types of functions."""
    types = next((one for one, _ in (typed(p.insns) for p in obj.programs) if one), b"")
    return replace(obj, btf=Btf.parse(types) if types else None)


def _bytes(word: str) -> bytes:
    return b"" if word == "-" else bytes.fromhex(word)


def program_of(name: str, insns: Insns) -> ProgramSpec:
    """A program whose functions start where something calls."""
    starts = sorted({0} | {slot + 1 + insn.off for slot, insn in enumerate(insns)
                           if isinstance(insn, CallLocal | LoadFunc)})
    functions = tuple(Function(f"{name}{number or ''}", start, end) for number, (start, end)
                      in enumerate(zip(starts, [*starts[1:], len(insns)], strict=True)))
    return ProgramSpec(name, "xdp", "xdp", insns, functions)
