"""The processes of a launch: one, or as many as `accelerate launch` or torchrun started."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

from hf_kdnas.errors import USER_ERROR, InvalidInput
from hf_kdnas.memory import keep_freed_memory

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")

# Ranks of a search meet only when an episode is asked and told; others wait while the first one builds
# signals, exports or measures. None of that takes longer.
TIMEOUT = timedelta(hours=24)


def join_processes() -> PartialState:
    """Join the other processes of this launch, if there are any, and make this one ready for the work.

    Raises:
        InvalidInput: If the launcher started several processes that don't know of each other, as
            without a GPU it does unless told otherwise.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    state = PartialState(cpu=cpu, timeout=TIMEOUT) if _launched() > 1 else PartialState(cpu=cpu)
    if _launched() != state.num_processes:
        raise InvalidInput(
            "WORLD_SIZE",
            _launched(),
            f"Accelerate sees {state.num_processes} process here, so each would do the whole run",
            "On CPUs start it with: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu "
            "--num_processes N -m hf_kdnas ...",
        )
    if state.device.type == "cpu":
        keep_freed_memory()
    return state


def leave_processes() -> None:
    """Leave the other processes of this launch, if there are any, when the work is done.

    Gloo's threads let go of what they sent under Python's lock. One that still does so while Python
    shuts down aborts its process (SIGABRT), and so the launch fails after all. This waits for them, where
    nothing holds the group any more: a model that is wrapped for it does.
    """
    if _launched() > 1:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()
            # Trainers and their callbacks hold each other, and with them the group.
            gc.collect()


def talks() -> bool:
    """Whether this process is the one of its launch that prints; known before the others are joined."""
    return os.environ.get("RANK", "0") == "0"


def from_first(value: T, processes: PartialState) -> T:
    """What the first rank has, on every rank."""
    from accelerate.utils import broadcast_object_list

    if processes.num_processes == 1:
        return value
    shared: list[T] = broadcast_object_list([value])
    return shared[0]


def on_first(work: Callable[[], T], processes: PartialState) -> T:
    """What the first rank finds when it does some work alone, on every rank.

    Where it is refused something, it says so, and the others leave without a word, rather than wait for it.

    Raises:
        InvalidInput: On the first rank, what `work` raises.
        SystemExit: Then on the others.
    """
    if processes.num_processes == 1:
        return work()
    found: T | None = None
    refused: InvalidInput | None = None
    if processes.is_main_process:
        try:
            found = work()
        except InvalidInput as error:
            refused = error
    if from_first(refused is not None, processes):
        raise refused or SystemExit(USER_ERROR)
    return cast("T", from_first(found, processes))


def _launched() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
