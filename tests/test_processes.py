"""Joining the processes of a launch, and leaving them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed import TCPStore

import hf_kdnas

RANK = """
import torch
from pathlib import Path
from torch import distributed
from hf_kdnas.processes import from_first, join_processes, leave_processes

def work():
    processes = join_processes()
    print(from_first(processes.process_index, processes))
    print(gloo())
    print(distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout.days)
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


def launch(code: str) -> list[subprocess.CompletedProcess[str]]:
    """Run some code on two ranks, that meet where a launcher lets them: at a store which is there already."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(hf_kdnas.__file__).parents[1]),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [
        subprocess.CompletedProcess(rank.args, rank.returncode, *output)
        for rank, output in zip(ranks, outputs, strict=True)
    ]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed on Linux alone")
def test_ranks_wait_for_a_day_and_no_thread_of_the_group_outlives_the_work() -> None:
    """One that does aborts its process if it is still busy when Python shuts down."""
    ranks = launch(RANK)
    assert [rank.stdout.split() for rank in ranks] == [["0", "True", "1", "False"]] * 2
    assert [rank.returncode for rank in ranks] == [0, 0]


def test_what_the_first_rank_is_refused_ends_all_of_them() -> None:
    ranks = launch(REFUSED)
    assert [rank.stdout for rank in ranks] == ["found\n", "found\n"]
    assert [rank.returncode for rank in ranks] == [1, 2]
    assert "here: got True; must be false" in ranks[0].stderr
    assert "Traceback" not in ranks[0].stderr + ranks[1].stderr
