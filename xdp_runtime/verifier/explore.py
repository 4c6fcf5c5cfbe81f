"""Run the program on everything it could meet: depth first over its paths, with pruning.

From the entry on, each instruction's obligations are proven in the state at hand and the state is
moved past it.  A conditional jump whose outcome is open forks: one side waits on a stack.  Where
paths meet, the state is compared with those remembered there; what a finished one covers need not
be walked again (prune.py).  A state that equals an unfinished one is a loop without progress.

Static functions are entered with the caller's state, one frame deeper; global ones are proven by
themselves, after the program, if they are called (functions.py).  Loops that end by themselves
(callbacks, iterators, may_goto) are walked until a state lies within one that is still open: what
could follow is being walked already.  Budgets end what would take too long with a clear word.
"""

from __future__ import annotations

import time

from xdp_runtime.arena import arenas_of
from xdp_runtime.helpers.proto import Arg
from xdp_runtime.isa import (
    MAX_CALL_FRAMES,
    Alu,
    AluOp,
    Call,
    CallKfunc,
    CallLocal,
    Exit,
    Imm,
    Jump,
    JumpIf,
    Load,
    MayGoto,
)
from xdp_runtime.verifier import (
    arguments,
    branches,
    callbacks,
    calls,
    functions,
    kfuncs,
    prune,
    scalar,
    transfer,
)
from xdp_runtime.verifier.domain import Frame, Kind, Num, Ptr, Reg, State, name_of
from xdp_runtime.verifier.env import Env, Refused
from xdp_runtime.verifier.facts import Facts
from xdp_runtime.verifier.flow import Flow, uses
from xdp_runtime.verifier.obligations import Readable
from xdp_runtime.verifier.prune import How, Seen

Waiting = list[tuple[int, State, Seen, int]]

MAX_STEPS = 1_000_000  # BPF_COMPLEXITY_LIMIT_INSNS
MAX_WAITING = 8192  # BPF_COMPLEXITY_LIMIT_JMP_SEQ
_MIN_BETWEEN = 8  # instructions between two remembered states, unless a loop begins
_PATIENCE = 3  # a remembered state is dropped when it missed so much more often than it covered
_MANY = 64  # finished ones are kept until there are so many
_PATIENCE_AT_LOOPS = 64  # where states are to come to rest


