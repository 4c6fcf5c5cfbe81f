"""LLVM for this machine: optimise, emit, load.  Everything that touches llvmlite.binding is here.

Machine code is emitted position independent in the small code model; the memory of maps and ports
is reached through external symbols that the JIT linker binds when the code is loaded, so machine
code can be cached on disk and two maps are, to alias analysis, two different objects.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import llvmlite.binding as llvm

from xdp_runtime.compiler.writer import MERGED

_LIBRARY_IDS = itertools.count()
_SHALLOW_SLOTS = 4096
LONG_SLOTS = 2048  # larger programs get the passes of _APART and _MERGED instead of O3
PLAIN_SLOTS = 16_384  # and larger ones passes of linear time
# What O3 does for a program's straight code, each pass where it pays.  Of a balancer of 2,767
# instructions they take 0.23 s instead of 0.46 s, and a packet 25.4 ns instead of 26.3; of one of
# 7,013 0.64 s instead of 1.8 s, 31.2 ns instead of 29.2.  Loops are rotated and unrolled, but not
# vectorised, and that before the program becomes part of the loop over packets: passes over loops
# look at all of a loop.  `sroa` right behind them is the most important: without it 40 ns.
# Nobody reads names of values, and passes make new ones of them.
_APART = ("strip_symbols", "always_inliner", "global_dead_code_eliminate", "sroa", "simplify_cfg",
          "instruction_combine", "loop_rotate", "loop_unroll")
_MERGED = ("always_inliner", "sroa", "new_gvn", "jump_threading", "dead_store_elimination",
           "reassociate", "instruction_combine")
_PLAIN = ("always_inliner", "global_dead_code_eliminate", "sroa", "simplify_cfg")
BASELINE = -1  # as `opt`: those, for code that other code will soon replace (baseline.py)
TESTED = (0, 3, BASELINE)  # the compiles that are compared with the interpreter and the kernel
_STACK_BYTES_A_SLOT = 8192
_MAX_STACK_BYTES = 8 << 30
_PAUSE = {"x86_64": ("@llvm.x86.sse2.pause()", "()"),
          "aarch64": ("@llvm.aarch64.hint(i32 1)", "(i32)")}  # yield


@lru_cache(maxsize=1)
def _initialise() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()


@lru_cache(maxsize=4)
def machine(opt: int = 3) -> Any:
    """A TargetMachine for the host CPU with all its features."""
    _initialise()
    triple = llvm.get_process_triple()
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=opt,
        reloc="pic",
        codemodel="small",
    )


@lru_cache(maxsize=1)
def host_fingerprint() -> str:
    """CPU, its features and triple: what machine code depends on besides the IR."""
    _initialise()
    return "|".join((llvm.get_process_triple(), llvm.get_host_cpu_name(),
                     llvm.get_host_cpu_features().flatten()))


def header() -> str:
    """The `target` lines that every textual module starts with."""
    tm = machine()
    return f'target datalayout = "{tm.target_data}"\ntarget triple = "{tm.triple}"\n'


def pause_definition(triple: str = "", apart: bool = False) -> str:
    """`xdpu.pause`, a spin-wait hint of an architecture; `xdpu.own` (intrinsics.own_page), which
    code that is compiled apart shares with its program's."""
    call, shape = _PAUSE.get((triple or machine().triple).split("-")[0], ("", ""))
    return (f"declare void {call.split('(')[0]}{shape}\n" * bool(call) +
            "define void @xdpu.pause() alwaysinline {\n" +
            f"  call void {call}\n" * bool(call) +
            '  fence syncscope("singlethread") seq_cst\n  ret void\n}\n'
            f'@"xdpu.own" = {"external global i64" if apart else "global i64 0"}\n')


def parse(text: str) -> Any:
    """A module from LLVM assembly.  A text LLVM refuses is a defect of ours: RuntimeError."""
    _initialise()
    try:
        module = llvm.parse_assembly(header() + text)
        module.verify()
    except RuntimeError as error:
        raise RuntimeError(f"generated LLVM IR is not valid: {error}") from error
    return module


def prepare_template(text: str, name: str, mangled: str, inline: bool,
                     rare: bool = False, cold: bool = False) -> bytes:
    """Merge Numba's function into its wrapper, tidy up without loop passes, return bitcode."""
    module = parse(text)
    inner = module.get_function(mangled)
    inner.linkage = "internal"
    inner.add_function_attribute("alwaysinline")
    for variable in module.global_variables:
        if variable.name.startswith(("_ZN08NumbaEnv", ".const.")) and not variable.is_declaration:
            variable.linkage = "internal"
    _run_passes(module, 1, vectorize=False)
    outer = module.get_function(name)
    outer.add_function_attribute("nounwind")
    outer.add_function_attribute("alwaysinline" if inline else "noinline")
    if rare:
        outer.add_function_attribute("optsize")
    if cold:
        outer.add_function_attribute("cold")
    return bytes(module.as_bitcode())


