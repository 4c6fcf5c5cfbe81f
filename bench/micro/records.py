"""What was measured, as flat records, and what follows from them.

A record is a dict, ready for JSON:

    name         of the micro program
    engine       "kernel" (its JIT), "xdpu", or "native" (clang -O2 -march=native)
    way          how it was repeated: "plain" and "wrapper" (bench/prog.py), "many" (many.py; with
                 " look-ahead on" or " off" where it is not left to the loop), "call" (native.py)
    samples_ns   one a round: ns a packet without what the harness costs
    raw_ns       one a round: with it
    net_ns       the median of samples_ns; low_ns and high_ns are the extremes
    goal, met    what we set out for, in words, and whether the medians meet it, on the record that
                 is judged; else null
    mismatch     instead of all figures: in what the engines differ

Records of one name and way were measured in turns, round by round: their samples are pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.micro.cases import Goal
from bench.prog import LEAST_KERNEL_NS, LEAST_OURS_NS
from bench.samples import Spread

Record = dict[str, Any]
LEAST_NATIVE_NS = 1.0
HEADER = ("program", "kernel net ns", "xdpu net ns", "kernel / xdpu", "xdpu / native", "goal")


def make(name: str, engine: str, way: str, raw: Sequence[float], net: Sequence[float]) -> Record:
    samples = [round(value, 3) for value in net]
    spread = Spread.of(samples)
    return {"name": name, "engine": engine, "way": way, "net_ns": round(spread.median, 3),
            "low_ns": spread.low, "high_ns": spread.high, "samples_ns": samples,
            "raw_ns": [round(value, 3) for value in raw], "goal": None, "met": None}


def mismatch(name: str, what: str) -> Record:
    return {"name": name, "engine": "xdpu", "way": "", "mismatch": what, "goal": None, "met": None}


def find(records: Iterable[Record], engine: str, *, called: bool = False) -> Record | None:
    """The engine's record, the one of native.py or the other one."""
    return next((r for r in records if r["engine"] == engine and (r["way"] == "call") == called),
                None)


def against_kernel(records: Sequence[Record]) -> Spread | None:
    """kernel / xdpu of one name, round by round; None where there is nothing to divide."""
    kernel, ours = find(records, "kernel"), find(records, "xdpu")
    if kernel is None or ours is None or kernel["net_ns"] < LEAST_KERNEL_NS:
        return None
    return Spread.of([k / max(o, LEAST_OURS_NS) for k, o in zip(
        kernel["samples_ns"], ours["samples_ns"], strict=True)])


def against_native(records: Sequence[Record]) -> tuple[Spread, bool] | None:
    """(xdpu / native of one name round by round, is that of the whole loop?)"""
    ours, native = find(records, "xdpu", called=True), find(records, "native", called=True)
    if ours is None or native is None:
        return None
    whole = native["net_ns"] < LEAST_NATIVE_NS
    key = "raw_ns" if whole else "samples_ns"
    return Spread.of([o / n for o, n in zip(ours[key], native[key], strict=True)]), whole


def judge(goal: Goal, records: Sequence[Record]) -> None:
    """Note the goal, and whether it is met, on the record that it is about."""
    about = find(records, "xdpu", called=goal.against == "native")
    if about is None:
        raise ValueError(f"nothing to hold against {goal}")
    met = False
    match goal.against:
        case "native":
            share = against_native(records)
            met = share is not None and share[0].median <= goal.bound
        case "kernel":
            ratio = against_kernel(records)
            met = ratio is not None and ratio.median >= goal.bound
        case _:
            met = about["net_ns"] <= goal.bound
    about["goal"], about["met"] = str(goal), met


def cells(records: Sequence[Record]) -> list[str]:
    """One micro's line, in the order of HEADER."""
    name = records[0]["name"]
    if "mismatch" in records[0]:
        return [name, "MISMATCH", records[0]["mismatch"], "", "", ""]
    kernel, ours = find(records, "kernel"), find(records, "xdpu")
    ratio, native = against_kernel(records), against_native(records)
    judged = next((r for r in records if r["goal"]), None)
    return [name, _span(kernel), _span(ours),
            f"{ratio.median:.1f} ({ratio.low:.1f}-{ratio.high:.1f})" if ratio else "-",
            f"{native[0].median:.2f}{' whole' if native[1] else ''}" if native else "-",
            f"{judged['goal']}: {'met' if judged['met'] else 'MISSED'}" if judged else ""]


def _span(record: Record | None) -> str:
    if record is None:
        return "-"
    low, median, high = (round(record[key], 1) + 0.0 for key in ("low_ns", "net_ns", "high_ns"))
    return f"{median:.1f} ({low:.1f}-{high:.1f})"


def grouped(records: Iterable[Record]) -> list[list[Record]]:
    groups: dict[str, list[Record]] = {}
    for one in records:
        groups.setdefault(one["name"], []).append(one)
    return list(groups.values())


def line(parts: Sequence[str]) -> str:
    if parts[1] == "MISMATCH":
        return f"{parts[0]:<16}MISMATCH {parts[2]}"
    name, kernel, ours, ratio, native, goal = parts
    return f"{name:<16}{kernel:>24}{ours:>22}  {ratio:<17}{native:>13}  {goal}".rstrip()


def markdown(records: Iterable[Record]) -> str:
    rows = [HEADER, ("---", "---:", "---:", "---:", "---:", "---"),
            *(cells(group) for group in grouped(records))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