class Explorer:
    """One exploration.  `steps` instructions were walked; `facts` is what was found."""

    def __init__(self, env: Env, flow: Flow, time_budget_s: float) -> None:
        self.env, self.flow = env, flow
        self.facts = Facts(len(env.insns))
        self.facts.take(env)
        self.facts.sums = frozenset(
            slot for slot, insn in enumerate(env.insns)
            if isinstance(insn, Alu) and insn.op in (AluOp.ADD, AluOp.SUB))
        self.steps = 0
        self.remembered = 0
        self._endless = False  # a path goes on in a state whose own paths are not at their end
        self.slot = 0
        self.state: State | None = None
        self.deadline = time.thread_time() + time_budget_s  # what runs beside it does not count
        self.time_budget_s = time_budget_s
        self._seen: dict[int, list[Seen]] = {}
        self._globals = functions.global_functions(env)
        self._called: set[int] = set()  # global functions that are called
        self._moving = functions.moving_functions(env, flow, flow.starts)
        self._uses = [0 if insn is None else uses(insn, env.entry.helpers)[0] for insn in env.insns]
        self._must = [transfer.split(obligations) for obligations in flow.obligations]
        self._operands = [tuple(n for n in range(11) if used >> n & 1) for used in self._uses]

    def run(self) -> None:
        """Explore everything.  Raises Refused at the first obligation that cannot be proven;
        `slot` and `state` then say where."""
        if len(arenas_of(self.env.insns, self.env.maps)) > 1:
            raise Refused("map", "the program uses more than one arena")
        regs: list[Reg] = [None] * 11
        regs[10] = Ptr(Kind.STACK)
        given = self.env.entry.memory_bytes
        if given is None:
            regs[1] = Ptr(Kind.CTX)
        else:
            regs[1] = Ptr(Kind.MEM, size=given) if given else Num(scalar.const(0))
            regs[2] = Num(scalar.const(given))
        longest = self._run_from(0, State([Frame(regs, {}, -1, 0)]))
        self.facts.longest = -1 if self._endless else longest
        done: set[int] = set()
        while self._called - done:
            start = min(self._called - done)
            done.add(start)
            self.slot, self.state = start, None
            self._run_from(start, functions.start_of(self.env, self._globals[start]))
        functions.check_stack(self.env, self.flow, self.flow.starts)

    def _run_from(self, slot: int, state: State) -> int:
        """Explore from there; the longest path."""
        root = Seen(slot, State([]), None)
        waiting: Waiting = [(slot, state, root, 0)]
        while waiting:
            self._path(*waiting.pop(), waiting).finish()
        return root.longest

    def _path(self, slot: int, state: State, parent: Seen, walked: int,
              waiting: Waiting) -> Seen:
        """Walk one path to its end; the remembered state it ended under.

        It is `walked` instructions behind `parent`, the state last remembered."""
        env, flow, facts = self.env, self.flow, self.facts
        insns, visited, operands, must = env.insns, facts.visited, self._operands, self._must
        since = _MIN_BETWEEN
        began = self.steps - walked
        self.state = state
        if slot == calls.LEAVE:
            slot = self._leave(state, parent)
        while True:
            self.slot = env.slot = slot
            if flow.prune[slot]:
                cover = self._covered(slot, state)
                if cover is not None:
                    if cover.open or cover.loop_head() is not None:
                        self._endless = True
                        prune.close_loop(cover, state, parent)
                    parent.reach(self.steps - began + cover.longest)
                    return parent
                if since >= _MIN_BETWEEN or flow.loops[slot]:
                    parent = self._remember(slot, state, parent, self.steps - began)
                    began = self.steps
                    since = 0
            since += 1
            self.steps += 1
            if self.steps & 0xFFF == 0:
                self._check_budget()
            visited[slot] = 1
            insn = insns[slot]
            regs = state.frames[-1].regs
            for number in operands[slot]:
                facts.see(slot, number, regs[number])
            reads, rest = must[slot]
            for number in reads:
                if regs[number] is None:
                    transfer.prove(env, state, Readable(number))
            for obligation in rest:
                transfer.prove(env, state, obligation)
            if isinstance(insn, JumpIf):
                left = regs[insn.dst]
                if isinstance(left, Ptr) and not isinstance(insn.src, Imm):
                    facts.see_comparison(slot, left, regs[insn.src.n])
                falls, taken = branches.outcomes(state, insn)
                if taken is not None:
                    facts.taken[slot] = 1
                if falls is not None:
                    facts.falls[slot] = 1
                if falls is None and taken is None:
                    parent.reach(self.steps - began)
                    return parent
                if falls is None:
                    assert taken is not None
                    state, slot = taken, flow.target[slot]
                elif taken is None:
                    state, slot = falls, flow.next[slot]
                else:
                    self._wait(flow.target[slot], taken, parent, self.steps - began, waiting)
                    state, slot = falls, flow.next[slot]
                self.state = state
            elif isinstance(insn, Jump):
                slot = flow.target[slot]
            elif isinstance(insn, Call | CallKfunc):
                number = insn.helper if isinstance(insn, Call) else (
                    kfuncs.number_of(env, insn.btf_id))
                if env.observer is not None:
                    env.observer.call(slot, number, state)
                others: calls.Outcomes = []
                texts = regs[1:3]
                if number not in kfuncs.SPECIAL:
                    calls.call(env, state, number, others)
                else:
                    calls.helper_of(env, number)
                    again = kfuncs.call(env, state, number)
                    if again is not None:
                        before = self._last_round(parent.parent, slot, again)
                        if before is not None:
                            callbacks.widen(before, again)
                        others.append((flow.next[slot], again))
                if env.observer is not None:
                    env.observer.called(slot, number, state)
                if number in arguments.WITH_TEXT:
                    self._see_texts(slot, number, texts)
                for other in others:
                    self._wait(*other, parent, self.steps - began, waiting)
                slot = flow.next[slot]
            elif isinstance(insn, Exit):
                back = self._leave(state, parent)
                if back < 0:
                    parent.reach(self.steps - began)
                    return parent
                slot = back
            elif isinstance(insn, CallLocal):
                slot = self._enter(state, slot)
            elif isinstance(insn, MayGoto):
                again = state.copy()
                again.rounds += 1
                before = self._last_round(parent.parent, slot, again)
                if before is not None:
                    callbacks.widen(before, again)
                self._wait(flow.next[slot], again, parent, self.steps - began, waiting)
                slot = flow.target[slot]
            else:
                assert insn is not None
                base = regs[insn.src] if isinstance(insn, Load) else None
                transfer.step(env, state, insn)
                if isinstance(insn, Load) and isinstance(base, Ptr) and (
                        base.kind is Kind.MAP_VALUE):
                    facts.see_load(slot, regs[insn.dst])
                slot = flow.next[slot]

    def _see_texts(self, slot: int, number: int, values: list[Reg]) -> None:
        """How much there is behind each text: the same on every path, but for constants, and what
        can be measured."""
        for position, arg in enumerate(self.env.entry.helpers[number].args, 1):
            value = values[position - 1] if position <= len(values) else None
            if arg is Arg.STRING and isinstance(value, Ptr):
                room = arguments.room(self.env, value)
                known = self.facts.rooms.get((slot, position), room)
                differs = room != known and max(room, known) < arguments.ENDS_ITSELF
                if differs and value.kind is Kind.MAP_VALUE and (
                        self.env.maps[value.map].type in arguments.ARRAYS):
                    room = 0  # measured when it runs
                elif differs:
                    raise Refused("bounds", f"the text in r{position} has {room} bytes on one path "
                                  f"and {known} on another", "copy it to one place before",
                                  regs=(position,))
                self.facts.rooms[slot, position] = min(room, known)

    def _wait(self, slot: int, state: State, parent: Seen, walked: int, waiting: Waiting) -> None:
        """Walk that path later."""
        waiting.append((slot, state, parent, walked))
        parent.open += 1
        if len(waiting) > MAX_WAITING:
            raise Refused("budget", f"more than {MAX_WAITING} paths wait to be walked",
                          "give loops a limit that is known")

    def _last_round(self, parent: Seen | None, slot: int, state: State) -> State | None:
        """The state of this path when it last came to the loop's instruction at `slot`."""
        while parent is not None:
            if parent.slot == slot and parent.state.frames and prune.same_calls(parent, state):
                return parent.state
            parent = parent.parent
        return None

    def _check_budget(self) -> None:
        if self.steps > MAX_STEPS:
            raise Refused("budget", f"more than {MAX_STEPS} instructions were walked",
                          "make loops shorter, or share code in functions")
        if time.thread_time() > self.deadline:
            raise Refused("budget", f"the proof took more than {self.time_budget_s:g} s of a CPU "
                          f"for {self.steps} instructions",
                          "give loops a limit that is known, or split it by tail calls")

    def _covered(self, slot: int, state: State) -> Seen | None:
        """The remembered state from which everything this one could do was tried."""
        known = self._seen.get(slot)
        if known is None:
            return None
        patience = _PATIENCE_AT_LOOPS if self.flow.loops[slot] and state.rounds else _PATIENCE
        stale = None
        for seen in reversed(known):
            if not prune.same_calls(seen, state):
                continue
            if seen.open:
                if seen.state.rounds != state.rounds:
                    if prune.covers(seen, state, How.WITHIN):
                        return seen
                elif prune.covers(seen, state, How.EXACT):
                    raise Refused("loop", "this loop can run for ever: a state repeats",
                                  "make its counter change and its end depend on it")
            elif prune.covers(seen, state, How.DEPENDED if seen.loop_head() is None
                              else How.WITHIN):
                prune.inherit(seen, state)
                seen.hits += 1
                return seen
            seen.misses += 1
            if seen.misses > (seen.hits + 1) * patience:
                stale = seen
        if stale is not None and (stale.open or len(known) > _MANY):
            known.remove(stale)
        return None

    def _remember(self, slot: int, state: State, parent: Seen, before: int) -> Seen:
        seen = prune.remember(state, slot, parent, self.flow, before)
        self._seen.setdefault(slot, []).append(seen)
        self.remembered += 1
        return seen

    def _enter(self, state: State, slot: int) -> int:
        """The slot to go on at."""
        start = self.flow.target[slot]
        function = self._globals.get(start)
        if function is not None:
            self._called.add(start)
            self._endless = True
            functions.call(self.env, state, function, start in self._moving)
            return self.flow.next[slot]
        if len(state.frames) >= MAX_CALL_FRAMES:
            raise Refused("call", f"calls nest deeper than {MAX_CALL_FRAMES} frames")
        caller = state.frames[-1]
        regs: list[Reg] = [None] * 11
        regs[1:6] = caller.regs[1:6]
        regs[10] = Ptr(Kind.STACK, frame=len(state.frames))
        caller.regs[0:6] = [None] * 6
        state.frames.append(Frame(regs, {}, self.flow.next[slot], start))
        return start

    def _leave(self, state: State, parent: Seen) -> int:
        """The slot to go on at, -1 at the end of the program."""
        frame = state.frames[-1]
        value = frame.regs[0]
        if frame.callback:
            callbacks.check_result(value, frame.callback)
        if len(state.frames) == 1:
            self._end(state, frame)
            return -1
        if isinstance(value, Ptr) and value.kind is Kind.STACK:
            raise Refused("return", "a function returns a pointer into its own stack",
                          regs=(0,))
        state.frames.pop()
        if frame.callback:
            before = self._last_round(parent, frame.return_slot, state)
            if before is not None:
                callbacks.widen(before, state)
        else:
            state.frames[-1].regs[0] = value
        return frame.return_slot

    def _end(self, state: State, frame: Frame) -> None:
        """The end of the program, of a global function or of a timer's callback."""
        value = frame.regs[0]
        if frame.entry and not frame.callback:
            functions.check_result(self.env, state, self._globals[frame.entry])
        elif not frame.callback:
            if value is None:
                raise Refused("uninit", "r0 holds no verdict at the end of the program",
                              "return a verdict on every path", regs=(0,))
            if not isinstance(value, Num):
                raise Refused("return", f"r0 is {name_of(value)} at the end of the program, not "
                              "a verdict", regs=(0,))
        kfuncs.check_left(state, "the end of the program")
        if state.refs:
            raise Refused("reference", "a reference is still held at the end of the program",
                          "release it on every path")
        if state.lock is not None:
            raise Refused("lock", "a spin lock is still held at the end of the program")
        if self.env.observer is not None and isinstance(value, Num) and not frame.entry:
            self.env.observer.leave(self.slot, value)
