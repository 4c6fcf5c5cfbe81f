"""The paths that packets take through a program: all are compared, one of each path is measured.

Every engine sees all packets in their order, twice.  In the second round, when connections are
known and counters run, packets that come to the same are one path: verdict, growth, metadata,
whether bytes changed, and how many instructions the interpreter needed.  A path is measured on the
first packet that took it, after all packets of the file.
"""

from __future__ import annotations

from argparse import Namespace
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench import packets
from bench.agree import Mismatch, Outcome, chance
from bench.cases import Case
from bench.packets import Packet
from bench.rig import Engines
from control import setmap
from xdp_runtime.core_relo import read_settled
from xdp_runtime.errors import XdpuError
from xdp_runtime.object import Object
from xdp_runtime.state import Verdict

MOST = 8  # paths of a program
_AT_ONCE = 8  # instructions: a program that drops after so few looked at nothing
_DROPS = (Verdict.DROP, Verdict.ABORTED)


class Way(NamedTuple):
    """What packets of one path have in common."""

    retval: int
    growth: int
    meta_bytes: int
    is_changed: bool
    steps: int


@dataclass
class Found:
    cases: list[Case] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    mismatches: list[dict[str, Any]] = field(default_factory=list)  # rows


def find(path: Path, args: Namespace, wanted: tuple[str, ...]) -> Found:
    """Raises XdpuError for files that cannot be read and settings that fit no map."""
    obj = read_settled(path)
    settings = [setmap.parse(text, obj) for text in args.set_map]
    entries: dict[str, dict[bytes, bytes]] = defaultdict(dict)
    for name, key, value in setmap.encoded(obj, settings):
        entries[name][key] = value
    offered, notes = packets.read(args.packets)
    found = Found(notes=[f"{path.name}: {text}" for text in notes])
    ignored = _uncertain(obj, found, path.name)
    base = {"object": path.name, "verdict": "", "packet_bytes": 0, "ok": False}
    try:
        taken = _walk(obj, args.prog_name, wanted, entries, offered, ignored)
    except Mismatch as mismatch:
        name, _, text = str(mismatch).partition("\0")
        found.mismatches.append({**base, "name": f"{path.stem}/{name}", "mismatch": text})
        return found
    except XdpuError as error:
        found.mismatches.append({**base, "name": path.stem, "mismatch": str(error)})
        return found
    ways = sorted(taken.items(), key=lambda item: -len(item[1]))
    prelude = tuple(packet.content for packet in offered)
    for way, members in ways[:MOST]:
        name = path.stem if len(ways) == 1 else f"{path.stem}/{members[0].name}"
        verdict = Verdict(way.retval) if way.retval <= max(Verdict) else None
        found.cases.append(Case(
            name, members[0].content, verdict, entries, ignored, path, args.prog_name,
            prelude if args.packets != packets.GENERATED else (), len(members)))
    if len(ways) > MOST:
        rest = sum(len(members) for _, members in ways[MOST:])
        found.notes.append(f"{path.name}: {len(ways)} paths; the {MOST} commonest are measured, "
                           f"{rest} of {len(offered)} packets take others")
    _tell_drops(found, path.name, ways)
    return found


def _uncertain(obj: Object, found: Found, name: str) -> tuple[str, ...]:
    """Maps that need not be equal, all or none."""
    why = chance(obj)
    if not why or not obj.maps:
        return ()
    found.notes.append(f"{name}: its maps are not compared, verdict and bytes are "
                       f"({', '.join(why)})")
    return tuple(m.name for m in obj.maps)


def _tell_drops(found: Found, name: str, ways: list[tuple[Way, list[Packet]]]) -> None:
    at_once = [way for way, _ in ways if way.retval in _DROPS and 0 < way.steps <= _AT_ONCE]
    if not at_once:
        return
    if len(at_once) == len(ways):
        found.notes.append(f"{name}: drops every packet at once, after {at_once[0].steps} "
                           "instructions: what is measured is not its work (give packets that it "
                           "is for, --packets FILE, or map entries, --set-map)")
    else:
        count = sum(len(members) for way, members in ways if way in at_once)
        found.notes.append(f"{name}: drops {count} of the packets at once, within {_AT_ONCE} "
                           "instructions")


def _walk(obj: Object, program: str | None, wanted: tuple[str, ...],
          entries: dict[str, dict[bytes, bytes]], offered: list[Packet],
          ignored: tuple[str, ...]) -> dict[Way, list[Packet]]:
    """Raises Mismatch: the packet's name, \\0, and what differs."""
    taken: dict[Way, list[Packet]] = defaultdict(list)
    at = offered[-1]
    with ExitStack() as stack:
        engines = Engines(obj, program, (*wanted, "interp"), stack)
        engines.fill(entries)
        try:
            for is_second in (False, True):
                for at in offered:
                    mine, different = engines.run(at.content)
                    if different:
                        raise Mismatch(different)
                    if is_second:
                        taken[_way(at, mine, engines.steps)].append(at)
            engines.compare_maps(ignored)
        except Mismatch as mismatch:
            raise Mismatch(f"{at.name}\0{mismatch}") from mismatch
    return taken


def _way(packet: Packet, mine: Outcome, steps: int) -> Way:
    return Way(mine.retval, len(mine.data_out) - len(packet.content), len(mine.meta),
                 mine.data_out != packet.content, steps)
