"""xdpu bench compare A.json B.json: what changed beyond noise; `newest` is the tree's last report.

Of every figure that both reports have, the raw samples are drawn again with replacement, 2,000
times, and the medians divided: B / A with its 95 % interval.  A change is told where the interval
leaves out 1 and the medians differ by LEAST_SHARE at least; a cost below 1 ns counts as 1 ns.  Two
runs differ in more than their samples show (where memory lies, what the machine did): if the
kernel's figure has moved with ours, the machine changed, so the ratio of both is compared, too, and
that is what to believe.
"""

from __future__ import annotations

import json
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.record import RESULTS
from xdp_runtime.errors import ConfigError

NEWEST = "newest"  # instead of a path
LEAST_SHARE = 0.05
_REPORT = re.compile(r"\d{4}-\d\d-\d\dT\d{4}\.json")
_LEAST_NS = 1.0
_DRAWS = 2000


class Figure(NamedTuple):
    samples: list[float]
    unit: str
    is_better_higher: bool = False


class Change(NamedTuple):
    """B / A of medians, its interval, and a word for it."""

    a: float
    b: float
    ratio: float
    low: float
    high: float
    word: str


def figures(report: Mapping[str, Any]) -> dict[str, Figure]:
    """By name, of the report of all benches or of one."""
    benches = report.get("benches") or {report.get("bench", "prog"): report}
    return {name: figure for bench, result in benches.items()
            for row in result.get("rows", result.get("records", [])) if isinstance(row, dict)
            for name, figure in _of(bench, row) if figure.samples}


