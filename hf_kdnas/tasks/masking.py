"""Hiding tokens, for a masked-LM head to find them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_kdnas.labels import IGNORED

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Masking:
    """BERT's way to hide tokens (arXiv 1810.04805, section 3.1), drawn anew for every batch.

    Of the tokens that are drawn 80 % become the mask token, 10 % any token, and 10 % stay as they are.

    Attributes:
        mask_token_id: The tokenizer's mask token.
        vocab_size: Number of the tokenizer's tokens.
        special_ids: Tokens that are never hidden.
        probability: Part of the other tokens that is.
    """

    mask_token_id: int
    vocab_size: int
    special_ids: tuple[int, ...]
    probability: float

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Hide tokens of a batch.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length); nothing is drawn from padding.
            generator: What to draw with; None takes torch's own, which a checkpoint keeps.

        Returns:
            The new input ids, and the labels: the hidden tokens, -100 everywhere else.
        """
        may_hide = attention_mask.bool() & ~torch.isin(input_ids, torch.tensor(self.special_ids))
        hidden = (torch.rand(input_ids.shape, generator=generator) < self.probability) & may_hide
        labels = input_ids.masked_fill(~hidden, IGNORED)
        share = torch.rand(input_ids.shape, generator=generator)
        others = torch.randint(self.vocab_size, input_ids.shape, generator=generator)
        masked = input_ids.masked_fill(hidden & (share < 0.8), self.mask_token_id)
        return torch.where(hidden & (share >= 0.9), others, masked), labels
