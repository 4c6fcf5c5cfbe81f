"""bench.search: the rate is found, a bad moment is forgiven, a source at its end is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.search import Trial, zero_loss


def path(limit: float, source: float = 1e9) -> Callable[[float], Trial]:
    """Loses what is above its limit."""
    def trial(rate: float) -> Trial:
        sent = int(min(rate, source))
        return Trial(rate, sent, max(0, int(sent - limit)), rate <= source)
    return trial


@pytest.mark.parametrize("limit", [1000.0, 33_000.0, 480_000.0, 999_000.0])
def test_finds_the_rate(limit: float) -> None:
    found = zero_loss(path(limit), 1e6)
    assert 0.95 * limit <= found.rate <= limit + 1 and not found.is_source
    assert found.trials[0].rate == 1e6


def test_a_path_that_loses_nothing() -> None:
    found = zero_loss(path(1e7), 1e6)
    assert found.rate == 1e6 and found.is_source and len(found.trials) == 1


def test_a_path_that_always_loses() -> None:
    found = zero_loss(path(-1.0), 1e6)
    assert found.rate == 0 and not found.is_source


def test_the_source_is_the_limit() -> None:
    found = zero_loss(path(1e9, source=300_000), 1e6)
    assert 280_000 <= found.rate <= 300_000 and found.is_source


def test_two_bad_moments_are_forgiven() -> None:
    bad = iter([True, True, False, True])

    def trial(rate: float) -> Trial:
        good = path(2e6)(rate)
        return Trial(rate, good.sent, 5) if next(bad, False) else good

    assert zero_loss(trial, 1e6).rate == 1e6


def test_tolerance() -> None:
    assert zero_loss(lambda rate: Trial(rate, 1000, 1), 1e6, tolerance=0.001).rate == 1e6
