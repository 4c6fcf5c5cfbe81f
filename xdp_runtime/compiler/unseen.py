"""Programs that look at no packet and give the same verdict for each.

A loop that knows this takes and gives back whole batches (dataplane/one_pass.py).  What else such
a program does, counting in a map say, is done for every packet all the same.

That is seen in the instructions alone: r1 is never read as it came, so neither the program nor what
it calls ever has the context; and r0 is the same number wherever the program ends.
"""

from __future__ import annotations

from xdp_runtime.isa import CallLocal, Exit, Imm, Insns, Jump, JumpIf, MayGoto, Mov
from xdp_runtime.verifier.flow import analyse, uses

_UNKNOWN = -1
_CONTEXT = 1 << 1


def verdict_unseen(insns: Insns) -> int:
    """The verdict of all packets, -1 if they differ or a packet may be looked at."""
    if _looks_at_once(insns):
        return _UNKNOWN
    flow = analyse(insns)
    if flow.live[0] & _CONTEXT:
        return _UNKNOWN
    known: dict[int, int] = {}  # slots to r0 before them
    verdicts: set[int] = set()
    todo = [(0, _UNKNOWN)]
    while todo:
        slot, r0 = todo.pop()
        if slot in known:
            if known[slot] in (r0, _UNKNOWN):
                continue
            r0 = _UNKNOWN
        known[slot] = r0
        insn = insns[slot]
        assert insn is not None
        if isinstance(insn, Exit):
            verdicts.add(r0)
            continue
        match insn:
            case Mov(_, 0, Imm(number), _) if number >= 0:
                r0 = number
            case _ if uses(insn)[1] & 1:
                r0 = _UNKNOWN
        if not isinstance(insn, Jump):
            todo.append((flow.next[slot], r0))
        if flow.target[slot] >= 0 and flow.target[slot] not in flow.starts:
            todo.append((flow.target[slot], r0))
    return verdicts.pop() if len(verdicts) == 1 else _UNKNOWN


def _looks_at_once(insns: Insns) -> bool:
    """Is r1 read before the first branch?  Of nearly all programs that is all there is to find out,
    and it costs nothing."""
    for insn in insns:
        if isinstance(insn, CallLocal | Exit | Jump | JumpIf | MayGoto):
            return False
        if insn is not None:
            read, written = uses(insn)
            if (read | written) & _CONTEXT:
                return bool(read & _CONTEXT)
    return False
