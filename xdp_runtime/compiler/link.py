"""Put a program together: its lowered functions, its maps' operations, the loop around it.

One textual module declares every memory region as an external symbol and calls templates by name;
the templates' bitcode is linked in, everything but the exports becomes internal, and LLVM sees it
all at once.  What comes out is an object file that any process on this machine can load.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from xdp_runtime import cache
from xdp_runtime import state as st
from xdp_runtime.compiler.image import Image, pack, unpack
from xdp_runtime.errors import LoadError
from xdp_runtime.isa import LoadMap
from xdp_runtime.maps import dev, family_of, timers
from xdp_runtime.maps.family import round_up
from xdp_runtime.object import GlobalKind, MapSpec, MapType, Object, ProgramSpec
from xdp_runtime.template import Template
from xdp_runtime.verifier.facts import Facts

_FROZEN = (GlobalKind.RODATA, GlobalKind.KCONFIG)
ENTRY = "xdpu.program"  # i32(ptr state): what a loop template calls
# of a program that looks at no packet (unseen.py), otherwise -1 and nothing
UNSEEN_VERDICT = "xdpu.unseen.verdict"  # i64(): the verdict of all packets
UNSEEN = "xdpu.unseen"  # i32(ptr state): the program
SECOND = "xdpu.second"  # i32(i64 number + 1, ptr state): a program of a map's entry; -1: none
# Of a function that programs are inlined into.  Its stack begins a cache line: a vector of 64 bytes
# that finds no register is spilled there, and across two lines that costs some 3 ns, by chance of
# where the stack is.  And no memory goes away while it runs, by its own doing or another thread's:
# without the two words LLVM does not believe that what was shown to exist still does.
AROUND = 'nosync nofree "stackrealign"'
TARGETS = "xdpu.targets"  # i64(i64 map, i64 worker, ptr out, i64 cursor): as a devmap's operation


@dataclass(frozen=True, slots=True)
class Unit:
    """Code that is linked around a program, such as a worker loop.

    `text` is LLVM assembly that may call the templates and @"xdpu.program"; `exports` are
    functions that Python calls; `externals` are symbols given an address when the code is loaded.
    `scout`: it calls maps.scout.SCOUT and STEPS, too, for maps larger than so many bytes.
    """

    name: str
    text: str = ""
    templates: tuple[Template, ...] = ()
    exports: tuple[str, ...] = ()
    externals: tuple[str, ...] = ()
    scout: int = 0


@dataclass(frozen=True, slots=True)
class Lowered:
    """Proven programs as LLVM assembly, without the code around them.

    `head` is what units call, `regions` the symbols of maps, `slots` the programs' instructions."""

    head: str
    bodies: tuple[str, ...]
    templates: Mapping[str, Template]
    regions: tuple[str, ...]
    maps: int
    slots: int


def tail_call_targets(obj: Object, entry: ProgramSpec) -> list[ProgramSpec]:
    """Programs compiled with `entry`, it first: all XDP programs once it uses a PROG_ARRAY, but
    for those of SEC("?xdp") that no slot names.

    What a PROG_ARRAY has are programs of one kind, as to xdp.frags, devmap and cpumap (the kernel's
    bpf_prog_map_compatible).  Raises LoadError for one whose slots name another."""
    used = [obj.maps[insn.map] for insn in entry.insns
            if isinstance(insn, LoadMap) and 0 <= insn.map < len(obj.maps)
            and obj.maps[insn.map].type == MapType.PROG_ARRAY]
    if not used:
        return [entry]
    names = {name for spec in used for _, name in spec.slots}
    for other in obj.programs:
        if other.name in names and other.is_xdp and other.kind != entry.kind:
            raise LoadError(f"program {entry.name}", f"of section {entry.section} calls "
                            f"{other.name} of section {other.section}, and a tail call stays "
                            "among programs of one kind", "put both in sections of the same kind")
    return [entry, *(p for p in obj.programs
                     if p.is_xdp and p is not entry and p.kind == entry.kind
                     and (p.autoload or p.name in names))]


