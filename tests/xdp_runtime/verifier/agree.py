"""Random programs: does our verifier say what the kernel's does?

    python -m tests.xdp_runtime.verifier.agree --seeds 0-10000 [--jobs N] [--show N] [--kernel]
    python -m tests.xdp_runtime.verifier.agree --seed N
    python -m tests.xdp_runtime.verifier.agree --corpus [--jobs N]

Prints kernel x ours, and programs of the kinds that matter: **unsafe** (the kernel refuses for
memory safety, we accept), **sharper** (the same, but judge.py proves by itself that it is safe:
the kernel could not see it), **too strict** (the kernel accepts, we refuse) and **trapped** (we
accept, and the interpreter's own checks fire when it runs).  --kernel asks the
kernel alone: how many it accepts, how fast, and why it refuses the others.  --seed N shows one
program with both answers, --corpus what we say of the cases (their kernel's words are on file).
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from tests.xdp_runtime.verifier.cases import Case, all_cases
from tests.xdp_runtime.verifier.kernel_load import Answer, load, make_map
from tests.xdp_runtime.verifier.kernel_words import class_of
from tests.xdp_runtime.verifier.randprog import random_program
from tests.xdp_runtime.verifier.run_accepted import find_trap
from xdp_runtime.disasm import format_program
from xdp_runtime.object import MapSpec, Object

CHUNK = 200
_fds: dict[MapSpec, int] = {}


@dataclass
class Outcome:
    matrix: Counter[tuple[str, str]] = field(default_factory=Counter)  # (kernel, ours)
    unsafe: list[tuple[int, str]] = field(default_factory=list)
    sharper: list[tuple[int, str]] = field(default_factory=list)
    strict: list[tuple[int, str]] = field(default_factory=list)
    broken: list[tuple[int, str]] = field(default_factory=list)
    trapped: list[tuple[int, str]] = field(default_factory=list)
    words: Counter[str] = field(default_factory=Counter)
    ours_s: float = 0.0
    kernel_s: float = 0.0

    def add(self, other: Outcome) -> None:
        self.matrix += other.matrix
        self.words += other.words
        self.unsafe += other.unsafe
        self.sharper += other.sharper
        self.strict += other.strict
        self.broken += other.broken
        self.trapped += other.trapped
        self.ours_s += other.ours_s
        self.kernel_s += other.kernel_s


def ask_kernel(obj: Object, level: int = 4) -> Answer:
    for spec in obj.maps:
        if spec not in _fds:
            _fds[spec] = make_map(spec)
    return load(obj.programs[0].insns, [_fds[spec] for spec in obj.maps], obj.programs[0].kind,
                obj.license, level)


def ask_ours(obj: Object) -> tuple[bool, str]:
    from xdp_runtime.verifier import verify

    report = verify(obj, obj.programs[0])
    return report.ok, "; ".join(f"{e.insn}: {e.kind}: {e.text}" for e in report.errors)


def compare(seeds: range, kernel_only: bool) -> Outcome:
    out = Outcome()
    for seed in seeds:
        obj = random_program(seed)
        began = time.perf_counter()
        kernel = ask_kernel(obj)
        between = time.perf_counter()
        out.kernel_s += between - began
        said = "accept" if kernel.accepted else class_of(kernel.line)
        if not kernel.accepted:
            out.words[_without_numbers(kernel.line)] += 1
        if kernel_only:
            out.matrix[said, "-"] += 1
            continue
        try:
            ok, text = ask_ours(obj)
        except Exception as error:
            out.broken.append((seed, f"{type(error).__name__}: {error}"))
            out.matrix[said, "broken"] += 1
            continue
        finally:
            out.ours_s += time.perf_counter() - between
        out.matrix[said, "accept" if ok else "refuse"] += 1
        if kernel.accepted and not ok:
            out.strict.append((seed, text))
        elif ok and said == "memory":
            from tests.xdp_runtime.verifier.judge import judge

            found, why = judge(obj)
            (out.sharper if found == "safe" else out.unsafe).append(
                (seed, f"{kernel.line}; judged {found}: {why}"))
        if ok:
            trap = find_trap(obj, seed)
            if trap:
                out.trapped.append((seed, trap))
    return out


def _without_numbers(line: str) -> str:
    return "".join("N" if c.isdigit() else c for c in line)[:70]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="agree")
    parser.add_argument("--seeds", default="0-2000", help="A-B, B not included")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--show", type=int, default=3, help="programs shown of each kind")
    parser.add_argument("--kernel", action="store_true", help="the kernel alone")
    parser.add_argument("--seed", type=int, help="show one program and both answers")
    parser.add_argument("--corpus", action="store_true")
    parser.add_argument("--timeout", type=int, default=20, help="seconds a case of the corpus")
    options = parser.parse_args(arguments)
    if options.corpus:
        return corpus(options.jobs, options.timeout)
    if options.seed is not None:
        show(options.seed, kernel_only=options.kernel)
        return 0
    first, last = (int(part) for part in options.seeds.split("-"))
    chunks = [range(at, min(at + CHUNK, last)) for at in range(first, last, CHUNK)]
    total = Outcome()
    began = time.perf_counter()
    if options.jobs == 1:
        for chunk in chunks:
            total.add(compare(chunk, options.kernel))
    else:
        with ProcessPoolExecutor(options.jobs) as pool:
            for outcome in pool.map(compare, chunks, [options.kernel] * len(chunks)):
                total.add(outcome)
    print_outcome(total, last - first, time.perf_counter() - began, options.show)
    return 1 if total.unsafe or total.broken or total.trapped else 0


def print_outcome(total: Outcome, programs: int, took_s: float, shown: int) -> None:
    accepted = sum(n for (kernel, _), n in total.matrix.items() if kernel == "accept")
    print(f"{programs} programs in {took_s:.1f} s ({programs / took_s:.0f}/s); "
          f"kernel accepts {accepted} ({100 * accepted / programs:.1f} %), "
          f"{1e3 * total.kernel_s / programs:.2f} ms each, "
          f"ours {1e3 * total.ours_s / programs:.2f}")
    columns = sorted({ours for _, ours in total.matrix})
    print(f"{'kernel':>10} " + " ".join(f"{column:>8}" for column in columns))
    for row in ("accept", "memory", "type", "control", "other"):
        print(f"{row:>10} " + " ".join(f"{total.matrix[row, column]:8}" for column in columns))
    if "accept" in columns and accepted:
        agreed = total.matrix["accept", "accept"]
        print(f"of what the kernel accepts we accept {100 * agreed / accepted:.2f} %")
    for title, examples in (("UNSAFE", total.unsafe), ("sharper", total.sharper),
                            ("too strict", total.strict),
                            ("broken", total.broken),
                            ("accepted, and trapped when run", total.trapped)):
        print(f"{title}: {len(examples)}")
        for seed, text in examples[:shown]:
            print(f"  seed {seed}: {text}")
    print("why the kernel refuses:")
    for words, count in total.words.most_common(25):
        print(f"{count:6} {class_of(words.replace('N', '1')):8} {words}")


def corpus(jobs: int, timeout_s: int) -> int:
    """Our verifier over the cases.  Alarms, not threads: a case may take for ever."""
    wrong, kinds, slow = 0, 0, []
    cases = all_cases()
    with ProcessPoolExecutor(jobs) as pool:
        answers = pool.map(answer_case, cases, [timeout_s] * len(cases), chunksize=10)
        for case, (verdict, kind, text, took_s) in zip(cases, answers, strict=True):
            slow.append((took_s, case.id))
            kinds += verdict == case.our_verdict == "refuse" and kind == case.kind
            if verdict != case.our_verdict:
                wrong += 1
                print(f"{case.id}: should {case.our_verdict}, we {verdict} {text}"
                      + (f"; the kernel: {case.kernel}" if case.kernel else ""))
    refused = sum(case.our_verdict == "refuse" for case in cases)
    slowest = ", ".join(f"{case} {took_s:.1f} s" for took_s, case in sorted(slow)[:-4:-1])
    print(f"{len(cases)} cases, {wrong} disagree; "
          f"of {refused} refusals {kinds} with the same kind; slowest {slowest}")
    return 1 if wrong else 0


def answer_case(case: Case, timeout_s: int) -> tuple[str, str, str, float]:
    """(verdict, kind, text, seconds)"""
    from xdp_runtime.verifier import verify

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done in {timeout_s} s")

    began = time.perf_counter()
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(timeout_s)
    try:
        report = verify(case.object, case.object.programs[0])
        text = "; ".join(f"{e.insn}: {e.kind}: {e.text}" for e in report.errors)
        kind = report.errors[0].kind if report.errors else ""
        return "accept" if report.ok else "refuse", kind, text, time.perf_counter() - began
    except Exception as error:
        return "broken", "", f"{type(error).__name__}: {error}", time.perf_counter() - began
    finally:
        signal.alarm(0)


def show(seed: int, kernel_only: bool) -> None:
    obj = random_program(seed)
    print(format_program(obj.programs[0], obj))
    answer = ask_kernel(obj, 1)
    print(answer.log)
    print(f"kernel: {answer.verdict} {answer.line}")
    if not kernel_only:
        ok, text = ask_ours(obj)
        print(f"ours: {'accept' if ok else 'refuse'} {text}")


if __name__ == "__main__":
    sys.exit(main())
