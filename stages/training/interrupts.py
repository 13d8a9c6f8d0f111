"""Ctrl-C and SIGTERM while a model is trained: the step ends and a checkpoint is written before the process ends."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType


class Interrupt:
    """Whether the training was asked to stop."""

    signal_number: int | None = None
    """SIGINT or SIGTERM, once it was received."""


@contextmanager
def defer_interrupts(log: Callable[[str], None]) -> Iterator[Interrupt]:
    """Record the first SIGINT or SIGTERM instead of acting on it, and act on it at the end of the block.

    A second signal acts at once. A signal that the process ignores (SIGINT under nohup) stays ignored. Python runs
    signal handlers in the main thread only; in another thread nothing is deferred.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    previous_handlers = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}

    def restore_handlers() -> None:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)

    def record(number: int, frame: FrameType | None) -> None:
        restore_handlers()
        interrupt.signal_number = number
        with suppress(RuntimeError):  # stderr can't be written to while it is written to
            log("interrupted: the training stops after a checkpoint is written (a second interrupt stops it at once)")

    for number in previous_handlers:
        signal.signal(number, record)
    try:
        yield interrupt
    finally:
        restore_handlers()
    if interrupt.signal_number is not None:
        signal.raise_signal(interrupt.signal_number)