def second_programs(obj: Object, entry: ProgramSpec) -> list[ProgramSpec]:
    """Programs for packets that `entry` redirects: made for the maps that it uses (xdp/devmap,
    xdp/cpumap), if these have room for a program in their entries, and for those that these
    programs redirect by."""
    places: set[str] = set()
    reached = tail_call_targets(obj, entry)
    for program in reached:
        for place in _second_places(obj, program) - places:
            places.add(place)
            for second in obj.programs:
                if second.is_xdp and second.place == place:
                    reached += tail_call_targets(obj, second)
    return [p for p in obj.programs if p.is_xdp and p is not entry and p.place in places]


def _second_places(obj: Object, program: ProgramSpec) -> set[str]:
    used = [one for insn in program.insns
            if isinstance(insn, LoadMap) and 0 <= insn.map < len(obj.maps)
            for one in (obj.maps[insn.map], obj.maps[insn.map].inner) if one is not None]
    return {dev.PROGRAMS_OF[one.type] for one in used
            if one.type in dev.PROGRAMS_OF and one.value_size == 8}


def compiled_programs(obj: Object, entry: ProgramSpec) -> list[ProgramSpec]:
    """All programs of the module of `entry`: those it tail-calls, it first, then those that its
    maps' entries name, and what these tail-call.  A program's number is its place."""
    out = tail_call_targets(obj, entry)
    for program in second_programs(obj, entry):
        out += [p for p in tail_call_targets(obj, program) if p not in out]
    return out


def compile_program(obj: Object, entry: ProgramSpec, workers: int, opt: int = 3,
                    units: Sequence[Unit] = (), fuel: int | None = None) -> Image:
    """Machine code for `entry` and everything it can reach, from the cache if it is there.

    `opt` is 0 to 3, or target.BASELINE.  `fuel`: the instructions that a run may have, to be
    counted (fuel.py).  Raises LoadError, VerifyError."""
    key = content_key(obj, entry, workers, opt, units, fuel)
    found = cached(key)
    if found is not None:
        return found
    began_s = time.monotonic()
    lowered = lower(obj, entry, workers, units, fuel)
    return compile_lowered(lowered, opt, units, key, began_s)


def cached(key: str) -> Image | None:
    found = cache.get(key)
    return unpack(found) if found is not None else None


def compile_lowered(lowered: Lowered, opt: int, units: Sequence[Unit], key: str,
                    began_s: float) -> Image:
    """The second half of compile_program; `began_s` is when the first began."""
    from xdp_runtime.compiler import baseline, target, templates

    if opt == target.BASELINE:
        image = baseline.compile_apart(lowered, units)
    else:
        module, exports, symbols, rare = assemble(lowered, units, apart=opt > 0)
        image = Image(target.compile_module(module, opt, lowered.slots), exports, symbols,
                      tuple(templates.machine_code(template) for template in rare),
                      target.pipeline(opt, lowered.slots))
    image = replace(image, compile_s=time.monotonic() - began_s)
    cache.put(key, pack(image))
    return image


def build_module(obj: Object, entry: ProgramSpec, workers: int,
                 units: Sequence[Unit] = (), triple: str = "", fuel: int | None = None,
                 ) -> tuple[object, tuple[str, ...], tuple[str, ...]]:
    """(linked but not optimised LLVM module, exports, external data symbols)

    `triple` is what it will be compiled for, this machine's if not given."""
    return assemble(lower(obj, entry, workers, units, fuel), units, triple)[:3]


