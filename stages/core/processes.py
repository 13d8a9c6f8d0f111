"""Processes that this one starts."""

import multiprocessing
import os


def exit_with_parent() -> None:
    """End this process when its parent ends. Run it in a daemon thread: a killed parent can't end its children."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)
