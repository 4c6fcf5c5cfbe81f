"""xdpu dump: a program as bytecode, control flow graph, LLVM IR or machine code."""

from __future__ import annotations

import json
from argparse import Namespace

from xdp_runtime.elf import read_object
from xdp_runtime.errors import LoadError
from xdp_runtime.object import Object, ProgramSpec


def run(args: Namespace) -> int:
    obj = read_object(args.obj)
    spec = obj.program(args.prog_name)
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

    module, _, _ = link.build_module(obj, spec, workers=1)
    if what == "native" or stage == "optimised":
        target.optimise(module, opt)
    return target.emit_assembly(module) if what == "native" else str(module)
