"""Joining the processes of a launch, and leaving them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import hf_kdnas

RANK = """
from pathlib import Path
from torch import distributed
from hf_kdnas.processes import from_first, join_processes, leave_processes

def work():
    processes = join_processes()
    print(from_first(processes.process_index, processes))
    print(gloo())
    # As a Trainer and its callbacks do.
    holder = [distributed.group.WORLD]
    holder.append(holder)

def gloo():
    names = (thread / "comm" for thread in Path("/proc/self/task").iterdir())
    return sum("gloo" in name.read_text() for name in names) > 0

work()
leave_processes()
print(gloo())
"""


REFUSED = """
import sys
from hf_kdnas.errors import InvalidInput
from hf_kdnas.processes import join_processes, leave_processes, on_first

def work(fails):
    if fails:
        raise InvalidInput("here", fails, "must be false", "Change it.")
    return "found"

processes = join_processes()
print(on_first(lambda: work(False), processes), flush=True)
try:
    on_first(lambda: work(True), processes)
except InvalidInput as error:
    sys.exit(str(error))
finally:
    leave_processes()
"""


def start(code: str) -> list[subprocess.Popen[str]]:
    """Two ranks that run some code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(hf_kdnas.__file__).parents[1]),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed on Linux alone")
def test_no_thread_of_the_group_outlives_the_work() -> None:
    """One that does aborts its process if it is still busy when Python shuts down."""
    ranks = start(RANK)
    printed = [rank.communicate(timeout=120)[0].split() for rank in ranks]
    assert printed == [["0", "True", "False"]] * 2
    assert [rank.returncode for rank in ranks] == [0, 0]


def test_what_the_first_rank_is_refused_ends_all_of_them() -> None:
    ranks = start(REFUSED)
    outputs = [rank.communicate(timeout=120) for rank in ranks]
    assert [out for out, _ in outputs] == ["found\n", "found\n"]
    assert [rank.returncode for rank in ranks] == [1, 2]
    assert "here: got True; must be false" in outputs[0][1]
    assert "Traceback" not in outputs[0][1] + outputs[1][1]