def lower(obj: Object, entry: ProgramSpec, workers: int, units: Sequence[Unit] = (),
          fuel: int | None = None) -> Lowered:
    """Prove and lower `entry` and everything it can reach; of `units` only what they call of it
    counts.  Raises LoadError, VerifyError."""
    from xdp_runtime.compiler.frames import tail_calls_in_functions
    from xdp_runtime.compiler.lower import Lowering
    from xdp_runtime.compiler.scout import scouts
    from xdp_runtime.compiler.unseen import verdict_unseen
    from xdp_runtime.entry import XDP

    for spec in obj.maps:
        family_of(spec)  # a map that does not exist here is the first thing to say
    needed: dict[str, Template] = {}
    programs, called = compiled_programs(obj, entry), len(tail_call_targets(obj, entry))
    # what a function tail-calls returns all of r0 to the function's caller
    wide = any(tail_calls_in_functions(program.insns) for program in programs)
    run = replace(XDP, result_bits=64) if wide else XDP
    bodies = []
    callbacks: list[tuple[int, tuple[int, int]]] = []
    for number, program in enumerate(programs):
        facts = proven_facts(obj, program)
        alone = number >= called and len(tail_call_targets(obj, program)) == 1
        numbers = (number,) if alone else range(called if number < called else len(programs))
        lowered = Lowering(program, number, obj.maps, workers, numbers, facts, run,
                           fuelled=fuel is not None).lower()
        needed |= lowered.templates
        bodies.append(lowered.text)
        set_here = sorted(lowered.timers)
        for callback in set_here:  # which may set others
            lowered = Lowering(program, number, obj.maps, workers, (), facts,
                               timer=callback).lower()
            needed |= lowered.templates
            bodies.append(lowered.text)
            set_here += sorted(lowered.timers - set(set_here))
        callbacks += [(number, callback) for callback in set_here]
        del facts, lowered  # of a large program hundreds of megabytes, which LLVM can use
    large = max((unit.scout for unit in units), default=0)
    if large:
        text, more = scouts(programs[:called], obj.maps, workers, large,
                            partial(proven_facts, obj))
        bodies.append(text)
        needed |= more
    devices = [index for index, spec in enumerate(obj.maps) if spec.type in dev.DEVICES]
    needed |= {t.name: t for t in (family_of(obj.maps[index]).operations["targets"]
                                   for index in devices)}
    if callbacks:
        needed[timers.FIRE.name] = timers.FIRE
    head = "\n".join([
        f'define i32 @"{ENTRY}"(ptr %state) alwaysinline {{', *_fill_up(fuel),
        *_call_program(0, wide), "  ret i32 %v0", "}",
        _unseen(verdict_unseen(entry.insns) if fuel is None else -1, wide),
        _second(programs, [programs.index(p) for p in second_programs(obj, entry)], fuel, wide),
        _targets(obj.maps, devices, workers),
        _timers(obj.maps, callbacks)])
    return Lowered(head, tuple(bodies), needed, tuple(region_symbols(obj.maps, workers)),
                   len(obj.maps), sum(len(program.insns) for program in programs))


def assemble(lowered: Lowered, units: Sequence[Unit], triple: str = "", apart: bool = False,
             exports: Sequence[str] = (),
             ) -> tuple[object, tuple[str, ...], tuple[str, ...], list[Template]]:
    """One module of programs and the code around them: as build_module; and with `apart` the rare
    templates, which it does not have then.  `exports`: functions that others call, besides."""
    from xdp_runtime.compiler import target, templates
    from xdp_runtime.compiler.scopes import alias_scopes

    needed, named = dict(lowered.templates), [*exports]
    for unit in units:
        needed |= {t.name: t for t in unit.templates}
        named += unit.exports
    everything = templates.closure(needed.values())
    wanted = templates.closure(needed.values(), apart)
    externals = external_symbols(units, everything)
    text = "\n".join([
        *(f'@"{name}" = external global i8, align 64' for name in [*lowered.regions, *externals]),
        *(templates.declaration(template) for template in wanted),
        intrinsics(),
        lowered.head,
        *(unit.text for unit in units),
        *lowered.bodies,  # after their callers (target.link)
        target.pause_definition(triple),
        alias_scopes(lowered.maps),
        "",
    ])
    rare = [t for t in everything if apart and t.rare]
    inside = {t.name for t in wanted} - {t.name for t in rare}
    parts = zip(everything, templates.bitcodes(everything), strict=True)
    module = target.link(text, (code for t, code in parts if t.name in inside), named)
    return module, tuple(named), (*lowered.regions, *externals), rare


