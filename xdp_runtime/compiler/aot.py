"""Machine code for a CPU of choice: a program's object file, with nothing of this process in it.

    code = compile_ahead(obj, spec, workers=1, where=Where("aarch64-linux-gnu", "neoverse-n1"))

The same module as for this process, around another loop: `xdpu.batch` runs the program on an array
of `struct xdpu_packet` (aot/xdpu.h).  The memory of maps stays external symbols, which the linker
resolves (aot/image.py), and the operations of maps are exported beside them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import llvmlite.binding as llvm

from xdp_runtime import state as st
from xdp_runtime.compiler import map_ops, target
from xdp_runtime.compiler.link import (
    AROUND,
    ENTRY,
    Unit,
    build_module,
    compiled_programs,
    region_symbols,
)
from xdp_runtime.errors import ConfigError, LoadError
from xdp_runtime.helpers.proto import TIMERS
from xdp_runtime.isa import Call
from xdp_runtime.maps import family_of
from xdp_runtime.maps.pool import ENTER, LEAVE
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.template import Template

BATCH = "xdpu.batch"  # i64(ptr packets, i64 count, ptr worker memory, i64 worker)
_ARCHITECTURES = ("x86_64", "aarch64")

# struct xdpu_packet: the edges and the two numbers lie as in the run state
_INGRESS, _RX_QUEUE, _VERDICT, _REDIRECT, _PACKET_BYTES = 40, 44, 48, 52, 56


@dataclass(frozen=True, slots=True)
class Where:
    """What machine code is for.  "" is this machine's; `cpu` is a name of LLVM's."""

    triple: str = ""
    cpu: str = ""

    @property
    def is_here(self) -> bool:
        """Can what is made run on this machine's architecture (and be linked by its compiler)?"""
        return not self.triple or _architecture(self.triple) == _architecture(
            llvm.get_process_triple())


def _architecture(triple: str) -> str:
    return triple.split("-")[0]


def parse_target(text: str) -> str:
    """A triple from an architecture's name.  Raises ConfigError."""
    arch = {"arm64": "aarch64", "amd64": "x86_64", "x86-64": "x86_64"}.get(text, text)
    if _architecture(arch) not in _ARCHITECTURES:
        raise ConfigError(f"target {text!r}", "is not known", " or ".join(_ARCHITECTURES))
    return arch if "-" in arch else f"{arch}-unknown-linux-gnu"


@lru_cache(maxsize=4)
def _machine(where: Where) -> Any:
    if where == Where():
        return target.machine(3)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple = where.triple or llvm.get_process_triple()
    found = llvm.Target.from_triple(triple)
    if where.cpu and not _knows(triple, where.cpu):
        raise ConfigError(f"CPU {where.cpu!r}", f"is no {_architecture(triple)} that LLVM knows",
                          "its names are like znver4, skylake-avx512, neoverse-n1")
    cpu = where.cpu or ("" if where.triple else llvm.get_host_cpu_name())
    return found.create_target_machine(cpu=cpu, opt=3, reloc="pic", codemodel="small")


def _knows(triple: str, cpu: str) -> bool:
    """Asked in another process: LLVM writes to stderr about a name it does not know, or aborts."""
    question = ("import sys, llvmlite.binding as llvm\n"
                "llvm.initialize_all_targets(); llvm.initialize_all_asmprinters()\n"
                "machine = llvm.Target.from_triple(sys.argv[1]).create_target_machine("
                "cpu=sys.argv[2])\n"
                "module = llvm.parse_assembly('define void @f() { ret void }')\n"
                "module.triple = sys.argv[1]\n"
                "machine.emit_object(module)\n")
    asked = subprocess.run([sys.executable, "-c", question, triple, cpu], capture_output=True,
                           check=False)
    return asked.returncode == 0 and b"not a recognized processor" not in asked.stderr


def _batch(m: Any) -> Callable[..., Any]:
    enter, leave = m.extern(ENTER), m.extern(LEAVE)
    program = m.symbol(ENTRY, "i32(ptr)")
    state_bytes = st.STATE_SIZE_BYTES  # a literal, as alloca needs it

    def aot_batch(packets, count, memory, worker):  # type: ignore
        run = m.alloca(state_bytes)
        for i in range(count):
            m.prefetch(m.load_ptr(packets, i * _PACKET_BYTES), 0)
        enter(memory)
        for i in range(count):
            packet = m.gep(packets, i * _PACKET_BYTES)
            m.copy(run, packet, 48)
            m.store_u32(run, st.EGRESS_IFINDEX, 0)
            m.store_u32(run, st.WORKER_ID, worker)
            m.store_u32(run, st.REDIRECT_IFINDEX, 0)
            m.store_u32(run, st.REDIRECT_HOW, 0)
            m.store_u32(run, st.TAIL_CALLS, 0)
            m.store_u32(run, st.RX_KNOWN, 0)
            m.store_u64(run, st.FRAGMENT_COUNT, 0)  # and their bytes
            m.store_ptr(run, st.WORKER, memory)
            verdict = program(run)
            m.copy(packet, run, 24)
            m.store_u32(packet, _VERDICT, verdict)
            target = m.load_u32(run, st.REDIRECT_IFINDEX)
            if m.load_u32(run, st.REDIRECT_HOW) & (st.HOW_REFUSED - 1) != 0:
                target = 0  # to what there is only in a running xdpu
            m.store_u32(packet, _REDIRECT, target)
        leave(memory)
        return count

    return aot_batch


_TEMPLATE = Template("aot_batch", _batch, "i64(ptr, i64, ptr, i64)", (ENTER, LEAVE))


def _unit(obj: Object, workers: int) -> Unit:
    text = [f'define i64 @"{BATCH}"(ptr %packets, i64 %count, ptr %memory, i64 %worker) '
            f'{AROUND} {{\n'
            "  %r = call i64 @aot_batch(ptr %packets, i64 %count, ptr %memory, i64 %worker)\n"
            "  ret i64 %r\n}\n"]
    templates, exports = [_TEMPLATE], [BATCH]
    for index, spec in enumerate(obj.maps):
        text.append(map_ops.operation_wrappers(index, spec, workers))
        templates += family_of(spec).operations.values()
        exports += map_ops.operation_symbols(index, spec)
    return Unit("aot", "".join(text), tuple(dict.fromkeys(templates)), tuple(exports))


def compile_ahead(obj: Object, spec: ProgramSpec, workers: int, where: Where,
                  fuel: int | None = None) -> bytes:
    """An ELF object file.  `fuel`: an instruction budget to be counted (fuel.py).

    Raises LoadError, VerifyError, ConfigError."""
    if any(isinstance(insn, Call) and insn.helper in TIMERS
           for program in compiled_programs(obj, spec) for insn in program.insns):
        raise LoadError(f"program {spec.name}", "uses timers, and nothing fires them in a library "
                        "or executable of its own", "run it with xdpu")
    machine = _machine(where)
    module: Any
    module, _, symbols = build_module(obj, spec, workers, [_unit(obj, workers)], machine.triple,
                                      fuel)
    of_the_host = sorted(set(symbols) - set(region_symbols(obj.maps, workers)))
    if of_the_host:
        raise LoadError(f"program {spec.name}", f"needs {', '.join(of_the_host)} of a running xdpu",
                        "use xdpu run")
    if not where.is_here:
        module.triple, module.data_layout = machine.triple, str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = True
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return bytes(machine.emit_object(module))

