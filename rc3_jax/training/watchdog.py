"""Ends a process that makes no progress: a stuck collective would wait for ever, and be paid for."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from typing import Self

EXIT_CODE = 75
"""`EX_TEMPFAIL` of sysexits.h: what failed may well work when it is tried again."""


class Watchdog:
    """Ends the process with a message when `beat` is not called for some minutes.

    Args:
      minutes: the patience; 0 waits for ever.
    """

    def __init__(self, minutes: float):
        self._patience = 60 * minutes
        self._ended = threading.Event()
        self._last = (time.monotonic(), "starting")
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if self._patience:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()

    def beat(self, doing: str) -> None:
        """Tells that there is progress, and what comes next, such as `step 7`."""
        self._last = (time.monotonic(), doing)

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._patience / 4)):
            since, doing = self._last
            if time.monotonic() - since > self._patience:
                try:
                    sys.stderr.write(
                        f"error: no progress for {self._patience / 60:g} minutes at {doing!r}. "
                        "Another process may have died, or a device or the data hangs; the "
                        "stacks follow. Start all processes again with --resume, or raise "
                        "watchdog_minutes if this takes so long\n"
                    )
                    faulthandler.dump_traceback(all_threads=True)
                    sys.stderr.flush()
                finally:
                    os._exit(EXIT_CODE)  # an ordinary exit would wait for the threads that hang
