"""The verdict on a program, remembered: what was proven once need not be proven again.

An entry is JSON, named by all that the verdict depends on: the program, its maps (with the
contents of frozen ones), types, licence, and the verifier's own sources.  It holds no facts:
code that was compiled from them is cached by itself (compiler/link.py).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from xdp_runtime import cache
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.state import max_workers
from xdp_runtime.verifier.env import Finding
from xdp_runtime.verifier.explain import Note, NotedFacts, explain
from xdp_runtime.verifier.report import TIME_BUDGET_S, Report, verify


@dataclass(frozen=True, slots=True)
class Checked:
    """A report without facts, and its notes (explain.py) where they were asked for."""

    report: Report
    notes: list[Note] | None
    from_cache: bool


def check(obj: Object, program: ProgramSpec, notes: bool = False,
          time_budget_s: float = TIME_BUDGET_S) -> Checked:
    """As `verify`, from the cache where it is known."""
    name = entry_name(obj, program, notes)
    found = cache.get(name)
    if found is not None:
        return _unpack(program, found)
    facts = NotedFacts(len(program.insns)) if notes else None
    report = verify(obj, program, time_budget_s, facts=facts)
    said = None if facts is None else explain(obj, program, facts)
    report = Report(program.name, report.errors, None, report.steps, report.states,
                    round(report.seconds, 6))
    if not any(error.kind == "budget" for error in report.errors):  # another day, a faster machine
        cache.put(name, _pack(report, said))
    return Checked(report, said, False)


def entry_name(obj: Object, program: ProgramSpec, notes: bool) -> str:
    """Where the verdict is kept."""
    key = cache.key("verdict", int(notes), repr(program), repr(obj.maps), obj.license,
                    max_workers(),
                    repr(obj.btf))
    return f"verdict-{key[:40]}.json"


def _pack(report: Report, notes: list[Note] | None) -> bytes:
    return json.dumps({
        "errors": [asdict(error) for error in report.errors], "steps": report.steps,
        "states": report.states, "seconds": report.seconds, "notes": notes}).encode()


def _unpack(program: ProgramSpec, raw: bytes) -> Checked:
    said: dict[str, Any] = json.loads(raw)
    errors = tuple(Finding(**error) for error in said["errors"])
    report = Report(program.name, errors, None, said["steps"], said["states"], said["seconds"])
    return Checked(report, said["notes"], True)
