"""xdpu dump: a program as bytecode, control flow graph, LLVM IR or machine code."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from control import objects
from control.policy import bind
from xdp_runtime.elf import read_object
from xdp_runtime.errors import LoadError
from xdp_runtime.object import Object, ProgramSpec


def run(args: Namespace) -> int:
    settled = args.what in ("ir", "native") or args.btf or args.set_global or args.map_entries
    obj = objects.read(args) if settled else read_object(args.obj)
    spec = obj.program(args.prog_name)
    bind(args, obj, spec)
    text = dump(obj, spec, args.what, args.stage, args.opt)
    if args.json:
        print(json.dumps({"program": spec.name, "what": args.what, "text": text}))
    else:
        print(text, end="" if text.endswith("\n") else "\n")
    return 0


def dump(obj: Object, spec: ProgramSpec, what: str, stage: str = "optimised", opt: int = 3) -> str:
    """Raises LoadError or VerifyError for a program that does not compile."""
    match what:
        case "asm":
            from xdp_runtime.disasm import format_program
            return format_program(spec, obj)
        case "cfg":
            from xdp_runtime.cfg import to_dot
            return to_dot(spec, obj)
    if not spec.is_xdp:
        raise LoadError(f"program {spec.name}", f"section {spec.section!r} is not XDP",
                        'put it in SEC("xdp")')
    from xdp_runtime.compiler import link, target

    module: Any = link.build_module(obj, spec, 1, [_as_function(spec, link.ENTRY)])[0]
    for function in module.functions:  # the doors to maps are not the program
        if not function.is_declaration and function.name != spec.name:
            function.linkage = "internal"
    if what == "native" or stage == "optimised":
        target.optimise(module, opt)
    return target.emit_assembly(module) if what == "native" else str(module)


def _as_function(spec: ProgramSpec, entry: str) -> Any:
    """The program by its own name, with nothing around it."""
    from xdp_runtime.compiler.link import Unit

    text = (f'define i32 @"{spec.name}"(ptr %state) {{\n'
            f'  %verdict = call i32 @"{entry}"(ptr %state)\n  ret i32 %verdict\n}}\n')
    return Unit("dump", text, exports=(spec.name,))
