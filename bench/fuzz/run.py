"""Jobs that go through seeds, each with a state file of its own; a job that dies is a defect, too.

Job J of N takes the seeds of the range that are J modulo N, in order.  Its state is written after
each program, so a run goes on where it was ended, and a seed that kills the process is skipped.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path

_PROGRAMS_A_PROCESS = 1500  # compiled code is not always given back


@dataclass
class State:
    next_seed: int
    counts: dict[str, int] = field(default_factory=dict)
    found: list[tuple[int, str]] = field(default_factory=list)  # (seed, disagreement)
    refused: dict[str, int] = field(default_factory=dict)  # the kernel's words, how often
    ours_only: list[tuple[int, str]] = field(default_factory=list)  # (seed, the kernel's words)
    running: bool = False  # in next_seed

    def save(self, path: Path) -> None:
        aside = path.with_name(path.name + ".new")
        aside.write_text(json.dumps(asdict(self)))
        aside.replace(path)


@dataclass(frozen=True)
class Plan:
    first: int
    last: int  # not included
    jobs: int
    packets: int
    ends_at: float  # time.time()
    state: Path
    which: str = "insns"  # kinds of programs: one of sources.KINDS, or all

    def path(self, job: int) -> Path:
        return self.state.with_name(f"{self.state.name}.{job}")

    def read(self, job: int) -> State:
        path = self.path(job)
        if not path.exists():
            return State(self.first + (job - self.first) % self.jobs)
        state = State(**json.loads(path.read_text()))
        if state.next_seed % self.jobs != job:
            raise SystemExit(f"{path}: written by a run of another number of jobs")
        return state


def work(plan: Plan, job: int) -> None:
    """Seeds until the range, the time or this process's share of programs ends."""
    from bench.fuzz.csource.build import Uncompilable
    from bench.fuzz.judge import judge
    from bench.fuzz.sources import kind_of

    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[-1 - job % len(cpus)]})  # what per-CPU maps show depends on it
    path, state = plan.path(job), plan.read(job)
    for _ in range(_PROGRAMS_A_PROCESS):
        if state.next_seed >= plan.last or time.time() >= plan.ends_at:
            break
        seed = state.next_seed
        state.running = True
        state.save(path)
        try:
            outcome = judge(seed, plan.packets, kind_of(plan.which, seed))
            state.counts = dict(Counter(state.counts) + outcome.counts)
            state.found += [(seed, str(one)) for one in outcome.found]
            if outcome.refused:
                words = "".join(c for c in outcome.refused if not c.isdigit())[-80:]
                state.refused[words] = state.refused.get(words, 0) + 1
                if outcome.ours_only:
                    state.ours_only.append((seed, outcome.refused[-120:]))
        except Uncompilable as error:
            state.refused[str(error)] = state.refused.get(str(error), 0) + 1
        except Exception as error:  # whatever an engine raises is a finding, not our end
            state.found.append((seed, f"{type(error).__name__}: {error}"))
        state.next_seed, state.running = seed + plan.jobs, False
        state.save(path)


def run(plan: Plan) -> State:
    """All jobs to their end, a line of progress every half minute -> the sum of their states."""
    context = get_context("spawn")
    processes: dict[int, SpawnProcess] = {}
    said = time.time()
    remaining = set(range(plan.jobs))
    while remaining:
        for job in list(remaining):
            process = processes.get(job)
            if process is not None and process.is_alive():
                continue
            state = plan.read(job)
            if state.running:
                if process is not None:
                    state.found.append(
                        (state.next_seed, f"the process died (exit code {process.exitcode})"))
                    state.next_seed += plan.jobs
                state.running = False
                state.save(plan.path(job))
            if state.next_seed >= plan.last or time.time() >= plan.ends_at:
                remaining.discard(job)
                continue
            processes[job] = context.Process(target=work, args=(plan, job))
            processes[job].start()
        time.sleep(0.2)
        if time.time() - said > 30:
            said = time.time()
            print(time.strftime("%H:%M:%S"), summary(total(plan)), flush=True)
    return total(plan)


def total(plan: Plan) -> State:
    out = State(plan.last)
    counts: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for job in range(plan.jobs):
        state = plan.read(job)
        counts += Counter(state.counts)
        refused += Counter(state.refused)
        out.found += [(seed, what) for seed, what in state.found]
        out.ours_only += [(seed, words) for seed, words in state.ours_only]
    out.counts, out.refused = dict(counts), dict(refused)
    return out


def summary(state: State) -> str:
    counts = Counter(state.counts)
    share = 100 * counts["accepted"] / max(1, counts["programs"])
    return (f"fuzz: {counts['pairs']:,} program-packet pairs, {counts['programs']:,} programs "
            f"({share:.1f} % accepted by the kernel), {counts['interpreted']:,} pairs interpreted, "
            f"{counts['ours_only']:,} accepted by us alone, "
            f"{counts['operations']:,} map operations, {counts['maps']:,} maps compared, "
            f"{counts['laborious']} too laborious, {counts['unsteady']} unsteady, "
            f"{len({seed for seed, _ in state.found})} seeds disagree")
