"""xdpu policy: does a program keep to its class, what uses each grant, what would it need?"""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from xdp_runtime.errors import ConfigError
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.policy import (
    ExtensionClass,
    Missing,
    check,
    enforce,
    find_missing,
    grants_of,
    infer,
    require_xdp,
)
from xdp_runtime.policy_uses import Use, find_uses
from xdp_runtime.verifier.report import Report

_SHOWN = 6  # instructions of a grant that `explain` shows without -v


def class_name(args: Namespace) -> str | None:
    name: str | None = vars(args)["class"]
    return name


def chosen(args: Namespace) -> ExtensionClass | None:
    """The class that --class and --policy name; None without them.  Raises ConfigError."""
    if args.policy is None:
        if class_name(args) is not None:
            raise ConfigError("--class", "goes with --policy", "give the file that has the class")
        return None
    from xdp_runtime.policy_file import read_policy

    grants = read_policy(Path(args.policy)).of(class_name(args))
    require_xdp(grants)
    return grants


def bind(args: Namespace, obj: Object, spec: ProgramSpec) -> int | None:
    """What every verb that loads a program does first; the instruction budget if it has to be
    counted.  Raises ConfigError, VerifyError."""
    grants = chosen(args)
    return None if grants is None else enforce(obj, spec, grants)


def judge(grants: ExtensionClass, obj: Object, spec: ProgramSpec, report: Report) -> Report:
    """The verifier's report with what the class lacks, for a program that is safe."""
    if not report.ok:
        return report
    errors = []
    for one in check(obj, spec, grants):
        finding = one.finding()
        if one.use.program != spec.name:  # a tail call leads there
            finding = replace(finding, insn=0, text=f"{_where(obj, one.use)}: {finding.text}")
        errors.append(finding)
    return replace(report, errors=tuple(errors))


def run_check(args: Namespace) -> int:
    obj, spec = _read(args)
    grants = _required(args)
    uses = find_uses(obj, spec, grants.helpers)
    missing = find_missing(grants, uses)
    if args.json:
        print(json.dumps({"program": spec.name, "class": grants.name, "ok": not missing,
                          "missing": [_describe_missing(obj, one) for one in missing]}))
    else:
        for one in missing:
            print(f"{_where(obj, one.use)}: {one.text} ({one.mend})")
        verdict = f"lacks {len(missing)} grants" if missing else "keeps to it"
        if not missing and grants.instructions is not None and uses.longest < 0:
            verdict += f", its {grants.instructions} instructions are counted while it runs"
        print(f"{spec.name}, class {grants.name}: {verdict}")
    return 4 if missing else 0


def run_explain(args: Namespace) -> int:
    """Of the class, or of what `infer` would say."""
    obj, spec = _read(args)
    grants = chosen(args)
    uses = find_uses(obj, spec, () if grants is None else grants.helpers)
    missing = [] if grants is None else find_missing(grants, uses)
    if grants is None:
        grants = infer(spec.name, uses)
    rows = [(text, [use for use in uses.all if (use.kind, use.name) == (kind, name)])
            for kind, name, text in grants_of(grants)]
    if args.json:
        print(json.dumps({
            "program": spec.name, "class": grants.name,
            "grants": [{"grant": text, "uses": [_describe_use(obj, use) for use in found]}
                       for text, found in rows],
            "missing": [_describe_missing(obj, one) for one in missing]}))
        return 4 if missing else 0
    for text, found in rows:
        print(text if found else f"{text}    not used")
        shown = found if args.verbose else found[:_SHOWN]
        for use in shown:
            print(f"    {_say_use(obj, use)}")
        if len(found) > len(shown):
            print(f"    and {len(found) - len(shown)} more (-v)")
    for one in missing:
        print(f"missing: {_where(obj, one.use)}: {one.text} ({one.mend})")
    return 4 if missing else 0


