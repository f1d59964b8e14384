"""What the metric modules share: each looks at its rows before it scores them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import evaluate
import numpy as np

from hf_kdnas.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray


class OfflineMetric(evaluate.Metric, ABC):  # type: ignore[misc]
    """An `evaluate` metric that refuses rows which it would score wrongly, or not at all.

    It is abstract because `evaluate.load` takes the first class of a module that is not.
    """

    @abstractmethod
    def _check(self, predictions: Sequence[Any], references: Sequence[Any]) -> None:
        """Refuse rows, as they were given, that this metric can't score.

        Raises:
            InvalidInput: If there are such rows.
        """

    # Here, not in `_compute`: before that, evaluate has cut 0.7 to 0 where whole numbers belong.
    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Take more rows; `compute` passes through here as well.

        Raises:
            InvalidInput: If there are none, not as many of both, or such as can't be scored.
        """
        for field, rows in (("predictions", predictions), ("references", references)):
            if not hasattr(rows, "__len__") or isinstance(rows, str) or len(rows) == 0:
                raise InvalidInput(field, rows, "must be a list with an entry per row", "Give some rows.")
        if len(predictions) != len(references):
            raise InvalidInput(
                "predictions",
                f"{len(predictions)} rows",
                f"there are {len(references)} references",
                "Give one prediction per reference.",
            )
        self._check(predictions, references)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Take one more row.

        Raises:
            InvalidInput: As for `add_batch`.
        """
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)


def require_class_ids(field: str, rows: Sequence[Any]) -> None:
    """Refuse what is not one class id per row.

    Raises:
        InvalidInput: With the first row that is none.
    """
    require_numbers(
        field,
        rows,
        1,
        lambda values: np.isfinite(values) & (values == np.floor(values)) & (values >= 0),
        "each row is a class id, a whole number from 0",
        "Take the argmax of logits, and leave out rows without a label.",
    )


def require_scores(field: str, rows: Sequence[Any]) -> None:
    """Refuse what is not one finite score per row.

    Raises:
        InvalidInput: With the first row that is none.
    """
    require_numbers(
        field,
        rows,
        1,
        np.isfinite,
        "each row is a score, a finite number",
        "Flatten outputs of shape (rows, 1); where there is no number, the model has diverged.",
    )


def require_numbers(
    field: str,
    rows: Sequence[Any],
    dimensions: int,
    fits: Callable[[NDArray[Any]], NDArray[np.bool_]],
    allowed: str,
    remedy: str,
) -> None:
    """Refuse rows that are not numbers of one shape, or not such numbers.

    Args:
        field: `predictions` or `references`.
        rows: What was given there.
        dimensions: 1 for a number per row, 2 for several.
        fits: Which numbers are right.
        allowed: What would have been accepted, as a clause.
        remedy: What to do about it, as a sentence.

    Raises:
        InvalidInput: With the first row that is wrong, or the shape of all.
    """
    try:
        values = np.asarray(rows)
    except ValueError:
        raise InvalidInput(field, "rows of different lengths", allowed, remedy) from None
    if values.ndim != dimensions or values.dtype.kind not in "biuf":
        raise InvalidInput(field, f"an array of {values.dtype}, {values.shape}", allowed, remedy)
    wrong = np.argwhere(~fits(values))
    if len(wrong):
        row = int(wrong[0][0])
        raise InvalidInput(field, f"{values[row].tolist()} in row {row}", allowed, remedy)
