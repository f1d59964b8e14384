"""Memory that a process keeps."""

import os
import platform
import subprocess
import sys

import pytest

PAGES = """
import resource
{preparation}
taken = []
for _ in range(20):
    block = b"x" * (40 << 20)  # more than glibc ever keeps of itself
    del block
    taken.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(taken[-1] - taken[0])
"""

# What every workflow begins with.
JOIN = "from hf_kdnas.processes import join_processes; join_processes()"


def pages_taken(preparation: str = "", **environment: str) -> int:
    """Pages that a process takes anew for blocks that it frees and takes again."""
    code = PAGES.format(preparation=preparation)
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_freed_memory_is_used_again() -> None:
    freed = pages_taken()
    assert pages_taken(JOIN, ACCELERATE_USE_CPU="true") < freed / 5
    assert pages_taken(JOIN, MALLOC_MMAP_THRESHOLD_="1000000") > freed / 2, "users say what malloc does"
