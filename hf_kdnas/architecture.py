"""The searched shape of a model, under Transformers' own config names, and the papers' cost model of it."""

from __future__ import annotations

import copy
import re
from dataclasses import asdict, astuple, dataclass
from functools import total_ordering
from typing import TYPE_CHECKING, Any

from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import get_family

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_KEY = re.compile(
    r"(?P<layers>\d+)L-(?P<hidden>\d+)H-(?P<ffn>\d+)F-(?P<heads>\d+)A(?:-(?P<size>\d+)D)?-(?P<act>\w+)"
)


def is_key(text: str) -> bool:
    """Whether a text has the form of an architecture's key, such as `4L-576H-768F-12A-gelu`."""
    return _KEY.fullmatch(text) is not None


@total_ordering
@dataclass(frozen=True)
class Architecture:
    """The shape of an encoder with homogeneous layers.

    Instances are immutable, hashable and ordered (by their fields, in the order given here).

    Attributes:
        num_hidden_layers: Number of layers, L.
        hidden_size: Width of the residual stream, H.
        num_attention_heads: Heads per layer, A.
        intermediate_size: Width of the feed-forward network, F.
        hidden_act: Activation of the feed-forward network.
        head_size: Units per head; None, the only value a stock config can hold, means
            `hidden_size / num_attention_heads`. Others are held by the exact type (`hf_kdnas.exact`).

    Raises:
        InvalidInput: If a size is not positive or the heads don't divide the hidden size.
    """

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str = "gelu"
    head_size: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "num_hidden_layers",
            "hidden_size",
            "num_attention_heads",
            "intermediate_size",
            "head_size",
        ):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise InvalidInput(name, size, "must be at least 1", "Give a positive size.")
        if self.head_size is None and self.hidden_size % self.num_attention_heads:
            raise InvalidInput(
                "num_attention_heads",
                self.num_attention_heads,
                f"a stock config needs heads that divide hidden_size {self.hidden_size}",
                "Choose a divisor of the hidden size.",
            )

    def __lt__(self, other: Architecture) -> bool:
        return self._order() < other._order()

    def _order(self) -> tuple[Any, ...]:
        return (*astuple(self)[:-1], self.head_size or 0)

    @property
    def attention_size(self) -> int:
        """Width of the concatenated heads."""
        return self.num_attention_heads * self.attention_head_size

    @property
    def attention_head_size(self) -> int:
        """Units per head, also where `head_size` leaves it to the stock rule."""
        return self.head_size or self.hidden_size // self.num_attention_heads

    @property
    def key(self) -> str:
        """Short name such as `4L-576H-768F-12A-gelu`, read back by `parse`."""
        size = "" if self.head_size is None else f"-{self.head_size}D"
        return (
            f"{self.num_hidden_layers}L-{self.hidden_size}H-{self.intermediate_size}F"
            f"-{self.num_attention_heads}A{size}-{self.hidden_act}"
        )

    def __str__(self) -> str:
        return self.key

    @classmethod
    def parse(cls, key: str) -> Architecture:
        """Read a key such as `4L-576H-768F-12A-gelu`.

        Raises:
            InvalidInput: If the text is not such a key.
        """
        match = _KEY.fullmatch(key)
        if match is None:
            raise InvalidInput(
                "architecture", key, "must look like 4L-576H-768F-12A-gelu", "Write the shape in that form."
            )
        return cls(
            num_hidden_layers=int(match["layers"]),
            hidden_size=int(match["hidden"]),
            num_attention_heads=int(match["heads"]),
            intermediate_size=int(match["ffn"]),
            hidden_act=match["act"],
            head_size=int(match["size"]) if match["size"] else None,
        )

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> Architecture:
        """The shape that a model's config describes.

        Raises:
            InvalidInput: If the model type has no family.
        """
        fields = get_family(config).config_fields
        return cls(**{ours: getattr(config, theirs) for ours, theirs in fields.items()})

    def apply_to(self, config: PretrainedConfig) -> PretrainedConfig:
        """A copy of `config` with this shape; everything else (labels, vocabulary, limits) is kept.

        Raises:
            InvalidInput: If the model type has no family or its config can't hold this shape.
        """
        family = get_family(config)
        stock = (None, self.hidden_size / self.num_attention_heads)
        if "head_size" not in family.config_fields and self.head_size not in stock:
            raise InvalidInput(
                "head_size",
                self.head_size,
                f"a stock {config.model_type} config holds hidden_size / num_attention_heads only",
                "Leave head_size out, or turn a BERT teacher into the exact type (hf_kdnas.exact.as_exact).",
            )
        if not family.allows_width(config, self.hidden_size):
            raise InvalidInput(
                "hidden_size",
                self.hidden_size,
                "a stock model with embeddings of just this width has no map from them to its residual "
                "stream, as its teacher has",
                "Choose another width.",
            )
        applied = copy.deepcopy(config)
        for ours, theirs in family.config_fields.items():
            setattr(applied, theirs, getattr(self, ours))
        if family.other_width is not None:
            applied.embedding_size = self.hidden_size
        return applied

    def as_dict(self) -> dict[str, int | str]:
        """The fields by name, without a `head_size` of None."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def fits_into(self, wider: Architecture) -> bool:
        """Whether every dimension is at most that of `wider`, so that a student can be cut from it."""
        return (
            self.num_hidden_layers <= wider.num_hidden_layers
            and self.hidden_size <= wider.hidden_size
            and self.attention_size <= wider.attention_size
            and self.intermediate_size <= wider.intermediate_size
        )

    def flops(self, length: int) -> int:
        """Multiply-adds of the encoder's layers for one sequence of `length` tokens (real shapes)."""
        hidden, attention = self.hidden_size, self.attention_size
        projections = 4 * length * hidden * attention
        scores = 2 * length * length * attention
        feed_forward = 2 * length * hidden * self.intermediate_size
        return self.num_hidden_layers * (projections + scores + feed_forward)


def autodistil_parameters(architecture: Architecture, vocab_size: int = 30522) -> float:
    """Parameters by the cost model behind AutoDistil's tables (arXiv 2201.12507).

    It assumes an attention width of H * A / 12; real students are counted from their tensors
    (`slicing.parameter_counter`).
    """
    layers, hidden = architecture.num_hidden_layers, architecture.hidden_size
    ratio = architecture.intermediate_size / hidden
    attention_share = architecture.num_attention_heads / 12
    attention = hidden**2 + 3 * hidden**2 * attention_share + 6 * hidden
    feed_forward = 2 * ratio * hidden**2 + ratio * hidden + 3 * hidden
    return hidden * (vocab_size + 516) + layers * (attention + feed_forward) + hidden**2 + 2 * hidden


def autodistil_flops(architecture: Architecture, length: int = 128) -> float:
    """Multiply-adds by the cost model behind AutoDistil's tables (arXiv 2201.12507)."""
    layers, hidden = architecture.num_hidden_layers, architecture.hidden_size
    ratio = architecture.intermediate_size / hidden
    attention_share = architecture.num_attention_heads / 12
    attention = (3 * length * hidden**2 + 2 * length**2 * hidden) * attention_share + length * hidden**2
    feed_forward = 2 * length * ratio * hidden**2
    return layers * (attention + feed_forward) + length * hidden**2 + 2 * hidden
