"""HomoDistil: a student that starts as its teacher, and is narrowed while it is distilled.

The names below are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_kdnas.homotopic.compaction import Compaction
    from hf_kdnas.homotopic.importance import RunningImportance
    from hf_kdnas.homotopic.run import HomotopicDistillation
    from hf_kdnas.homotopic.schedule import plan_segments

# Where each public name is defined.
_HOMES = {
    "Compaction": "compaction",
    "HomotopicDistillation": "run",
    "RunningImportance": "importance",
    "plan_segments": "schedule",
}

__all__ = ["Compaction", "HomotopicDistillation", "RunningImportance", "plan_segments"]


def __getattr__(name: str) -> Any:
    """Import a public name.

    Raises:
        AttributeError: If there is no such name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_kdnas.homotopic' has no attribute {name!r}")
    return getattr(import_module(f"hf_kdnas.homotopic.{_HOMES[name]}"), name)
