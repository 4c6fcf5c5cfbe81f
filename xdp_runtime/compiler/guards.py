"""Heads of loops that look whether the packet goes on: lowered twice.

    again:  if (word + 1 > end) goto out;       if (word + 1 > end) goto out;
            sum += *word++;                 do {
            if (++i < N) goto again;                sum += *word++;
                                                    if (++i >= N) goto out;
                                            } while (word + 1 <= end);

What is on the left leaves in the middle of a round, with the sum of the round before; LLVM makes
vector code of loops only if all their results are those of whole rounds, as on the right.  clang
does this to most loops before they become BPF, but not to those that end by a count.  So the block
that compares with the packet's end, and those before it in its round, exist once for who comes from
outside the loop and once for who goes round.
"""

from __future__ import annotations

from collections.abc import Iterable

from xdp_runtime.compiler.frames import Frame, Node
from xdp_runtime.isa import Alu, Insns, Jump, JumpIf, Mov
from xdp_runtime.verifier.facts import Facts

_LONGEST, _MOST = 8, 3  # instructions of a block; blocks


def guards_of(frames: Iterable[Frame], insns: Insns, facts: Facts) -> frozenset[Node]:
    heads = {slot + 1 + insn.off for slot, insn in enumerate(insns)
             if isinstance(insn, Jump | JumpIf) and insn.off < 0}
    return frozenset((frame.id, slot) for frame in frames for head in heads & frame.starts
                     for slot in _guard(head, frame.starts, insns, facts))


def _guard(head: int, starts: frozenset[int], insns: Insns, facts: Facts) -> list[int]:
    """The first slots of the blocks from the head to where the loop compares with the packet's
    end; none if it does not, or does more before."""
    blocks = []
    for _ in range(_MOST):
        end = next((slot for slot in range(head, head + _LONGEST)
                    if not isinstance(insns[slot], Alu | Mov) or slot + 1 in starts), head)
        branch = insns[end]
        if not isinstance(branch, JumpIf) or branch.off < 0:
            return []
        blocks.append(head)
        if facts.edges.get(end, 0):
            return blocks
        head = end + 1
    return []
