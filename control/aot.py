"""xdpu aot: a program as a shared library, an executable, or an object file for another CPU."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from control import objects
from control.policy import chosen


def run(args: Namespace) -> int:
    from xdp_runtime.aot import build
    from xdp_runtime.compiler.aot import Where, parse_target

    obj = objects.read(args)
    spec = obj.program(args.prog_name)
    where = Where(parse_target(args.target) if args.target else "", args.cpu or "")
    out = Path(args.out)
    build(obj, spec, out, workers=args.workers, where=where, standalone=args.standalone,
          grants=chosen(args))
    if args.json:
        print(json.dumps({"program": spec.name, "file": str(out), "bytes": out.stat().st_size}))
    elif out.suffix != ".o" and not where.is_here:
        print(f"{out} is an object file: it is for {where.triple}, and linked there")
    return 0
