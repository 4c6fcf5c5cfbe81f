"""What bench.io found, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.samples import Spread

PERCENTILES = {"p50_ns": 0.5, "p99_ns": 0.99, "p999_ns": 0.999}
_SOURCE_BOUND = 0.98  # of what was offered

HEADER = ("", "Mpps", "offered", "CPU ns", "nothing lost", "10 %", "50 %", "90 %: p50 p99 p99.9 us")


def _spread(values: Sequence[float], mark: str = "") -> str:
    spread = Spread.of(values)
    return f"{mark}{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"


def _latency(load: Mapping[str, Any]) -> str:
    lost = f", lost {load['lost'] / max(load['sent'], 1):.2%}" if load["lost"] else ""
    times = [load.get(name) for name in PERCENTILES]
    if None in times:
        return f"-{lost}"
    return " ".join(f"{t / 1000:.0f}" for t in times if t is not None) + lost


def cells(name: str, one: Mapping[str, Any]) -> list[str]:
    """A system's line of the table."""
    floods = one["flood"]
    bound = Spread.of([flood["taken"] for flood in floods]).median >= _SOURCE_BOUND
    row = [name, _spread([flood["mpps"] for flood in floods], ">" if bound else ""),
           f"{Spread.of([flood['offered_mpps'] for flood in floods]).median:.2f}"]
    spent = [flood["cpu_ns"] for flood in floods if "cpu_ns" in flood]
    row.append(f"{Spread.of(spent).median:.0f}" if spent else "")
    if "zero_loss_mpps" in one:
        rate = f"{'>' if one['is_source'] else ''}{one['zero_loss_mpps']:.2f}"
        row.append(rate if one["zero_loss_mpps"] else "-")
        row += [_latency(load) for load in one["loads"]]
    if "tcp_mbps" in one:
        row[0] += f", TCP {_spread([mbps / 1000 for mbps in one['tcp_mbps']])} Gbit/s"
    if "tcp_rr" in one:
        times = [Spread.of([trips[share] for trips in one["tcp_rr"]]).median
                 for share in PERCENTILES]
        row[0] += f", {' '.join(f'{t / 1000:.0f}' for t in times)} us there and back"
    return row


def table(result: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for row in result["rows"]:
        rows.append([f"**{row['action']}**", *[""] * (len(HEADER) - 1)])
        for name, one in row["systems"].items():
            line = cells(name, one)
            rows.append(line + [""] * (len(HEADER) - len(line)))
        ratios = [f"{name} {_spread(values)}" for name, values in row["ratios"].items()
                  if name.endswith(("/c", "/testpmd"))]
        ratios += [f"CPU {name} {_spread(values)}"
                   for name, values in row.get("cpu_ratios", {}).items()]
        if ratios:
            rows.append([", ".join(ratios), *[""] * (len(HEADER) - 1)])
    return rows


def markdown(result: Mapping[str, Any]) -> str:
    queues = f"{result['queues']} queue{'s' * (result['queues'] > 1)}"
    lines = [f"| {result['port']}, {queues} | {' | '.join(HEADER[1:])} |",
             "|---|" + "---:|" * (len(HEADER) - 1)]
    lines += [f"| {' | '.join(row)} |" for row in table(result)]
    shares = " Sources and loops share CPUs." if result.get("shares") else ""
    lines += ["", f"The source ({result['source']}) alone: {_spread(result['source_mpps'])} Mpps."
              + shares]
    for row in result["rows"]:
        lines += [f"{row['action']}: {text}." for text in summary(row["complaints"])]
    return "\n".join(lines)


def summary(complaints: Sequence[str]) -> list[str]:
    """The first of each kind, and how often there was one; they begin with where, and a colon."""
    kinds: dict[str, list[str]] = {}
    for text in complaints:
        what = text.partition(": ")[2]
        kinds.setdefault(" ".join(what.split()[:3]), []).append(text)
    return [texts[0] + (f" (and {len(texts) - 1} more like this)" if len(texts) > 1 else "")
            for texts in kinds.values()]
