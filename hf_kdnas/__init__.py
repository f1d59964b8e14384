"""Search, distil and export small Transformers models.

The names below are imported when they are first used: `import hf_kdnas` imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_kdnas.architecture import Architecture
    from hf_kdnas.distill.arguments import DistillationArguments
    from hf_kdnas.distill.criterion import DistillationCriterion
    from hf_kdnas.distill.data import DistillationCollator
    from hf_kdnas.distill.objectives.base import Objective
    from hf_kdnas.distill.signals import TeacherSignals
    from hf_kdnas.distill.trainer import DistillationTrainer
    from hf_kdnas.errors import InvalidInput, MissingPackage
    from hf_kdnas.initialisation import Initialiser
    from hf_kdnas.latency.export import export_model, get_exporter
    from hf_kdnas.latency.measure import LatencyReport, measure
    from hf_kdnas.latency.target import LatencyTarget
    from hf_kdnas.recipe import Recipe, load_recipe
    from hf_kdnas.search.sampler import KDNASSampler
    from hf_kdnas.space import SearchSpace, partition
    from hf_kdnas.superlm.model import SuperLM

__version__ = "0.1.0"

# Where each public name is defined. The workflows behind the command line are functions of
# `hf_kdnas.workflows`: a name such as `search` here would hide the package `hf_kdnas.search`.
_HOMES = {
    "Architecture": "architecture",
    "DistillationArguments": "distill.arguments",
    "DistillationCollator": "distill.data",
    "DistillationCriterion": "distill.criterion",
    "DistillationTrainer": "distill.trainer",
    "Initialiser": "initialisation",
    "InvalidInput": "errors",
    "KDNASSampler": "search.sampler",
    "LatencyReport": "latency.measure",
    "LatencyTarget": "latency.target",
    "MissingPackage": "errors",
    "Objective": "distill.objectives.base",
    "Recipe": "recipe",
    "SearchSpace": "space",
    "SuperLM": "superlm.model",
    "TeacherSignals": "distill.signals",
    "export_model": "latency.export",
    "get_exporter": "latency.export",
    "load_recipe": "recipe",
    "measure": "latency.measure",
    "partition": "space",
}

__all__ = [
    "Architecture",
    "DistillationArguments",
    "DistillationCollator",
    "DistillationCriterion",
    "DistillationTrainer",
    "Initialiser",
    "InvalidInput",
    "KDNASSampler",
    "LatencyReport",
    "LatencyTarget",
    "MissingPackage",
    "Objective",
    "Recipe",
    "SearchSpace",
    "SuperLM",
    "TeacherSignals",
    "__version__",
    "export_model",
    "get_exporter",
    "load_recipe",
    "measure",
    "partition",
]


def __getattr__(name: str) -> Any:
    """Import a public name.

    Raises:
        AttributeError: If there is no such name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_kdnas' has no attribute {name!r}")
    value = getattr(import_module(f"hf_kdnas.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
