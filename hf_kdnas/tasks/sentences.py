"""Sentence embeddings: one vector a text, near those of like texts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_kdnas import metrics
from hf_kdnas.errors import InvalidInput
from hf_kdnas.resources import resolve_path
from hf_kdnas.tasks.base import Row, TaskData, chosen_metrics, source
from hf_kdnas.tasks.texts import UnlabelledTask, check_held_out, whole_texts

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_kdnas.recipe import DataSection, TeacherSection
    from hf_kdnas.tables import Splits

# Most texts whose similarities, each with each, are compared (130,816 pairs), and fewest: 3 pairs.
COMPARED, LEAST = 512, 3

POOLINGS = ("mean", "cls")

# Modules of sentence-transformers that a student can do without, or has as well.
_MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class SentenceEmbeddings(UnlabelledTask):
    """Texts, and what the teacher makes of those to choose by and to report on.

    A student is scored by how its cosine similarities of held-out texts go along with the teacher's
    (`spearman`: in the same order), so that no labels are needed, and widths may differ. Selection and
    reporting rows have the teacher's `embedding` once `with_references` was there.

    Attributes:
        pooling: How token states become one vector: their mean, or that of [CLS].
        normalised: Whether the teacher's vectors have length 1.
    """

    head = ""
    unfit_objectives = frozenset({"logits", "task", "mlm"})

    pooling: str = "mean"
    normalised: bool = False

    @classmethod
    def load(
        cls, data: DataSection, splits: Splits, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> SentenceEmbeddings:
        """A column of texts.

        Raises:
            InvalidInput: If a split is too small for a score.
        """
        train, selection, reporting = (
            whole_texts(data, table, tokenizer, max_length)
            for table in (splits.train, splits.selection, splits.reporting)
        )
        found = {"selection": len(selection), "reporting": len(reporting)}
        check_held_out(data, found, LEAST, "texts")
        return cls(
            kind="sentence-similarity",
            label_names=(),
            metrics=chosen_metrics(data.metric, metrics.REGRESSION_METRICS[::-1], metrics.REGRESSION_METRICS),
            dataset=source(data),
            columns=tuple(data.text),
            max_length=max_length,
            pad_token_id=tokenizer.pad_token_id or 0,
            train=train,
            selection=selection,
            reporting=reporting,
        )

    def of_teacher(self, section: TeacherSection) -> TaskData:
        """With the teacher's own pooling, where its folder says which, and the recipe doesn't.

        Raises:
            InvalidInput: If it is one that students can't have.
        """
        pooling, normalised = _read_modules(section)
        return dataclasses.replace(self, pooling=pooling, normalised=normalised)

    def with_references(self, read: Callable[[Sequence[Row]], Sequence[NDArray[Any]]]) -> TaskData:
        """With the teacher's embeddings beside the rows."""

        def embedded(rows: list[Row]) -> list[Row]:
            return [{**row, "embedding": each} for row, each in zip(rows, read(rows), strict=True)]

        return dataclasses.replace(
            self, selection=embedded(self.selection), reporting=embedded(self.reporting)
        )

    def reduced(self, output: NDArray[Any], row: Row) -> NDArray[Any]:
        """The row's embedding, (hidden,), from the states of its tokens, (length, hidden)."""
        return np.asarray(output.mean(0) if self.pooling == "mean" else output[0])

    def score(self, outputs: Sequence[NDArray[Any]], rows: Sequence[Row]) -> dict[str, float]:
        """All metrics of a model's embeddings."""
        chosen = range(0, len(rows), -(-len(rows) // COMPARED))
        ours = similarities([outputs[index] for index in chosen])
        theirs = similarities([rows[index]["embedding"] for index in chosen])
        return {name: metrics.compute(name, ours.tolist(), theirs.tolist()) for name in self.metrics}

    def extra_files(self, config: PretrainedConfig) -> dict[str, Any]:
        """What `SentenceTransformer(folder)` reads besides the model and its tokenizer."""
        parts = [("", "Transformer"), ("1_Pooling", "Pooling")]
        parts += [("2_Normalize", "Normalize")] if self.normalised else []
        return {
            "modules.json": [
                {
                    "idx": index,
                    "name": str(index),
                    "path": path,
                    "type": f"sentence_transformers.models.{kind}",
                }
                for index, (path, kind) in enumerate(parts)
            ],
            "1_Pooling/config.json": {
                "word_embedding_dimension": config.hidden_size,
                "pooling_mode_cls_token": self.pooling == "cls",
                "pooling_mode_mean_tokens": self.pooling == "mean",
            },
            "sentence_bert_config.json": {"max_seq_length": self.max_length, "do_lower_case": False},
            "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
        }


def similarities(embeddings: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Cosine similarity of each pair of embeddings, (pairs,)."""
    rows = np.stack(embeddings).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    first, second = np.triu_indices(len(rows), 1)
    return np.asarray((rows @ rows.T)[first, second])


def _read_modules(section: TeacherSection) -> tuple[str, bool]:
    """The pooling asked for, else the folder's own, else the mean; and whether the folder normalises."""
    modules = _read(section, "modules.json") or []
    kinds = {each["type"].rpartition(".")[2]: each["path"] for each in modules}
    others = kinds.keys() - set(_MODULES)
    if others:
        raise InvalidInput(
            "teacher.model",
            f"{section.model} with {', '.join(sorted(others))}",
            f"of sentence-transformers' modules a student can have {', '.join(_MODULES)}",
            "Choose another teacher.",
        )
    if section.pooling != "auto":
        return section.pooling, "Normalize" in kinds
    config = _read(section, f"{kinds['Pooling']}/config.json") if "Pooling" in kinds else None
    return _pooling(config or {}), "Normalize" in kinds


def _pooling(config: dict[str, Any]) -> str:
    """`mean` or `cls`, by either of the two ways in which configs say it."""
    modes = [name for name, value in config.items() if name.startswith("pooling_mode_") and value]
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    found = (
        [config["pooling_mode"]] if "pooling_mode" in config else [names.get(mode, mode) for mode in modes]
    )
    if len(found) > 1 or not set(found) <= set(POOLINGS):
        raise InvalidInput(
            "teacher.pooling",
            ", ".join(map(str, found)),
            f"a student can have {' or '.join(POOLINGS)}",
            "Choose another teacher, or set one of these.",
        )
    return str(found[0]) if found else "mean"


def _read(section: TeacherSection, file: str) -> Any:
    """A JSON file beside the teacher, or None where there is none."""
    from transformers.utils.hub import cached_file

    path = cached_file(
        resolve_path(section.model),
        file,
        revision=section.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
