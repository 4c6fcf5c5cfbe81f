"""The corpus: the kernel says what is written there, and our verifier the same."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.privileges import bpf_refusal
from tests.xdp_runtime.verifier.cases import KINDS, Case, all_cases

CASES = all_cases()
MIN_CASES = 450


def test_corpus_is_complete() -> None:
    assert len(CASES) >= MIN_CASES
    drafts = [case.id for case in CASES if case.verdict == "?" or (
        case.verdict == "refuse" and (case.kind not in KINDS or not case.kernel))]
    assert not drafts, "fill them in: python -m tests.xdp_runtime.verifier.confirm --write"


def test_each_topic_and_kind_is_there() -> None:
    topics: dict[str, Counter[str]] = {}
    for case in CASES:
        topics.setdefault(case.path.stem, Counter())[case.verdict] += 1
    one_sided = [topic for topic, verdicts in topics.items() if len(verdicts) < 2]
    assert not one_sided, "each topic is both accepted and refused"
    assert {case.kind for case in CASES if case.verdict == "refuse"} == set(KINDS)


def test_no_two_cases_are_the_same() -> None:
    seen: dict[tuple[str, ...], str] = {}
    for case in CASES:
        key = case.text, case.maps, case.prog, case.types, case.functions, case.license
        assert key not in seen, f"{case.id} is {seen[key]}"
        seen[key] = case.id


@pytest.mark.root
@pytest.mark.skipif(bool(bpf_refusal()), reason=f"the kernel loads no program: {bpf_refusal()}")
def test_the_kernel_agrees() -> None:
    from tests.xdp_runtime.verifier.kernel_load import ask

    wrong = []
    for case in CASES:
        answer = ask(case)
        if answer.verdict != case.verdict:
            wrong.append(f"{case.id}: the kernel: {answer.verdict} {answer.line}")
    assert not wrong, "\n".join(wrong)


def _has_verifier() -> bool:
    import xdp_runtime.verifier

    return hasattr(xdp_runtime.verifier, "verify")


@pytest.mark.skipif(not _has_verifier(), reason="xdp_runtime.verifier.verify is not written yet")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_ours_agrees(case: Case) -> None:
    from xdp_runtime.verifier import verify

    report = verify(case.object, case.object.programs[0])
    said = "; ".join(f"{error.insn}: {error.kind}: {error.text}" for error in report.errors)
    assert ("accept" if report.ok else "refuse") == case.our_verdict, (
        f"{said or 'accepted'}; the kernel: {case.verdict} {case.kernel}")
