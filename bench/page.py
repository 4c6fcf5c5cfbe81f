"""A report as one HTML file: plots, tables, remarks, the machine, and the raw samples in it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from bench import plots
from bench.samples import describe

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c1e21; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
td { white-space: nowrap; }
.bad { color: #b00020; font-weight: 600; } .note { color: #555; font-size: 0.85rem; }
svg { max-width: 100%; height: auto; } figure { margin: 1rem 0; }
pre { white-space: pre-wrap; font-size: 0.8rem; background: #f4f5f7; padding: 0.7rem; }
"""
_TITLES = {
    "prog": "A packet through a program", "uxdp": "The programs of the uXDP paper",
    "micro": "One thing at a time", "io": "Packets through an interface",
    "maps": "Operations of maps", "start": "From nothing to the first packet",
    "load": "From an object to machine code", "verify": "Proving a program safe",
}
_TABLES = {  # where a bench's Markdown is written; imported when there is a result of it
    "prog": "bench.prog", "uxdp": "bench.prog", "io": "bench.io", "maps": "bench.maps",
    "micro": "bench.micro.records", "start": "bench.start", "load": "bench.compile_time",
    "verify": "bench.verify"}
Result = Mapping[str, Any]


def page(report: Result) -> str:
    """Of `{"machine", "benches": {name: result}}`, or of the result of one bench."""
    benches = report.get("benches") or {report.get("bench", "prog"): report}
    about = report.get("machine", {})
    parts = ["<!doctype html><html lang='en'><meta charset='utf-8'>",
             "<meta name='viewport' content='width=device-width, initial-scale=1'>",
             f"<title>xdpu bench, {escape(about.get('date', '')[:10])}</title>",
             f"<style>{_STYLE}</style><h1>xdpu bench</h1>",
             f"<p class='note'>{escape(describe(about) if about else '')}</p>"]
    if report.get("quick"):
        parts.append(_bad("A quick run, to see that the benches work: these are not figures."))
    if report.get("interrupted"):
        parts.append(_bad("Interrupted: what was measured until then. Not measured: "
                          + ", ".join(report.get("waiting", []))))
    if plots.refusal():
        parts.append(_bad(plots.refusal()))
    for name, result in benches.items():
        parts += _section(name, result)
    for name, why in report.get("missing", {}).items():
        if "benches" in report:
            parts.append(_bad(f"Not measured: {name} ({why})"))
    parts += ["<h2>The machine</h2>",
              f"<pre>{escape(json.dumps(about, indent=1))}</pre>",
              "<h2>Raw samples</h2><p class='note'>All of this report as JSON is in this page, in "
              "the element <code>samples</code>.</p>",
              "<script type='application/json' id='samples'>",
              json.dumps(report, separators=(",", ":")).replace("<", "\\u003c"),
              "</script></html>\n"]
    return "\n".join(parts)


def _section(name: str, result: Result) -> list[str]:
    rows: Sequence[Result] = result.get("rows", [])
    parts = [f"<h2>{escape(_TITLES.get(name, name))}</h2>"]
    if not plots.refusal():
        drawn = {"rates": plots.rates(rows, name), "latency": plots.latencies(rows, name)} \
            if name == "io" else {"bars": plots.bars(rows, name), "flows": plots.flows(rows, name)}
        cold = [{**row["cold"], "name": f"{row['name']}, cold"} for row in rows
                if isinstance(row.get("cold"), dict) and "ours" in row["cold"]]
        drawn["cold"] = plots.bars(cold, f"{name}-cold")
        captions = {"flows": "The same packet as many flows.",
                    "cold": "Caches emptied before each packet.",
                    "latency": "Latency at the highest load below the rate without loss."}
        parts += [f"<figure>{svg}<figcaption class='note'>{captions.get(kind, '')}</figcaption>"
                  "</figure>" for kind, svg in drawn.items() if svg]
    parts.append(from_markdown(_markdown(name, result)))
    remarks = list(result.get("notes", []))
    for row in rows:
        disturbed = row.get("noise", {}).get("complaints", []) if isinstance(row, dict) else []
        remarks += [f"{row.get('name', row.get('action', ''))}: {text}" for text in
                    [*row.get("notes", []), *row.get("complaints", []), *disturbed]]
    if result.get("bench") == "prog" and result.get("counters") != "cycles, instructions":
        remarks.append(f"No cycles and instructions: {result.get('counters')}.")
    if remarks:
        parts.append("<details><summary class='note'>Remarks: "
                     f"{len(remarks)}</summary><ul class='note'>"
                     + "".join(f"<li>{escape(text)}</li>" for text in remarks) + "</ul></details>")
    return parts


def _markdown(name: str, result: Result) -> str:
    """The bench's own table."""
    table: Callable[[Any], str] = importlib.import_module(_TABLES[name]).markdown
    return table(result["records"] if name == "micro" else result)


def from_markdown(text: str) -> str:
    """The tables that benches write, and paragraphs between them."""
    out: list[str] = []
    in_table = False
    for line in text.splitlines():
        if not line.startswith("|"):
            out += ["</table>"] * in_table + ([f"<p>{escape(line)}</p>"] if line.strip() else [])
            in_table = False
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if all(set(cell) <= set("-: ") and cell for cell in cells):
            continue
        kind = "td" if in_table else "th"
        out += ["<table>"] * (not in_table)
        in_table = True
        if len(cells) > 1 and cells[0] and not any(cells[1:]):
            out.append(f"<tr><td colspan={len(cells)}>{_bold(cells[0])}</td></tr>")
            continue
        out.append("<tr>" + "".join(
            f"<{kind}{' class=bad' if 'mismatch' in cell.lower() else ''}>{_bold(cell)}</{kind}>"
            for cell in cells) + "</tr>")
    return "\n".join([*out, *["</table>"] * in_table])


def _bold(cell: str) -> str:
    inner = cell.removeprefix("**").removesuffix("**")
    return escape(cell) if inner == cell else f"<strong>{escape(inner)}</strong>"


def _bad(text: str) -> str:
    return f"<p class='bad'>{escape(text)}</p>"