def run_infer(args: Namespace) -> int:
    from xdp_runtime.policy_file import to_yaml

    obj, spec = _read(args)
    uses = find_uses(obj, spec)
    grants = infer(class_name(args) or spec.name, uses)
    if args.json:
        print(json.dumps({"program": spec.name, "class": _describe_class(grants)}))
        return 0
    print(f"# the least that {spec.name} of {Path(args.obj).name} needs")
    if uses.longest < 0:
        print(f"# no instructions: {uses.all[-1].note}, the longest path is not known")
    print(to_yaml(grants), end="")
    return 0


def run_host(args: Namespace) -> int:
    """A host's specification against its binary; or out of it, where it is annotated."""
    from xdp_runtime.policy_binary import check_host, derive_host
    from xdp_runtime.policy_host import read_host, to_yaml

    if args.spec is None:
        host = derive_host(Path(args.binary))
        print(json.dumps({"host": host.name, "yaml": to_yaml(host)}) if args.json
              else to_yaml(host), end="\n" if args.json else "")
        return 0
    host = read_host(Path(args.spec))
    wrong = check_host(host, Path(args.binary))
    if args.json:
        print(json.dumps({"host": host.name, "ok": not wrong, "wrong": [
            {"name": one.name, "line": host.lines.get(one.name, 0), "text": one.text}
            for one in wrong]}))
    else:
        for one in wrong:
            print(f"{args.spec}:{host.lines.get(one.name, 0)}: {one.name}: {one.text}")
        verdict = f"{len(wrong)} differences from" if wrong else "agrees with"
        print(f"host {host.name}, {len(host.state)} variables, {len(host.functions)} functions, "
              f"{len(host.entries)} entries: {verdict} {args.binary}")
    return 4 if wrong else 0


def _read(args: Namespace) -> tuple[Object, ProgramSpec]:
    from control import objects
    from xdp_runtime.errors import LoadError

    obj = objects.read(args)
    spec = obj.program(args.prog_name)
    if not spec.is_xdp:
        raise LoadError(f"program {spec.name}", f"section {spec.section!r} is not XDP",
                        "programs of other kinds cannot be bound to classes yet")
    return obj, spec


def _required(args: Namespace) -> ExtensionClass:
    grants = chosen(args)
    if grants is None:
        raise ConfigError("policy check", "no policy given", "--policy FILE, and --class NAME")
    return grants


def _where(obj: Object, use: Use) -> str:
    from xdp_runtime.verifier.env import Finding
    from xdp_runtime.verifier.report import as_error

    if use.kind == "instructions":
        return use.program
    return as_error(obj.program(use.program), Finding(use.insn, "policy", "")).what


def _say_use(obj: Object, use: Use) -> str:
    what = _where(obj, use)
    if use.kind in ("packet.read", "packet.write"):
        from xdp_runtime.policy import ALL
        what += f", up to byte {use.amount}" if use.amount < ALL else ", without a limit"
    elif use.kind == "instructions":
        what += f", longest path {use.amount}" if use.amount >= 0 else ", no limit is known"
    return f"{what}, {use.note}" if use.note else what


def _describe_use(obj: Object, use: Use) -> dict[str, Any]:
    from xdp_runtime.verifier.report import line_of

    line = line_of(obj.program(use.program), use.insn)
    out: dict[str, Any] = {"program": use.program, "insn": use.insn, "kind": use.kind,
                           "name": use.name, "amount": use.amount, "note": use.note}
    if line is not None:
        out |= {"file": line.file, "line": line.line}
    return out


def _describe_missing(obj: Object, one: Missing) -> dict[str, Any]:
    return _describe_use(obj, one.use) | {"text": one.text, "mend": one.mend}


def _describe_class(grants: ExtensionClass) -> dict[str, Any]:
    return {"name": grants.name, "entry": grants.entry,
            "packet": {"read": grants.packet_read, "write": grants.packet_write,
                       "resize": grants.packet_resize},
            "meta": sorted(grants.meta), "context": sorted(grants.context),
            "helpers": sorted(grants.helpers),
            "maps": {name: sorted(words) for name, words in grants.maps.items()},
            "verdicts": sorted(grants.verdicts), "instructions": grants.instructions}