def _of(bench: str, row: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    if "ours" in row and "name" in row:
        name = f"{bench}: {row['name']}"
        yield from _pair(name, row)
        if isinstance(row.get("cold"), dict):
            yield from _pair(f"{name}, cold", row["cold"])
        for one in row["flows"] if isinstance(row.get("flows"), list) else ():
            yield from _pair(f"{name}, {one['flows']:,} flows", one)
    elif "systems" in row:
        for system, found in row["systems"].items():
            yield (f"{bench}: {row['action']}, {system}",
                   Figure([one["mpps"] for one in found["flood"]], "Mpps", True))
    elif "example" in row:
        for kind in ("cold", "warm"):
            yield (f"{bench}: {row['example']}, {kind} cache",
                   Figure(row[kind]["samples"]["first_packet_s"], "s"))
    elif "samples_ns" in row:  # of bench.micro
        yield (f"{bench}: {row['name']}, {row['engine']} {row['way']}",
               Figure([max(value, _LEAST_NS) for value in row["samples_ns"]], "ns"))
    elif "program" in row and "cold" in row:
        for kind in ("cold", "warm"):
            for part, one in row[kind].items():
                yield (f"{bench}: {row['program']}, {kind}, {part}",
                       Figure(one.get("samples", []), "MB" if part == "peak_mb" else "s"))
    elif "map" in row:
        for what, taken in row["operations"].items():
            for side, values in taken.items():
                yield (f"{bench}: {row['map']} {what}, {side}",
                       Figure([max(value, _LEAST_NS) for value in values], "ns"))
    elif "insns" in row:
        for side in ("ours", "kernel"):
            yield (f"{bench}: {row['name']}, {side}",
                   Figure(row.get(f"{side}_ms", {}).get("samples", []), "ms"))


def _pair(name: str, row: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    taken = {side: [max(value, _LEAST_NS) for value in row[side]["samples"]["net"]]
             for side in ("ours", "kernel") if side in row}
    for side, values in taken.items():
        yield f"{name}, {side}", Figure(values, "ns")
    if len(taken) == 2 and len(taken["ours"]) == len(taken["kernel"]):
        yield f"{name}, kernel / ours", Figure(
            [k / o for k, o in zip(taken["kernel"], taken["ours"], strict=True)], "x", True)


def judge(a: Figure, b: Figure) -> Change:
    import numpy as np

    random = np.random.default_rng(1)

    def medians(values: Sequence[float]) -> Any:
        draws = random.integers(0, len(values), (_DRAWS, len(values)))
        return np.median(np.asarray(values, float)[draws], axis=1)

    ratios = medians(b.samples) / np.maximum(medians(a.samples), 1e-9)
    low, high = (float(edge) for edge in np.percentile(ratios, [2.5, 97.5]))
    first, second = (float(np.median(one.samples)) for one in (a, b))
    ratio = second / max(first, 1e-9)
    word = "same"
    if not low <= 1 <= high and abs(ratio - 1) >= LEAST_SHARE:
        word = "better" if (ratio > 1) == b.is_better_higher else "worse"
    return Change(first, second, ratio, low, high, word)


def compare(a: Mapping[str, Any], b: Mapping[str, Any], only_ratios: bool = False
            ) -> dict[str, Any]:
    """`only_ratios`: of kernel and ours, all that two machines have in common."""
    mine, theirs = ({name: figure for name, figure in figures(one).items()
                     if figure.unit == "x" or not only_ratios} for one in (a, b))
    changes = {name: judge(mine[name], theirs[name]) for name in mine if name in theirs}
    return {"changes": {name: change._asdict() for name, change in changes.items()},
            "units": {name: mine[name].unit for name in changes},
            "only_a": sorted(mine.keys() - theirs.keys()),
            "only_b": sorted(theirs.keys() - mine.keys()),
            "machines": machines(a, b)}


def machines(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """In what the two runs were not on the same ground."""
    first, second = a.get("machine", {}), b.get("machine", {})
    said = [f"{name}: {first.get(name)} -> {second.get(name)}" for name in
            ("cpu", "cpus", "kernel", "python", "versions", "mitigations", "commit")
            if first.get(name) != second.get(name)]
    for name, report in (("A", a), ("B", b)):
        if report.get("interrupted") or report.get("quick"):
            said.append(f"{name} is {'interrupted' if report.get('interrupted') else 'quick'}")
    return said


def text(found: Mapping[str, Any], everything: bool) -> str:
    lines = []
    for name, change in found["changes"].items():
        if change["word"] != "same" or everything:
            unit = found["units"][name]
            lines.append(f"{change['word']:<7} {name:<44} {change['a']:9.2f} -> {change['b']:9.2f} "
                         f"{unit:<4} x {change['ratio']:.2f} ({change['low']:.2f}-"
                         f"{change['high']:.2f})")
    count = sum(change["word"] != "same" for change in found["changes"].values())
    lines.append(f"{count} of {len(found['changes'])} figures changed beyond noise")
    for name, missing in (("A", found["only_a"]), ("B", found["only_b"])):
        if missing:
            lines.append(f"only in {name}: {', '.join(missing)}")
    return "\n".join([*lines, *(f"not the same ground: {one}" for one in found["machines"])])


def newest(folder: Path = RESULTS) -> Path:
    """The last report of all benches in the tree.  Raises ConfigError where there is none."""
    found = sorted(path for path in folder.glob("*.json") if _REPORT.fullmatch(path.name))
    if not found:
        raise ConfigError(str(folder), "has no report of all benches", "make one: make bench")
    return found[-1]


def read(path: str) -> dict[str, Any]:
    """Raises ConfigError for what is no report."""
    try:
        report = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(path, f"is no report: {error}") from error
    if not isinstance(report, dict) or not {"benches", "rows", "records"} & set(report):
        raise ConfigError(path, "is no report", "give the bench.json of xdpu bench ... --out DIR")
    return report


def main_of(args: Namespace) -> int:
    """xdpu bench compare: information, never a gate; exit code 0 whatever changed."""
    a, b = (str(newest()) if path == NEWEST else path for path in (args.a, args.b))
    found = compare(read(a), read(b), bool(args.ratios))
    print(json.dumps(found, indent=1) if args.json else text(found, bool(args.all)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    from control.cli import main as xdpu

    return xdpu(["bench", "compare", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
