"""An interrupt is never lost, whatever Python was doing."""

import gc
import os
import signal
import sys
import time
import weakref

import pytest

from autotune.system.interrupts import interruptible


class Thing:
    pass


class Finalized:
    def __del__(self):
        interrupt()


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def finalize():
    Finalized()


def call_back():
    thing = Thing()
    reference = weakref.ref(thing, lambda _: interrupt())
    del thing
    assert reference() is None


def collect():
    def callback(phase, info):
        interrupt()

    gc.callbacks.append(callback)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(callback)


@pytest.mark.parametrize("swallow", [finalize, call_back, collect, interrupt])
def test_an_interrupt_that_python_drops_is_raised_again(swallow):
    after = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible():
        swallow()
        time.sleep(10)
        pytest.fail("the interrupt was lost")
    assert signal.getsignal(signal.SIGINT) is after


@pytest.fixture
def terminal_signal():
    """SIGHUP as it is by default, however the tests were started."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_under_nohup_a_command_outlives_its_terminal(terminal_signal):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interruptible():
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_interrupt_as_well(number, terminal_signal):
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), number)
        time.sleep(10)


def test_other_errors_that_python_drops_are_still_reported(monkeypatch):
    class Broken:
        def __del__(self):
            raise ValueError("dropped")

    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: reported.append(dropped.exc_type))
    with interruptible():
        Broken()
    assert reported == [ValueError]
