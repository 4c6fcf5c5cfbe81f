"""Hostile object files: python -m bench.fuzz_elf [OBJECT...] [--mutants 100000] [--seed 1]
                                             [--within .BTF,.BTF.ext,...]

Each mutant is one of the objects with bytes changed, cut out, doubled or swapped, most of them in
what describes the rest: headers, symbols, relocations, type information.  With --within the file
stays whole and numbers change inside these sections alone: what BTF and CO-RE relocations say is
then read to its end.  A mutant is read, settled and its first instructions are verified.  Every one
must give an Object or one sentence (LoadError), in less than a second of processor time, without
much memory.  Ends with `N mutants, M defects` and exits 1 for any.
"""

from __future__ import annotations

import argparse
import random
import resource
import struct
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from xdp_runtime.core_relo import settle
from xdp_runtime.elf import read_object
from xdp_runtime.errors import LoadError
from xdp_runtime.verifier.report import verify

ROOT = Path(__file__).parents[1]
_SLOW_S = 1.0
_VERIFY_S = 0.3  # of two programs
_NOBITS = 8
_ODD = (0, 1, 0x7F, 0x80, 0xFF)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to eight changes; half of the mutants only in the last part of the file, the tables."""
    out = bytearray(data)
    low = 0 if rng.random() < 0.5 else len(out) // 2
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(min(low, len(out) - 1), len(out))
        match rng.randrange(8):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1 | 2:
                out[at] = rng.choice(_ODD)
            case 3:
                out[at] = rng.randrange(256)
            case 4:
                size = rng.choice((2, 4, 8))
                value = rng.choice((0, 1, (1 << 8 * size) - 1, 1 << 8 * size - 1,
                                    rng.getrandbits(8 * size)))
                out[at:at + size] = value.to_bytes(size, "little")
            case 5 if len(out) > 100:
                del out[at:at + rng.choice((1, 8, 64))]
            case 6:
                out[at:at] = out[max(0, at - rng.choice((1, 8, 64))):at]
            case _:
                other = rng.randrange(len(out))
                out[at:at + 8], out[other:other + 8] = out[other:other + 8], out[at:at + 8]
        if len(out) < 2:
            break
    if rng.random() < 0.02:
        del out[rng.randrange(len(out)):]
    return bytes(out)


def mutate_within(data: bytes, names: Sequence[str], rng: random.Random) -> bytes:
    """One to eight numbers of these sections changed; data as it is if it has none of them."""
    places = [span for name, span in sections(data) if name in names and len(span) >= 8]
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8)) if places else 0):
        span = rng.choice(places)
        size = rng.choice((1, 2, 4, 4))
        at = span[rng.randrange(len(span) - size) & -size]
        old = int.from_bytes(out[at:at + size], "little")
        top = 1 << 8 * size
        value = rng.choice((old + 1, old - 1, old ^ 1 << rng.randrange(8 * size), old * 2,
                            rng.choice(_ODD), rng.randrange(top), rng.randrange(64), top - 1))
        out[at:at + size] = (value % top).to_bytes(size, "little")
    return bytes(out)


def sections(data: bytes) -> list[tuple[str, range]]:
    """Names of a whole object's sections, and where in the file they are; none of a big-endian
    one, which is refused before they matter."""
    if data[5] != 1:
        return []
    table, = struct.unpack_from("<Q", data, 40)
    count, names = struct.unpack_from("<HH", data, 60)
    headers = [struct.unpack_from("<IIQQQQ", data, table + 64 * n) for n in range(count)]
    text = headers[names][4]
    return [(data[text + name:data.index(0, text + name)].decode(), range(offset, offset + size))
            for name, kind, _, _, offset, size in headers if kind != _NOBITS]


def feed(data: bytes) -> str:
    """What came of it: "read", "verified" or "refused".  Raises whatever is a defect."""
    try:
        obj = settle(read_object(data, "mutant"))
    except LoadError as error:
        text = str(error)
        if "\n" in text or len(text) > 600:
            raise AssertionError(f"not one sentence: {text!r}") from error
        return "refused"
    good = True
    for program in obj.programs[:2]:
        good = verify(obj, program, time_budget_s=_VERIFY_S).ok and good
    return "verified" if good else "read"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz_elf",
                                     description="Feed mutated object files to the loader.")
    parser.add_argument("objects", nargs="*", type=Path)
    parser.add_argument("--mutants", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--within", metavar="SECTION,...", type=lambda text: text.split(","))
    options = parser.parse_args(arguments)
    paths = options.objects or sorted((ROOT / "tests/xdp_runtime/objects").glob("*.o"))
    samples = [path.read_bytes() for path in paths]
    outcomes: Counter[str] = Counter()
    slowest, defects = 0.0, 0
    for number in range(options.mutants):
        rng = random.Random(f"{options.seed}.{number}")
        sample = rng.choice(samples)
        data = (mutate_within(sample, options.within, rng) if options.within
                else mutate(sample, rng))
        began = time.process_time()
        try:
            outcomes[feed(data)] += 1
        except (Exception, RecursionError) as error:  # noqa: BLE001 (each one is a defect)
            defects += 1
            print(f"mutant {options.seed}.{number}: {type(error).__name__}: {str(error)[:200]}",
                  flush=True)
        took = time.process_time() - began
        slowest = max(slowest, took)
        if took > _SLOW_S:
            defects += 1
            print(f"mutant {options.seed}.{number}: took {took:.1f} s", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(", ".join(f"{count} {name}" for name, count in sorted(outcomes.items())))
    print(f"slowest {slowest * 1e3:.0f} ms, peak memory {peak} MB")
    print(f"{options.mutants} mutants, {defects} defects")
    return 1 if defects or peak > 200 else 0


if __name__ == "__main__":
    sys.exit(main())
