"""Packets in several buffers: C programs as xdp.frags, on the interpreter, compiled, in the kernel.

Each packet is run by itself, with a part of it in the first buffer and the rest in pages.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from contextlib import ExitStack
from typing import Any

from bench.fuzz.engines import LISTS, UNSEEN, Compiled, Interpreted, in_kernel
from bench.fuzz.outcome import Disagreement, Outcome
from bench.fuzz.packets import LONGEST, random_packets
from xdp_runtime.compiler import target
from xdp_runtime.errors import VerifyError
from xdp_runtime.object import Object
from xdp_runtime.program import load

_PAGE, _PAGES = 4096, 17
Packet = tuple[bytes, int]  # and how much of it is in the first buffer


def long_packets(seed: int, count: int) -> list[Packet]:
    """Of 14 bytes to more than 17 pages; their beginnings are those of other random packets."""
    rng = random.Random(f"frags {seed}")
    out = []
    for begin in random_packets(seed, count):
        first = rng.choice((64, 65, 100, 1000, LONGEST - 1, LONGEST, LONGEST))
        length = rng.choice((len(begin), first, first + 1, first + _PAGE, first + _PAGE + 1, 9000,
                             first + rng.randrange(3 * _PAGE), first + _PAGES * _PAGE))
        packet = (begin + rng.randbytes(max(0, length - len(begin))))[:max(14, length)]
        out.append((packet, min(first, len(packet))))
    return out


def judge_frags(obj: Object, packets: list[Packet]) -> Outcome:
    """As judge.judge_object, without operations on maps."""
    outcome = Outcome(Counter(programs=1))
    with ExitStack() as stack:
        try:
            kernel = stack.enter_context(in_kernel(obj, min(os.sched_getaffinity(0))))
        except VerifyError as error:
            outcome.refused = str(error)
            return outcome
        outcome.counts["accepted"] += 1
        interpreted = Interpreted(obj)
        engines: list[Any] = [interpreted]
        for opt in target.TESTED:
            try:
                engines.append(Compiled(stack.enter_context(load(obj, opt=opt)), opt))
            except VerifyError as error:
                outcome.found.append(Disagreement("verifier", f"refuses: {error}"))
                return outcome
        for number, (packet, linear) in enumerate(packets):
            given = kernel.program.run(packet, linear_bytes=linear)
            expected = given.retval, given.data_out, given.meta
            ours = interpreted.machine.run(packet, linear_bytes=linear, ingress_ifindex=1)
            results = [(interpreted.name, (ours.verdict, ours.data_out, ours.meta))]
            for engine in engines[1:]:
                run = engine.program.run(packet, linear_bytes=linear, ingress_ifindex=1)
                results.append((engine.name, (run.retval, run.data_out, run.meta)))
            outcome.counts["pairs"] += 1
            outcome.counts["interpreted"] += 1
            outcome.found += [
                Disagreement(name, f"{_shown(got)}, not {_shown(expected)}, of {len(packet)} "
                             f"bytes, {linear} in the first buffer", number)
                for name, got in results if got != expected]
            if outcome.found:
                return outcome
        for spec in obj.maps:
            if spec.type in UNSEEN or spec.type in LISTS:
                continue
            there = kernel.contents(spec)
            outcome.counts["maps"] += 1
            outcome.found += [Disagreement(engine.name, f"map {spec.name} differs")
                              for engine in engines if engine.contents(spec) != there]
    return outcome


def _shown(result: tuple[int, bytes, bytes]) -> str:
    verdict, packet, meta = result
    return f"({verdict}, {len(packet)} bytes {packet[:80].hex()}, metadata {meta.hex()})"
