"""A process without progress ends with the reason; one that goes on, or has ended, does not."""

import subprocess
import sys

CODE = """
import time
from rc3_jax.training.watchdog import Watchdog
with Watchdog({minutes}) as watchdog:
    for number in range({beats}):
        watchdog.beat(f"step {{number + 1}}")
        time.sleep(0.2)
    time.sleep({sleep})
print("went on")
"""


def run(**values):
    code = CODE.format(**values)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


def test_a_stuck_process_ends_with_what_it_was_doing():
    done = run(minutes=1 / 60, beats=2, sleep=90)
    assert done.returncode == 75
    assert "no progress for 0.0166667 minutes at 'step 2'" in done.stderr
    assert "with --resume, or raise watchdog_minutes if this takes so long" in done.stderr
    assert "in <module>" in done.stderr  # where it hangs
    assert "went on" not in done.stdout


def test_progress_keeps_a_process_going_and_zero_waits_for_ever():
    for minutes, beats, sleep in ((1 / 60, 12, 0), (1, 0, 2), (0, 0, 2)):
        done = run(minutes=minutes, beats=beats, sleep=sleep)
        assert done.returncode == 0 and "went on" in done.stdout, done.stderr
