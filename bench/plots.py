"""Plots of a report as SVG, by matplotlib.

matplotlib is an extra (`pip install 'xdpu[bench]'`): axes, logarithmic scales and error bars are
its trade, and nobody who runs packets needs it.  Without it `refusal` says so, and the page has
tables only.
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

KERNEL, OURS, OTHER = "#8a8f98", "#1565c0", "#c77700"
_COLOURS = {"kernel": KERNEL, "ours": OURS, "ours-xsk": "#64a3e0", "ours-skb": OURS,
            "ours-live": "#a9c9ec", "ours-tap": "#64a3e0", "c": OTHER, "native": "#4b5058",
            "generic": "#b4b8bf", "none": "#4b5058"}
_NAMES = {"ours": "xdpu", "ours-xsk": "xdpu, by the TX ring", "ours-skb": "xdpu, skbs",
          "ours-live": "xdpu, live frames", "ours-tap": "xdpu, by a TAP", "c": "C loop",
          "native": "kernel, native", "generic": "kernel, generic", "none": "without XDP"}
_BAR_INCHES, _WIDTH_INCHES = 0.36, 8.5
_WIDE = 15  # the longest bar by the middle one: then the axis is logarithmic
_LEAST_NS = 0.5  # where that begins
_FINE_BITS = 4  # of a latency histogram's buckets (bench.io)
Row = Mapping[str, Any]


def refusal() -> str:
    """Why there can be no plots; empty if there can."""
    if importlib.util.find_spec("matplotlib") is None:
        return "no plots: matplotlib is not installed (pip install 'xdpu[bench]')"
    return ""


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Any, name: str) -> str:
    """The drawing itself, to be put into a page; `name` keeps its ids apart from others'."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none",
                                "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    return re.sub(r"^.*?(?=<svg)", "", out.getvalue(), flags=re.DOTALL)


def _bar(row: Row) -> tuple[float, list[list[float]]]:
    """A figure's height, and how far its interval reaches down and up."""
    net = row["net"]
    low, high = net.get("low", net["min"]), net.get("high", net["max"])
    height = max(net["median"], 0.0)
    return height, [[max(height - max(low, 0.0), 0.0)], [max(high - height, 0.0)]]


