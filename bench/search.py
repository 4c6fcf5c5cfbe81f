"""The rate at which nothing is lost, searched as RFC 2544 (26.1) has it: by halving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_AGAIN = 3  # a rate fails if so many trials of it lose something
_RESOLUTION = 0.04  # of the rate that is found
_DEPTH = 4096  # below this part of the most, nothing is what it can


@dataclass(frozen=True, slots=True)
class Trial:
    """One rate for a moment; `lost` of `sent`.  `is_kept`: the source could keep the rate."""

    rate: float  # packets a second, asked for
    sent: int
    lost: int
    is_kept: bool = True

    def record(self) -> list[float]:
        return [round(self.rate), self.sent, self.lost, int(self.is_kept)]


@dataclass(frozen=True, slots=True)
class Found:
    """`rate` in packets a second, 0 where every rate lost something; `is_source`: the source's own
    limit ended the search, so the path can do more."""

    rate: float
    is_source: bool
    trials: tuple[Trial, ...]


def zero_loss(measure: Callable[[float], Trial], most: float, tolerance: float = 0.0) -> Found:
    """The highest rate up to `most` of which at most `tolerance` (a share) is lost.

    A machine that is shared loses a moment now and then, so a rate has failed when three trials of
    it have lost something, or the source could not keep it three times.
    """
    trials: list[Trial] = []
    is_source = False

    def passes(rate: float) -> bool:
        nonlocal is_source
        for _ in range(_AGAIN):
            trial = measure(rate)
            trials.append(trial)
            if trial.is_kept and trial.lost <= tolerance * trial.sent:
                is_source = False
                return True
        is_source = not trials[-1].is_kept
        return False

    low, high = 0.0, most
    if passes(high):
        return Found(high, True, tuple(trials))
    ended_by_source = is_source
    while high - low > _RESOLUTION * high and high > most / _DEPTH:
        middle = (low + high) / 2
        if passes(middle):
            low = middle
        else:
            high, ended_by_source = middle, is_source
    return Found(low, ended_by_source, tuple(trials))
