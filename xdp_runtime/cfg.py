"""Basic blocks of a program: the shape of its control flow, before anything is proven about it.

A local call is an instruction like any other here (it comes back); the function it enters is
blocks of its own.  Refused: jumps and calls that leave the program, land in the second slot of
a 64-bit load or cross into another function, and code that runs off the end of its function.
Code that nothing reaches is allowed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from xdp_runtime.disasm import format_insn
from xdp_runtime.errors import VerifyError
from xdp_runtime.isa import CallLocal, Exit, Insns, Jump, JumpIf, LoadFunc, MayGoto
from xdp_runtime.object import Object, ProgramSpec


@dataclass(frozen=True, slots=True)
class Block:
    """Slots [start, end).  `successors` are starts of blocks: the next one first, then a jump's."""

    start: int
    end: int
    successors: tuple[int, ...]


def build_cfg(insns: Insns, functions: Iterable[int] = ()) -> dict[int, Block]:
    """Blocks by start slot, in slot order.  Raises VerifyError naming the instruction.

    Functions begin at slot 0, at what local calls and function addresses refer to, and at
    `functions` (starts that nothing may refer to).
    """
    if not insns:
        raise VerifyError("program", "has no instructions")
    entries = _find_entries(insns, functions)
    leaders, ends = set(entries), []
    for slot, insn in enumerate(insns):
        if isinstance(insn, Jump | JumpIf | MayGoto):
            target = _check(insns, slot, insn.off, "jump")
            if bisect_right(entries, target) != bisect_right(entries, slot):
                raise VerifyError(f"instruction {slot}", f"jump to instruction {target}, which is "
                                  "in another function", insn=slot)
            leaders |= {target, slot + 1}
        elif isinstance(insn, Exit):
            leaders.add(slot + 1)
        else:
            continue
        ends.append(slot)
    for stop in (*entries[1:], len(insns)):
        last = stop - 1 if insns[stop - 1] is not None else stop - 2
        if not isinstance(insns[last], Exit | Jump):
            raise VerifyError(f"instruction {last}", "falls off the end of "
                              + ("the program" if stop == len(insns) else "its function"),
                              "end every function with exit or a jump", insn=last)
    leaders.discard(len(insns))
    starts = sorted(leaders)
    return {start: Block(start, end, _successors(insns, end))
            for start, end in zip(starts, [*starts[1:], len(insns)], strict=True)}


def reachable(blocks: dict[int, Block], entry: int = 0) -> set[int]:
    """Starts of the blocks that control flow from `entry` can reach, calls not followed."""
    seen, pending = {entry}, [entry]
    while pending:
        for successor in blocks[pending.pop()].successors:
            if successor not in seen:
                seen.add(successor)
                pending.append(successor)
    return seen


def _find_entries(insns: Insns, functions: Iterable[int]) -> list[int]:
    entries = {0, *functions}
    for slot, insn in enumerate(insns):
        if isinstance(insn, CallLocal):
            entries.add(_check(insns, slot, insn.off, "call"))
        elif isinstance(insn, LoadFunc):
            entries.add(_check(insns, slot, insn.off, "function address"))
    return sorted(entries)


def _check(insns: Insns, slot: int, off: int, what: str) -> int:
    """The slot that `off` leads to, an instruction of the program."""
    target = slot + 1 + off
    if not 0 <= target < len(insns):
        raise VerifyError(f"instruction {slot}", f"{what} to {target} leaves the program of "
                          f"{len(insns)} slots", insn=slot)
    if insns[target] is None:
        raise VerifyError(f"instruction {slot}", f"{what} to {target} lands in the middle of a "
                          "64-bit load", insn=slot)
    return target


def _successors(insns: Insns, end: int) -> tuple[int, ...]:
    """Where the block before `end` leads.  Falling off has been refused before."""
    insn = insns[end - 1]
    if isinstance(insn, Exit):
        return ()
    if isinstance(insn, Jump):
        return (end + insn.off,)
    if isinstance(insn, JumpIf | MayGoto) and insn.off:
        return (end, end + insn.off)
    return (end,)


def to_dot(spec: ProgramSpec, object: Object | None = None) -> str:
    """The graph for Graphviz: a box of instructions for each block, a cluster for each function."""
    blocks = build_cfg(spec.insns, (f.start for f in spec.functions))
    entries = _find_entries(spec.insns, (f.start for f in spec.functions))
    names = {f.start: f.name for f in spec.functions}
    out = [f"digraph {_quote(spec.name)} {{", '    node [shape=box, fontname="monospace"];']
    for entry, stop in zip(entries, [*entries[1:], len(spec.insns)], strict=True):
        out += [f"    subgraph cluster_{entry} {{",
                f"        label={_quote(names.get(entry, f'function at {entry}'))};"]
        for block in blocks.values():
            if entry <= block.start < stop:
                out.append(f"        b{block.start} [label={_label(spec, block, object)}];")
        out.append("    }")
    out += ["    " + edge for block in blocks.values() for edge in _edges(spec.insns, block)]
    return "\n".join([*out, "}"]) + "\n"


def _label(spec: ProgramSpec, block: Block, object: Object | None) -> str:
    lines = [f"{slot}: {format_insn(insn, slot, object)}"
             for slot, insn in enumerate(spec.insns[block.start:block.end], block.start)
             if insn is not None]
    return '"' + "".join(_quote(line)[1:-1] + "\\l" for line in lines) + '"'


def _edges(insns: Insns, block: Block) -> Iterator[str]:
    for successor in block.successors:
        branch = len(block.successors) == 2
        style = "" if not branch else (" [style=dashed]" if successor == block.end else
                                       ' [label="taken"]')
        yield f"b{block.start} -> b{successor}{style};"


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
