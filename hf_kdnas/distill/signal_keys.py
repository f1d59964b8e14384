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
LAYOUT = 5


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


def text_digests(
    input_ids: Sequence[Sequence[int]], token_type_ids: Sequence[Sequence[int]] | None = None
) -> NDArray[np.uint32]:
    """CRC-32 of each text's token ids, (texts,): cheap enough to compare in every batch.

    Args:
        input_ids: Token ids of each text.
        token_type_ids: Segment ids of each text, for a teacher that reads them; a text that is all of
            segment 0 has the digest of one without any.
    """
    digests = [zlib.crc32(np.asarray(ids, dtype=np.int32).tobytes()) for ids in input_ids]
    if token_type_ids is not None:
        segments = (np.asarray(types, dtype=np.int32) for types in token_type_ids)
        digests = [
            zlib.crc32(types.tobytes(), digest) if types.any() else digest
            for types, digest in zip(segments, digests, strict=True)
        ]
    return np.array(digests, dtype=np.uint32)
