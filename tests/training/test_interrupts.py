from __future__ import annotations

import os
import signal
import threading

import pytest

from relocal_pyg.training.interrupts import Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_block(number):
    def handler(*details: object) -> None:
        raise KeyboardInterrupt

    done: list[str] = []

    def block() -> None:
        with Interrupts() as interrupts:
            with interrupts.held():
                os.kill(os.getpid(), number)
                done.append("whole")
            done.append("never")

    def loop() -> None:
        with Interrupts():
            os.kill(os.getpid(), number)
            done.append("never")

    before = {each: signal.signal(each, handler) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        for stopped in (block, loop):
            with pytest.raises(KeyboardInterrupt):
                stopped()
            assert done == ["whole"]
            assert signal.getsignal(number) is handler
    finally:
        for each, old in before.items():
            signal.signal(each, old)


def test_an_error_inside_the_block_wins_over_a_signal():
    def block() -> None:
        with Interrupts() as interrupts, interrupts.held():
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(ValueError):
            block()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_are_left_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with Interrupts() as interrupts, interrupts.held():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
