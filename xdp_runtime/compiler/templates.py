"""Compile templates with Numba to LLVM bitcode, once, and cache it by content.

Numba's calling convention returns a status and passes the result by pointer.  Each template gets
a small wrapper with its natural signature around that function; both are inlined away by O3.
Numba's own optimiser and JIT never run: its library object is replaced by one that only keeps
the IR, because a loop must not be vectorised before its trip count is known.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Sequence
from typing import Any

from xdp_runtime import cache
from xdp_runtime.compiler import target
from xdp_runtime.template import Template

_WORTH_FORKING = 4  # templates a process
_LLVM = {"i64": "i64", "ptr": "ptr", "i32": "i32"}


def closure(templates: Iterable[Template], apart: bool = False) -> list[Template]:
    """The templates and all they use, each once, in a stable order; with `apart` not what is used
    by those only that are compiled apart."""
    seen: dict[str, Template] = {}

    def visit(template: Template) -> None:
        known = seen.get(template.name)
        if known is None:
            seen[template.name] = template
            for used in () if apart and template.rare else template.uses:
                visit(used)
        elif known is not template:
            raise ValueError(f"two templates are called {template.name}")

    for template in templates:
        visit(template)
    return [seen[name] for name in sorted(seen)]


def entry_name(template: Template) -> str:
    """Its name in the cache."""
    key = cache.key("template", template.name, template.signature,
                    cache.source_fingerprint(template.factory))
    return f"{template.name}-{key[:32]}.bc"


def bitcode(template: Template) -> bytes:
    """LLVM bitcode that defines the template's symbol."""
    name = entry_name(template)
    found = cache.get(name)
    if found is None:
        found = _compile(template)
        cache.put(name, found)
    return found


def bitcodes(templates: Sequence[Template]) -> list[bytes]:
    """Bitcode of each; what the cache lacks is compiled on all CPUs.

    Numba takes 10-200 ms a template and holds the GIL, so the work is shared with forked copies of
    this process, which leave their results in the cache.  Whoever is free takes the next one: its
    number comes out of a pipe.
    """
    missing = [t for t in templates if cache.get(entry_name(t)) is None]
    helpers = min(len(os.sched_getaffinity(0)), len(missing) // _WORTH_FORKING) - 1
    if helpers > 0:
        _compile_together(missing[:255], helpers)
    return [bitcode(t) for t in templates]


def machine_code(template: Template) -> bytes:
    """An object file that defines the symbol of a template that is compiled apart, and calls others
    of that kind by theirs."""
    inside = closure(template.uses, apart=True)
    linked = [template, *(t for t in inside if not t.rare)]
    name = cache.key("apart", target.host_fingerprint(), template.name, template.signature,
                     *(f"{t.name}{cache.source_fingerprint(t.factory)}" for t in linked))
    name = f"{template.name}-{name[:32]}.rare"
    found = cache.get(name)
    if found is None:
        text = "\n".join([*(declaration(t) for t in (template, *inside)),
                          target.pause_definition(apart=True)])
        module = target.link(text, bitcodes(linked), [template.name])
        target.optimise(module, 2)
        found = target.emit_object(module)
        cache.put(name, found)
    return found


def declaration(template: Template) -> str:
    attributes = " nounwind" if template.rare else ""
    return (f"declare {template.result} @{template.name}({', '.join(template.parameters)})"
            f"{attributes}")


def _compile_together(missing: Sequence[Template], helpers: int) -> None:
    bitcode(missing[0])  # makes Numba set itself up, once, before there are copies
    todo, fill = os.pipe()
    os.write(fill, bytes(range(1, len(missing))))
    os.close(fill)
    children = []
    for _ in range(helpers):
        # a signal must not unwind this process's stack in the copy as well
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        child = os.fork()
        if child == 0:
            try:
                _take_all(missing, todo)
            finally:
                os._exit(0)  # a failure is found again, and told, by the parent
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        children.append(child)
    try:
        _take_all(missing, todo)
    finally:
        os.close(todo)
        for child in children:
            os.waitpid(child, 0)


def _take_all(missing: Sequence[Template], todo: int) -> None:
    while number := os.read(todo, 1):
        bitcode(missing[number[0]])


def _compile(template: Template) -> bytes:
    from numba.core import compiler, types
    from numba.core.registry import cpu_target

    from xdp_runtime.compiler import intrinsics

    kinds = {"i64": types.int64, "ptr": types.voidptr, "i32": types.int32}
    flags = compiler.Flags()
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.no_compile = True
    flags.nrt = False
    flags.enable_pyobject = False
    flags.error_model = "numpy"
    function = template.factory(intrinsics)
    context = cpu_target.target_context
    library = _ir_library(context, template.name)
    result = compiler.compile_extra(
        cpu_target.typing_context,
        context,
        function,
        tuple(kinds[p] for p in template.parameters),
        kinds[template.result],
        flags,
        {},
        library=library,
    )
    mangled = result.fndesc.llvm_func_name
    text = "\n".join(library.texts) + _wrapper(template, mangled)
    if needed := re.findall(r"^declare .*@\"?((?:NRT_|numba_|Py|_ZN5numba)\w*)", text, flags=re.M):
        raise TypeError(f"template {template.name} needs Python's run-time system: {needed}")
    return target.prepare_template(text, template.name, mangled, template.inline, template.rare,
                                   template.cold)


def _wrapper(template: Template, mangled: str) -> str:
    result = _LLVM[template.result]
    names = [f"{_LLVM[p]} %a{i}" for i, p in enumerate(template.parameters)]
    return f"""
define {result} @{template.name}({", ".join(names)}) {{
  %result = alloca {result}
  %exception = alloca ptr
  %status = call i32 @{mangled}({", ".join(["ptr %result", "ptr %exception", *names])})
  %value = load {result}, ptr %result
  ret {result} %value
}}
"""


def _ir_library(context: Any, name: str) -> Any:
    from numba.core.codegen import CPUCodeLibrary

    class IRLibrary(CPUCodeLibrary):  # type: ignore[misc]
        """A Numba code library that only collects IR text."""

        def __init__(self, codegen: Any, name: str) -> None:
            super().__init__(codegen, name)
            self.texts: list[str] = []

        def add_ir_module(self, ir_module: Any) -> None:
            text = re.sub(r"^(target (triple|datalayout)).*$", "", str(ir_module), flags=re.M)
            self.texts.append(text)

        def add_linking_library(self, library: Any) -> None:
            """Numba offers its run-time system here; a template that needs it is refused below."""

        def finalize(self) -> None:
            self._finalized = True

    return IRLibrary(context.codegen(), name)
