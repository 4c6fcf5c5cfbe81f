"""Signals: noted, and raised where that is safe, whatever became of them on the way."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from control.signals import Interrupted, Signals


def test_interruptible_raises_at_once() -> None:
    with Signals() as signals:
        with pytest.raises(Interrupted) as caught, signals.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.number == signals.caught == signal.SIGTERM


def test_outside_it_is_noted() -> None:
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.caught == signal.SIGINT
        with pytest.raises(Interrupted):
            signals.check()


def test_one_that_became_another_error_on_the_way_is_a_signal() -> None:
    """What Python makes of an exception inside __set_name__, during an import for example."""
    class Field:
        def __set_name__(self, owner: type, name: str) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with Signals() as signals, pytest.raises(Interrupted), signals.interruptible():
        type("Live", (), {"ports": Field()})


def test_one_that_python_swallows_is_a_signal_and_nothing_is_told(
        capfd: pytest.CaptureFixture[str]) -> None:
    class Gone:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    hook = sys.unraisablehook
    with Signals() as signals, pytest.raises(Interrupted), signals.interruptible():
        Gone()
    assert capfd.readouterr().err == ""
    assert sys.unraisablehook is hook


def test_errors_without_a_signal_stay_what_they_are() -> None:
    with Signals() as signals, pytest.raises(KeyError), signals.interruptible():
        raise KeyError("x")