def external_symbols(units: Iterable[Unit], needed: Iterable[Template]) -> list[str]:
    """Of units and templates, each once."""
    return list(dict.fromkeys([*(name for unit in units for name in unit.externals),
                               *(name for template in needed for name in template.externals)]))


def _call_program(number: int, wide: bool) -> list[str]:
    """Its verdict as %v<number>."""
    if not wide:
        return [f'  %v{number} = call i32 @"prog.{number}"(ptr %state)']
    return [f'  %r{number} = call i64 @"prog.{number}"(ptr %state)',
            f"  %v{number} = trunc i64 %r{number} to i32"]


def _unseen(verdict: int, wide: bool) -> str:
    program = ["  ret i32 -1"] if verdict < 0 else [*_call_program(0, wide), "  ret i32 %v0"]
    return "\n".join([f'define i64 @"{UNSEEN_VERDICT}"() alwaysinline {{',
                      f"  ret i64 {verdict}", "}",
                      f'define i32 @"{UNSEEN}"(ptr %state) alwaysinline {{', *program, "}"])


def _second(programs: Sequence[ProgramSpec], numbers: Sequence[int], fuel: int | None,
            wide: bool) -> str:
    cases = " ".join(f"i64 {n + 1}, label %p{n}" for n in numbers)
    out = [f'define i32 @"{SECOND}"(i64 %number, ptr %state) noinline {{', *_fill_up(fuel),
           f"  switch i64 %number, label %none [ {cases} ]"]
    for n in numbers:
        out += [f"p{n}: ; {programs[n].name}", f"  %at{n} = getelementptr inbounds i8, ptr %state, "
                f"i64 {st.PROGRAM}", f"  store i32 {n}, ptr %at{n}",
                *_call_program(n, wide), f"  ret i32 %v{n}"]
    return "\n".join([*out, "none:", "  ret i32 -1", "}"])


def _targets(maps: Sequence[MapSpec], devices: Sequence[int], workers: int) -> str:
    cases = " ".join(f"i64 {n}, label %m{n}" for n in devices)
    out = [f'define i64 @"{TARGETS}"(i64 %map, i64 %worker, ptr %out, i64 %cursor) noinline {{',
           f"  switch i64 %map, label %none [ {cases} ]"]
    for n in devices:
        family = family_of(maps[n])
        leading = [f'ptr @"map.{n}.{p}"' if isinstance(p, str) else f"i64 {p}"
                   for p in family.parameters(maps[n], workers)]
        out += [f"m{n}:", f"  %r{n} = call i64 @{family.operations['targets'].name}("
                f"{', '.join(leading)}, i64 %worker, ptr %out, i64 %cursor)", f"  ret i64 %r{n}"]
    return "\n".join([*out, "none:", "  ret i64 -1", "}"])


