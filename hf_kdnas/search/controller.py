"""KD-NAS' controller: an LSTM that predicts the reward of a candidate (arXiv 2303.09639).

It is a regressor, not a policy: nothing is sampled from it and there is no policy gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# Index of "no architecture" in every dimension: the first episode has no best one before it.
NOTHING = 0

# The sources don't say how large the embeddings and the LSTM are, nor how often an episode is gone
# through: at this learning rate fewer passes leave the predictions where they began.
WIDTH = 32
LEARNING_RATE = 1e-4
PASSES = 200

# Candidates scored at once, which bounds memory over a large space.
CHUNK = 8192

States = NDArray[np.int64]


@contextmanager
def _one_thread() -> Iterator[None]:
    """With one thread: faster at this size, and sums don't depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class RewardController(nn.Module):
    """Predicts the reward of a candidate from a sequence of three states.

    The states are the previous episode's best architecture, the best so far, and the candidate; each
    is one learned embedding per searched dimension, concatenated. The LSTM's last hidden state goes
    through a linear layer to a scalar. Rewards are told and predicted in their own units; inside they
    are relative to mean and spread of the first episode's, as they lie close together.

    Equal seeds and equal episodes in the same order give equal weights, in any process.

    Args:
        sizes: Number of values of each searched dimension.
        seed: Decides the first weights.
        passes: How often an episode is gone through.
    """

    def __init__(self, sizes: Sequence[int], seed: int, *, passes: int = PASSES) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embeddings = nn.ModuleList(nn.Embedding(size + 1, WIDTH) for size in sizes)
            self.lstm = nn.LSTM(WIDTH * len(sizes), WIDTH, batch_first=True)
            self.head = nn.Linear(WIDTH, 1)
        self._passes = passes
        self._optimiser = torch.optim.RMSprop(self.parameters(), lr=LEARNING_RATE)
        self._centre: float | None = None
        self._spread = 1.0

    def forward(self, states: Tensor) -> Tensor:
        """Standardised rewards, (batch,), of integer states (batch, 3, dimensions)."""
        columns = [embed(states[..., index]) for index, embed in enumerate(self.embeddings)]
        _, (hidden, _) = self.lstm(torch.cat(columns, dim=-1))
        rewards: Tensor = self.head(hidden[-1]).squeeze(-1)
        return rewards

    def fit_episode(self, states: States, rewards: Sequence[float]) -> None:
        """Learn from one finished episode: mean squared error, RMSprop.

        Args:
            states: (batch, 3, dimensions), each value 1 + its position in the dimension, or NOTHING.
            rewards: What was measured, (batch,).
        """
        if self._centre is None:
            self._centre = float(np.mean(rewards))
            self._spread = float(np.std(rewards)) or 1.0
        inputs = torch.from_numpy(states)
        targets = (torch.tensor(rewards, dtype=torch.float64) - self._centre) / self._spread
        with _one_thread(), torch.enable_grad():
            for _ in range(self._passes):
                self._optimiser.zero_grad()
                loss = nn.functional.mse_loss(self(inputs), targets.float())
                torch.autograd.backward(loss)
                self._optimiser.step()

    def predict(self, states: States) -> NDArray[np.float64]:
        """Predicted rewards, (batch,), of states (batch, 3, dimensions)."""
        with _one_thread(), torch.no_grad():
            parts = [self(chunk) for chunk in torch.split(torch.from_numpy(states), CHUNK)]
        standardised = torch.cat(parts).double().numpy()
        return np.asarray(standardised * self._spread + (self._centre or 0.0), dtype=np.float64)
