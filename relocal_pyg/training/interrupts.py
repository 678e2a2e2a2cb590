"""Ctrl-C and SIGTERM that wait for the end of a step, so that what is saved is a whole one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class Interrupts:
    """Puts signals off while something that must not stop half-way is under way.

    An optimiser that was interrupted between two parameters, or before the step was counted, would
    leave a checkpoint from which a resumed run ends elsewhere. Used as a context manager around
    the loop, and :meth:`held` around what must be whole. Only signals that have a Python handler
    are put off, and only in the main thread; elsewhere nothing changes.

    Example:
        >>> with Interrupts() as interrupts:
        ...     with interrupts.held():
        ...         weights, step = 2, 2
    """

    def __init__(self) -> None:
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._held = False
        self._waiting: tuple[int, FrameType | None] | None = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler):
                    self._before[number] = handler
                    signal.signal(number, self._arrived)
        return self

    def __exit__(self, *details: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Run a block to its end; a signal that arrived meanwhile is handled then."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._waiting is not None:
            (number, frame), self._waiting = self._waiting, None
            self._before[number](number, frame)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self._held:
            self._waiting = number, frame
        else:
            self._before[number](number, frame)