def _run_passes(module: Any, opt: int, vectorize: bool) -> None:
    options = llvm.create_pipeline_tuning_options(speed_level=opt)
    options.loop_vectorization = vectorize
    options.slp_vectorization = vectorize
    options.loop_unrolling = vectorize
    options.loop_interleaving = vectorize
    builder = llvm.create_pass_builder(machine(max(opt, 1)), options)
    builder.getModulePassManager().run(module, builder)


def link(text: str, bitcodes: Iterable[bytes], exports: Iterable[str]) -> Any:
    """Link a textual module with templates; all but `exports` becomes internal.

    The text comes last: LLVM inlines in the order of functions, and should not copy a program into
    each of the functions around it."""
    parts = [llvm.parse_bitcode(code) for code in bitcodes]
    module, *others = [*parts, parse(text)]
    for part in others:
        module.link_in(part)
    keep = set(exports)
    for function in module.functions:
        if not function.is_declaration and function.name not in keep:
            function.linkage = "internal"
    module.verify()
    return module


def name(opt: int) -> str:
    return "baseline" if opt == BASELINE else f"O{opt}"


def pipeline(opt: int, slots: int) -> str:
    """The passes that a module made from programs of so many instructions gets, for people."""
    if opt == BASELINE:
        return "baseline, linear passes only"
    if opt and slots > PLAIN_SLOTS:
        return f"linear passes only (more than {PLAIN_SLOTS:,} instructions)"
    if opt >= 2 and slots > LONG_SLOTS:
        return f"O{opt} without vectorisation (more than {LONG_SLOTS:,} instructions)"
    return f"O{opt}"


def compile_module(module: Any, opt: int, slots: int) -> bytes:
    """Optimise and emit a module made from programs of so many instructions.

    LLVM's passes recurse along chains of dependent instructions: 65,536 of them overflow the usual
    8 MB of stack, and the process with it.  Large programs get a thread with a stack to match,
    of which only what is used is ever memory.  O3 also takes time in the square of such a chain
    (32,768: 30 s); beyond PLAIN_SLOTS only passes of linear time run (65,536: 2 s)."""
    def work() -> None:
        if opt == BASELINE or (opt and slots > PLAIN_SLOTS):
            _merge_programs(module)
            _run(module, _PLAIN, 0)
            done.append(emit_object(module, 0))
        elif opt >= 2 and slots > LONG_SLOTS:
            _run(module, _APART, opt)
            _merge_programs(module)
            _run(module, _MERGED, opt)
            done.append(emit_object(module, opt))
        else:
            optimise(module, opt)
            done.append(emit_object(module, opt))

    done: list[bytes] = []
    if slots <= _SHALLOW_SLOTS:
        work()
        return done[0]
    before = threading.stack_size(min(slots * _STACK_BYTES_A_SLOT, _MAX_STACK_BYTES))
    try:
        thread = threading.Thread(target=work, name="compile")
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    if not done:
        raise RuntimeError("LLVM did not compile this module")
    return done[0]


def _run(module: Any, passes: Iterable[str], opt: int) -> None:
    """These passes, one after the other."""
    manager = llvm.create_new_module_pass_manager()
    for name in passes:
        getattr(manager, f"add_{name}_pass")()
    options = llvm.create_pipeline_tuning_options(speed_level=opt)
    manager.run(module, llvm.create_pass_builder(machine(opt), options))


def _merge_programs(module: Any) -> None:
    """From now on programs are inlined into the loop that calls them."""
    for function in module.functions:
        if MERGED.encode() in function.attributes:
            function.add_function_attribute("alwaysinline")


def optimise(module: Any, opt: int = 3) -> None:
    _merge_programs(module)
    if opt == 0:
        _run(module, ["always_inliner"], 0)
        return
    _run_passes(module, opt, vectorize=True)


def emit_object(module: Any, opt: int = 3) -> bytes:
    return bytes(machine(opt).emit_object(module))


def emit_assembly(module: Any) -> str:
    return str(machine(3).emit_assembly(module))


class Code:
    """Machine code in this process.  `address(symbol)` gives exported functions.

    `apart` are object files that it calls."""

    def __init__(self, image: bytes, imports: Mapping[str, int], exports: Iterable[str],
                 apart: Iterable[bytes] = ()) -> None:
        jit = _jit()
        builder = llvm.JITLibraryBuilder()
        for part in (image, *apart):
            builder.add_object_img(part)
        builder.add_current_process()
        for name, where in imports.items():
            builder.import_symbol(name, where)
        for name in exports:
            builder.export_symbol(name)
        self._tracker = builder.link(jit, f"xdpu.{next(_LIBRARY_IDS)}")

    def close(self) -> None:
        """Nobody runs it any more."""
        self._tracker.close()

    def address(self, symbol: str) -> int:
        return int(self._tracker[symbol])

    def function(self, symbol: str, result: Any, *parameters: Any) -> Any:
        """A ctypes function; calls release the GIL."""
        return ctypes.CFUNCTYPE(result, *parameters)(self.address(symbol))


@lru_cache(maxsize=1)
def _jit() -> Any:
    _initialise()
    tm = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(),
        opt=3, reloc="pic", codemodel="small", jit=True)
    return llvm.create_lljit_compiler(tm, use_jit_link=True)
