"""The output of the embeddings."""

from __future__ import annotations

from torch import Tensor

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.objectives.hidden import HiddenStates


class Embeddings(HiddenStates):
    """Mean squared error between the outputs of the embeddings, through a learned or a fixed map.

    As `HiddenStates`, for the states before the first layer (TinyBERT, arXiv 1909.10351, equation 9;
    HomoDistil, arXiv 2302.09632). Units: tokens.

    Args:
        student: Shape of the student.
        teacher: Shape of the teacher.
        projection: The fixed map P, (H_T, H_S), or None to learn one.
        learned: Learn one also where there is a projection; it begins as it.

    Raises:
        InvalidInput: If the projection's shape doesn't fit.
    """

    def __init__(
        self,
        student: Architecture,
        teacher: Architecture,
        *,
        projection: Tensor | None = None,
        learned: bool = False,
    ) -> None:
        super().__init__(student, teacher, layers=[[0, 0]], projection=projection, learned=learned)
