"""Hiding tokens, for a masked-LM head to find them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_kdnas.labels import IGNORED

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Masking:
    """BERT's way to hide tokens (arXiv 1810.04805, section 3.1).

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
        """Hide tokens of a batch, others each time.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length); nothing is drawn from padding.
            generator: What to draw with; None takes torch's own.

        Returns:
            The new input ids, and the labels: the hidden tokens, -100 everywhere else.
        """
        drawn, share = (torch.rand(input_ids.shape, generator=generator) for _ in range(2))
        others = torch.randint(self.vocab_size, input_ids.shape, generator=generator)
        return self._hidden(input_ids, attention_mask, drawn, share, others)

    def in_epoch(self, epoch: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hide tokens of a batch, in each row others from epoch to epoch.

        They follow from the row and the epoch alone: a run that goes on in the middle of an epoch, or on
        another number of ranks, hides the same.

        Args:
            epoch: (2,): seed of the training, and its epoch.
            input_ids: (batch, length).
            attention_mask: (batch, length).

        Returns:
            As calling it does.
        """
        draws = np.zeros((3, *input_ids.shape))
        training, ids = (each.numpy().astype(np.uint32) for each in (epoch, input_ids))
        for place, kept in enumerate(attention_mask.bool().numpy()):
            row = ids[place, kept]
            random = np.random.default_rng(np.concatenate((training, row)))
            draws[:, place, kept] = random.random((3, len(row)))
        drawn, share, others = torch.from_numpy(draws)
        return self._hidden(input_ids, attention_mask, drawn, share, (others * self.vocab_size).long())

    def _hidden(
        self, input_ids: Tensor, attention_mask: Tensor, drawn: Tensor, share: Tensor, others: Tensor
    ) -> tuple[Tensor, Tensor]:
        may_hide = attention_mask.bool() & ~torch.isin(input_ids, torch.tensor(self.special_ids))
        hidden = (drawn < self.probability) & may_hide
        labels = input_ids.masked_fill(~hidden, IGNORED)
        masked = input_ids.masked_fill(hidden & (share < 0.8), self.mask_token_id)
        return torch.where(hidden & (share >= 0.9), others, masked), labels