def _timers(maps: Sequence[MapSpec], callbacks: Sequence[tuple[int, tuple[int, int]]]) -> str:
    """What fires timers, which is nothing in a module without callbacks, and what they run."""
    from xdp_runtime.compiler.calls import timer_name, timer_number

    head = f'define i64 @"{timers.TIMERS}"(ptr %worker, i64 %number) alwaysinline {{'
    if not callbacks:
        return "\n".join([head, "  ret i64 -1", "}"])
    cases = " ".join(f"i64 {timer_number(*one)}, label %t{n}" for n, one in enumerate(callbacks))
    out = [head, f"  %left = call i64 @{timers.FIRE.name}(ptr %worker, i64 %number)",
           "  ret i64 %left", "}",
           f'define i64 @"{timers.DISPATCH}"(ptr %state, i64 %callback, ptr %timer) noinline {{',
           "  %index = alloca i64", f"  switch i64 %callback, label %none [ {cases} ]"]
    for n, (program, callback) in enumerate(callbacks):
        index, spec = callback[1], maps[callback[1]]
        out += [f"t{n}:",
                f"  %v{n} = getelementptr inbounds i8, ptr %timer, i64 {-spec.timer_at}"]
        if spec.type == MapType.ARRAY:
            out += [f"  %a{n} = ptrtoint ptr %v{n} to i64",
                    f'  %b{n} = ptrtoint ptr @"map.{index}.values" to i64',
                    f"  %d{n} = sub i64 %a{n}, %b{n}",
                    f"  %i{n} = udiv i64 %d{n}, {round_up(spec.value_size, 8)}",
                    f"  store i64 %i{n}, ptr %index"]
            key = "%index"
        else:
            key = f"%k{n}"
            out.append(f"  {key} = getelementptr inbounds i8, ptr %v{n}, i64 "
                       f"{-round_up(spec.key_size, 8)}")
        out += [f'  %r{n} = call i32 @"{timer_name(program, callback)}"'
                f"(ptr %state, ptr {key}, ptr %v{n})", "  br label %none"]
    return "\n".join([*out, "none:", "  ret i64 0", "}"])


def _fill_up(fuel: int | None) -> list[str]:
    if fuel is None:
        return []
    return [f"  %at = getelementptr inbounds i8, ptr %state, i64 {st.WORKER}",
            "  %worker = load ptr, ptr %at",
            f"  %tank = getelementptr inbounds i8, ptr %worker, i64 {st.W_FUEL}",
            f"  store i64 {fuel}, ptr %tank"]


def proven_facts(obj: Object, program: ProgramSpec) -> Facts:
    """What the verifier found out.  Raises VerifyError: what is not proven is not compiled."""
    from xdp_runtime.verifier.report import as_error, verify

    report = verify(obj, program)
    if report.errors:
        raise as_error(program, report.errors[0])
    assert report.facts is not None
    return report.facts


def region_symbols(maps: Iterable[MapSpec], workers: int) -> list[str]:
    return [f"map.{index}.{region.name}" for index, spec in enumerate(maps)
            for region in family_of(spec).regions(spec, workers)]


def intrinsics() -> str:
    swaps = [f"declare i{n} @llvm.bswap.i{n}(i{n})" for n in (16, 32, 64)]
    return "\n".join([*swaps, "declare void @llvm.assume(i1)",
                      "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)"])


def content_key(obj: Object, entry: ProgramSpec, workers: int, opt: int,
                units: Sequence[Unit], fuel: int | None) -> str:
    """The name in the cache of what compile_program makes of these."""
    from xdp_runtime.compiler import target, templates

    parts: list[str] = [target.host_fingerprint(), str(workers), str(opt), str(fuel),
                        str(st.max_workers())]
    for program in compiled_programs(obj, entry):
        parts += [program.name, program.kind, repr(program.insns)]
    # initial contents are written to memory, and only those of frozen maps compiled as well
    parts += [f"{m.name}|{m.type}|{m.key_size}|{m.value_size}|{m.max_entries}|{m.flags}|"
              f"{m.map_extra}|{m.lock_at}|{m.timer_at}|{m.inner}|"
              f"{m.initial.hex() if m.global_kind in _FROZEN else ''}"
              for m in obj.maps]
    for unit in units:
        parts += [unit.name, unit.text, str(unit.scout), *unit.exports, *unit.externals]
        for template in templates.closure(unit.templates):
            parts += [template.name, cache.source_fingerprint(template.factory)]
    return f"program-{cache.key(*parts)[:40]}.o"
