"""Objectives: one loss a file, each a small module over captured signals."""

from __future__ import annotations

from hf_kdnas.distill.objectives.attention import Attention
from hf_kdnas.distill.objectives.base import Batch, Head, Objective, SharedSignals, Signals
from hf_kdnas.distill.objectives.direct_relations import DirectRelations
from hf_kdnas.distill.objectives.embeddings import Embeddings
from hf_kdnas.distill.objectives.hidden import HiddenStates
from hf_kdnas.distill.objectives.logits import Logits
from hf_kdnas.distill.objectives.mlm import MaskedLM
from hf_kdnas.distill.objectives.relations import Relations
from hf_kdnas.distill.objectives.sentence import Sentence
from hf_kdnas.distill.objectives.task import Task
from hf_kdnas.errors import InvalidInput
from hf_kdnas.resources import import_own

__all__ = [
    "OBJECTIVES",
    "Attention",
    "Batch",
    "DirectRelations",
    "Embeddings",
    "Head",
    "HiddenStates",
    "Logits",
    "MaskedLM",
    "Objective",
    "Relations",
    "Sentence",
    "SharedSignals",
    "Signals",
    "Task",
    "objective_class",
]

OBJECTIVES: dict[str, type[Objective]] = {
    "logits": Logits,
    "hidden": HiddenStates,
    "embeddings": Embeddings,
    "attention": Attention,
    "relations": Relations,
    "direct_relations": DirectRelations,
    "sentence": Sentence,
    "mlm": MaskedLM,
    "task": Task,
}


def objective_class(name: str) -> type[Objective]:
    """An objective by its name, or a user's own by import path ("package.module:Class").

    Raises:
        InvalidInput: If there is none of that name, or what the path names is not an Objective.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    if ":" not in name:
        raise InvalidInput(
            "objectives",
            name,
            f"objectives are {', '.join(OBJECTIVES)}",
            'Choose one of these, or name your own by import path, "package.module:Class".',
        )
    try:
        found = import_own(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInput(
            "objectives", name, f"can't be imported ({error})", "Install the package or mend the path."
        ) from error
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise InvalidInput(
            "objectives",
            name,
            "must be a subclass of hf_kdnas.distill.objectives.Objective",
            "Derive the class from it.",
        )
    return found
