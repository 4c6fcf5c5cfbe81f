"""Blocks and the edges between them, which turn a path's kinds into those of where it leads."""

from __future__ import annotations

from xdp_runtime.compiler.frames import Node
from xdp_runtime.compiler.kinds import Either, Kind, Scalar, State
from xdp_runtime.compiler.registers import Registers, spill_location


class Edges(Registers):
    guards: frozenset[Node]  # blocks at the head of a loop that are lowered twice (guards.py)
    entering = False  # is this the copy for paths that come from outside the loop?
    node: Node  # the block that is lowered
    pending: list[tuple[str, Node, list[tuple[str, Kind, Kind]]]]  # label, target, what to convert

    def block(self, node: Node) -> str:
        return f"f{node[0]}_{node[1]}"

    def label_of(self, node: Node) -> str:
        """Where this path enters a block."""
        around = self.frame.id == node[0] and self.slot >= node[1]
        if node in self.guards and (self.entering or not (around or self.node in self.guards)):
            return f"{self.block(node)}.first"
        return self.block(node)

    def jump_to(self, node: Node, state: State) -> str:
        """A label to branch to that first turns this path's kinds into the target's."""
        target = self.analysis.at[node]
        frame = self.analysis.frames[node[0]]
        changes: list[tuple[str, Kind, Kind]] = []
        for number, (have, want) in enumerate(zip(state.regs, target.regs, strict=True)):
            if have is not want and have != want and number != 10:
                changes.append((self.location(number, frame.depth), have, want))
        for depth, (mine, theirs) in enumerate(zip(state.saved, target.saved, strict=True)):
            for number, (have, want) in enumerate(zip(mine, theirs, strict=True), 6):
                if have != want:
                    changes.append((self.location(number, depth), have, want))
        for slot, want in target.spills.items():
            have = state.spills.get(slot, Scalar())
            if have != want and not isinstance(want, Either):  # which memory has
                changes.append((spill_location(*slot), have, want))
        changes = [c for c in changes if self.needs_conversion(c[1], c[2])]
        if not changes:
            return self.label_of(node)
        edge = self.label("edge")
        self.pending.append((edge, node, changes))
        return edge

    def end_block(self) -> None:
        """Emit the edges that convert."""
        for edge, target, changes in self.pending:
            self.start(edge)
            for location, have, want in changes:
                self.convert(location, have, want)
            self.emit(f"br label %{self.label_of(target)}")
        self.pending.clear()

    def forget_unread(self, live: int) -> None:
        """The block ends, and of r0 to r9 only these (bits) are read behind it: the variables of
        the others need not have what they hold."""
        for number in range(10):
            if not live >> number & 1:
                location = self.reg(number)
                self.unstored.pop(f"%{location}.i", None)
                self.unstored.pop(f"%{location}.p", None)

    def branch_always(self, target: int) -> None:
        self.emit(f"br label %{self.jump_to((self.frame.id, target), self.state)}")

    def branch_if(self, condition: str, slot: int, target: int) -> None:
        taken = self.jump_to((self.frame.id, target), self.state)
        falls = self.jump_to((self.frame.id, slot + 1), self.state)
        self.emit(f"br i1 {condition}, label %{taken}, label %{falls}")
