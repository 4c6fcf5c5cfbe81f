"""xdpu check: are the programs of an object safe, and if not, why; what does the kernel say?"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import asdict, dataclass, replace
from typing import Any

from control import objects, policy
from xdp_runtime.errors import LoadError, OutOfMemory
from xdp_runtime.helpers.names import kernel_name
from xdp_runtime.helpers.refused import REFUSED
from xdp_runtime.isa import Call
from xdp_runtime.maps import budget
from xdp_runtime.maps.family import Mended
from xdp_runtime.maps.limits import refusal
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.verifier.cached import Checked, check
from xdp_runtime.verifier.explain import annotated, describe_line
from xdp_runtime.verifier.report import as_error


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the kernel's verifier said; `text` is empty for a program it accepts."""

    ok: bool
    text: str = ""
    log: str = ""


def run(args: Namespace) -> int:
    obj = objects.read(args)
    grants = policy.chosen(args)
    good = True
    answers: dict[str, Any] = {}
    for spec in chosen(obj, args.prog_name):
        checked = check(obj, spec, notes=args.explain)
        opinion = ask_kernel(obj, spec) if args.second_opinion == "kernel" else None
        agreed = opinion is None or opinion.ok == checked.report.ok
        if grants is not None:
            checked = replace(checked, report=policy.judge(grants, obj, spec, checked.report))
        why = refusals(obj, spec)
        good = good and checked.report.ok and agreed and not why
        if args.json:
            answers[spec.name] = describe(spec, checked, opinion, agreed) | {"refused": why}
        else:
            show(spec, checked, opinion, agreed, args.verbose)
            for one in why:
                print(f"  refused when it is loaded: {one}")
    if args.json:
        print(json.dumps({"object": obj.name, "ok": good, "programs": answers}))
    return 0 if good else 4


def chosen(obj: Object, name: str | None) -> list[ProgramSpec]:
    """The named program, or all XDP programs.  Raises LoadError."""
    spec = obj.program(name)
    if not spec.is_xdp:
        raise LoadError(f"program {spec.name}", f"section {spec.section!r} is not XDP",
                        'put it in SEC("xdp")')
    return [spec] if name is not None else [p for p in obj.programs if p.is_xdp]


def refusals(obj: Object, spec: ProgramSpec) -> list[str]:
    """Why a program is not loaded here, be it safe or not."""
    numbers = {insn.helper for insn in spec.insns if isinstance(insn, Call)}
    found = [f"helper {kernel_name(number)} cannot run in user space: {REFUSED[number]}"
             for number in sorted(numbers & REFUSED.keys())]
    for one in obj.maps:
        if (refused := refusal(one)) is not None:
            _, why = refused
            mend = why.mend if isinstance(why, Mended) else ""
            found.append(str(LoadError(f"map {one.name}", why, mend)))
    try:
        budget.check(obj.name, obj.maps, 1)
    except OutOfMemory as error:
        found.append(str(error))
    return found


def ask_kernel(obj: Object, spec: ProgramSpec) -> Opinion:
    """Load it there, for a moment.  Raises LoadError where that is not permitted."""
    from xdp_runtime.bpf_syscall import AS_ROOT
    from xdp_runtime.kernel import load_into_kernel

    try:
        load_into_kernel(obj, spec.name).close()
    except LoadError as error:
        if error.mend == AS_ROOT:
            raise LoadError("--second-opinion kernel", "the kernel may not be asked", AS_ROOT,
                            str(error)) from error
        text = error.why.removeprefix("the kernel's verifier says: ")
        if error.what not in (f"program {spec.name}", ""):
            text = f"{error.what}: {text}"
        return Opinion(False, text, error.detail)
    except OSError as error:
        if error.errno in (1, 13):
            raise LoadError("--second-opinion kernel", "the kernel may not be asked",
                            AS_ROOT) from error
        return Opinion(False, error.strerror or str(error))
    return Opinion(True)


def show(spec: ProgramSpec, checked: Checked, opinion: Opinion | None, agreed: bool,
         verbose: int) -> None:
    report = checked.report
    if checked.notes is not None:
        error = report.errors[0] if report.errors else None
        print(annotated(spec, checked.notes, error))
    cost = (f"{sum(insn is not None for insn in spec.insns):,} instructions, "
            f"{report.steps:,} steps, {report.states:,} states, {report.seconds:.2f} s")
    remark = " (cached)" if verbose and checked.from_cache else ""
    for finding in report.errors:
        print(f"{as_error(spec, finding).what}: {finding.text}{remark}")
        if finding.state:
            print(f"  known: {finding.state}")
        if finding.mend:
            print(f"  mend: {finding.mend}")
        if verbose:
            print(f"  kind: {finding.kind}; {cost}")
    if report.ok:
        print(f"{spec.name}: safe ({cost}){remark}")
    if opinion is not None:
        verdict = "accepts it" if opinion.ok else f"refuses it: {opinion.text}"
        differs = "" if agreed else " (the two disagree)"
        print(f"  kernel: {verdict}{differs}")
        if opinion.log and verbose:
            print(opinion.log.rstrip(), file=sys.stderr)


def describe(spec: ProgramSpec, checked: Checked, opinion: Opinion | None,
             agreed: bool) -> dict[str, Any]:
    """A program's part of the JSON."""
    report = checked.report
    answer: dict[str, Any] = {
        "ok": report.ok,
        "errors": [asdict(error) | {"line": describe_line(spec, error.insn)}
                   for error in report.errors],
        "instructions": sum(insn is not None for insn in spec.insns),
        "steps": report.steps, "states": report.states, "seconds": report.seconds,
        "cached": checked.from_cache,
    }
    if checked.notes is not None:
        answer["facts"] = checked.notes
    if opinion is not None:
        answer["kernel"] = {"ok": opinion.ok, "text": opinion.text}
        answer["agree"] = agreed
    return answer
