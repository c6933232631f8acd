"""Beats and stacks: who is waited for, and where it is."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from zenspeed.health import Beat, Pulse, main_stack, place, read_beat, read_stack, waited_for

DUMP = """Thread 0x00007f01 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 331 in wait
  File "/home/x/zenspeed/display.py", line 3 in run

Current thread 0x00007f02 (most recent call first):
  File "/lib/torch/distributed/distributed_c10d.py", line 2810 in all_reduce
  File "/home/x/zenspeed/training.py", line 281 in _agree_on
  File "/home/x/zenspeed/training.py", line 210 in _loop
"""
BUSY = 'Current thread 0x1 (most recent call first):\n  File "/home/x/zenspeed/data/loader.py", line 7 in batch\n'


def test_the_line_of_ours_in_the_main_thread() -> None:
    assert str(place(main_stack(DUMP))) == "/home/x/zenspeed/training.py:281 in _agree_on"
    assert place(main_stack("")) is None


def test_who_is_waited_for() -> None:
    beats = {0: Beat(9, 5, "step"), 1: Beat(9, 5, "step"), 2: Beat(8, 4, "step")}
    waiting, busy = main_stack(DUMP), main_stack(BUSY)
    same = dict.fromkeys(range(3), Beat(9, 5, "step"))
    assert waited_for(same, {0: waiting, 1: busy, 2: waiting}, set()) == [1]
    assert waited_for(beats, {0: waiting, 1: waiting, 2: waiting}, set()) == [2], "the one behind"
    assert waited_for(beats, {0: waiting, 1: waiting, 2: waiting}, {0}) == [0], "one that is held by SIGSTOP"
    assert waited_for(same, dict.fromkeys(range(3), waiting), set()) == [], "a cut network is nobody's fault"


def test_beats_and_stacks_are_written_and_read(tmp_path: Path) -> None:
    assert read_beat(tmp_path, 3) == Beat(0, 0, "start")
    pulse = Pulse(tmp_path, 3)
    pulse.beat("step", 7)
    pulse.beat("save", 7)
    assert read_beat(tmp_path, 3) == Beat(2, 7, "save")
    other = threading.Thread(target=time.sleep, args=(0.5,))
    other.start()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert place(read_stack(tmp_path, 3)) is not None
    assert any(frame.function == "test_beats_and_stacks_are_written_and_read" for frame in read_stack(tmp_path, 3))
    other.join()
    pulse.close()
    Pulse(None, 0).beat("step", 1)