def bars(rows: Sequence[Row], name: str) -> str:
    """ns a packet, a pair of bars with its intervals for each row that has figures."""
    rows = [row for row in rows if "ours" in row]
    if not rows:
        return ""
    figure = _figure(_WIDTH_INCHES, 0.9 + _BAR_INCHES * len(rows))
    axes = figure.subplots()
    heights = sorted(_bar(row[side])[0] for row in rows for side in ("kernel", "ours")
                     if side in row)
    is_wide = heights[-1] > _WIDE * max(heights[len(heights) // 2], 1.0)
    if is_wide:
        axes.set_xscale("log")
    named: set[str] = set()
    longest = 0.0
    for at, row in enumerate(rows):
        end = _LEAST_NS if is_wide else 0.0
        for offset, side in ((-0.19, "kernel"), (0.19, "ours")):
            if side not in row:
                continue
            height, error = _bar(row[side])
            axes.barh(at + offset, height, 0.36, xerr=error, color=_COLOURS[side], capsize=2,
                      ecolor="#444", error_kw={"linewidth": 0.8},
                      label=_NAMES.get(side, side) if side not in named else None)
            named.add(side)
            end = max(end, height + error[1][0])
        longest = max(longest, end)
        if row.get("ratio"):
            axes.annotate(f"{row['ratio']['median']:.1f}x", (end, at), (6, 0), va="center",
                          textcoords="offset points", fontsize=8, fontweight="bold")
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlabel("net ns a packet (95% interval of the median); x: kernel / xdpu"
                    + ("; logarithmic" if is_wide else ""), fontsize=8)
    if is_wide:
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(_LEAST_NS, longest * 2)
    else:
        axes.set_xlim(0, max(longest, 1.0) * 1.1)
    _tidy(axes, "x")
    _legend(figure, axes)
    return _svg(figure, f"bars-{name}")


def _legend(figure: Any, axes: Any) -> None:
    """Above the drawing, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=max(len(labels), 1),
                  frameon=False, fontsize=8)


def flows(rows: Sequence[Row], name: str) -> str:
    """How many flows against ns a packet, a panel for each program."""
    rows = [row for row in rows if len(row.get("flows") or ()) > 1]
    if not rows:
        return ""
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure = _figure(_WIDTH_INCHES, 0.5 + 2.1 * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    for at, axes in enumerate(grid.flat):
        if at >= len(rows):
            axes.set_axis_off()
            continue
        points = rows[at]["flows"]
        for side in ("kernel", "ours"):
            having = [one for one in points if side in one]
            drawn = [_bar(one[side]) for one in having]
            axes.errorbar([one["flows"] for one in having], [height for height, _ in drawn],
                          yerr=[[error[way][0] for _, error in drawn] for way in (0, 1)],
                          marker="o", markersize=3, linewidth=1.2, capsize=2,
                          color=_COLOURS[side], label=_NAMES.get(side, side))
        axes.set_xscale("log")
        axes.set_xticks([one["flows"] for one in points],
                        [_short(one["flows"]) for one in points])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_title(rows[at]["name"], fontsize=9)
        axes.tick_params(labelsize=7)
        _tidy(axes, "y")
    _legend(figure, grid.flat[0])
    figure.supxlabel("flows, at random", fontsize=8)
    figure.supylabel("net ns a packet", fontsize=8)
    return _svg(figure, f"flows-{name}")


def _short(count: int) -> str:
    """1, 64k, 1M: powers of two as one says them."""
    for unit, letter in ((1 << 20, "M"), (1 << 10, "k")):
        if count >= unit and count % unit == 0:
            return f"{count // unit}{letter}"
    return f"{count:,}"


def upper_ns(bucket: int) -> int:
    """The end of a latency bucket: 16 of them for every power of two."""
    exponent, fine = bucket >> _FINE_BITS, bucket & (1 << _FINE_BITS) - 1
    if exponent < _FINE_BITS:
        return bucket + 1
    return (1 << exponent) + ((fine + 1) << (exponent - _FINE_BITS))


def latencies(rows: Sequence[Row], name: str) -> str:
    """Cumulative distributions of latency at the highest load, a panel for each action."""
    panels = []
    for row in rows:
        curves = {}
        for system, found in row.get("systems", {}).items():
            loads = [load for load in found.get("loads", []) if load.get("histogram")]
            if loads:
                curves[system] = loads[-1]
        if curves:
            panels.append((row["action"], curves))
    if not panels:
        return ""
    most = max(len(curves) for _, curves in panels)
    figure = _figure(_WIDTH_INCHES, 2.9 + 0.16 * most)
    for axes, (action, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels,
                                      strict=True):
        for system, load in curves.items():
            axes.step(*_cumulated(load["histogram"]), where="post", linewidth=1.2,
                      color=_COLOURS.get(system), label=f"{_NAMES.get(system, system)}, "
                      f"{load['rate'] / 1e6:.2f} Mpps")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(1e-4, 1.0)
        axes.set_title(action.upper(), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.legend(frameon=False, fontsize=7, loc="upper center",
                    bbox_to_anchor=(0.5, -0.12))
        _tidy(axes, "both")
    figure.supxlabel("latency, microseconds", fontsize=8)
    figure.supylabel("share that took longer", fontsize=8)
    return _svg(figure, f"latency-{name}")


def _cumulated(histogram: Mapping[str, int]) -> tuple[list[float], list[float]]:
    """Microseconds, and the share of packets that took longer."""
    total, left = sum(histogram.values()), sum(histogram.values())
    times, shares = [], []
    for bucket, count in sorted((int(bucket), count) for bucket, count in histogram.items()):
        left -= count
        times.append(upper_ns(bucket) / 1000)
        shares.append(max(left / total, 1e-9))
    return times, shares


def rates(rows: Sequence[Row], name: str) -> str:
    """Mpps under a flood, median and range of the rounds, for each action and system."""
    found = [(row["action"], system, [one["mpps"] for one in of["flood"]])
             for row in rows for system, of in row.get("systems", {}).items() if of.get("flood")]
    if not found:
        return ""
    actions = list(dict.fromkeys(action for action, _, _ in found))
    figure = _figure(_WIDTH_INCHES, 0.8 + 0.27 * (len(found) + 0.6 * len(actions)))
    axes = figure.subplots()
    ticks, labels = [], []
    for at, (action, system, values) in enumerate(found):
        place = at + 0.6 * actions.index(action)
        middle = sorted(values)[len(values) // 2]
        axes.barh(place, middle, 0.78, xerr=[[middle - min(values)], [max(values) - middle]],
                  color=_COLOURS.get(system, OURS if system.startswith("ours") else OTHER),
                  capsize=2, ecolor="#444", error_kw={"linewidth": 0.8})
        axes.annotate(f"{middle:.2f}", (max(values), place), (5, 0), va="center", fontsize=7,
                      textcoords="offset points")
        ticks.append(place)
        labels.append(f"{action.upper()}: {_NAMES.get(system, system)}")
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set_ylim(ticks[-1] + 0.6, -0.6)
    axes.margins(x=0.08)
    axes.set_xlabel("million packets a second under a flood (range of the rounds)", fontsize=8)
    _tidy(axes, "x")
    return _svg(figure, f"rates-{name}")


def _tidy(axes: Any, grid: str) -> None:
    axes.grid(axis=grid, color="#bbb", linewidth=0.4)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
