"""What tells a teacher's signals from others: the teacher, the texts, and how they were computed."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from hf_kdnas.content import settings_hash, weights_hash

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

# Written into the keys: raised when the layout changes, so that old folders are built again.
LAYOUT = 4


def signals_key(
    teacher: str,
    input_ids: Sequence[Sequence[int]],
    names: Iterable[str],
    precision: str,
    *,
    token_type_ids: Sequence[Sequence[int]] | None = None,
    compute: str = "fp32",
) -> str:
    """Content hash of all that signals follow from.

    Args:
        teacher: `teacher_hash` of the teacher.
        input_ids: Token ids of each text.
        names: The signals.
        precision: How they are kept.
        token_type_ids: Segment ids of each text, for pairs.
        compute: How the teacher runs.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps([LAYOUT, teacher, sorted(set(names)), precision, compute]).encode())
    for sequences in (input_ids, token_type_ids):
        if sequences is not None:
            digest.update(np.fromiter(map(len, sequences), dtype=np.int32).tobytes())
            digest.update(np.fromiter(chain.from_iterable(sequences), dtype=np.int32).tobytes())
    return digest.hexdigest()


def teacher_hash(teacher: PreTrainedModel) -> str:
    """Content hash of a teacher's weights and config, whatever files it came from."""
    config = teacher.config.to_dict()
    for name in ("_name_or_path", "transformers_version"):
        config.pop(name, None)
    return settings_hash(weights_hash(teacher), json.dumps(config, sort_keys=True, default=str))


def text_digests(input_ids: Sequence[Sequence[int]]) -> NDArray[np.uint32]:
    """CRC-32 of each text's token ids, (texts,): cheap enough to compare in every batch."""
    digests = (zlib.crc32(np.asarray(ids, dtype=np.int32).tobytes()) for ids in input_ids)
    return np.fromiter(digests, dtype=np.uint32, count=len(input_ids))
