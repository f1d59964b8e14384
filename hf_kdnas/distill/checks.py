"""What distillation refuses before it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from accelerate.utils import DistributedType
from transformers.trainer_utils import has_length

from hf_kdnas.distill.objectives import Head
from hf_kdnas.distill.objectives.outputs import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import EACH_TEXT, EACH_TOKEN, get_family, outputs_of
from hf_kdnas.labels import IGNORED

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hf_kdnas.distill.signals import TeacherSignals


def check_teacher(
    student: PreTrainedModel,
    live: PreTrainedModel | None,
    cached: TeacherSignals | None,
    needed: frozenset[str],
) -> None:
    """Refuse a teacher that can't give the needed signals for this student."""
    if live is None and cached is None:
        if needed:
            raise InvalidInput(
                "teacher",
                None,
                f"the objectives need its {', '.join(sorted(needed))}",
                "Give a model or TeacherSignals, or the task objective alone.",
            )
        return
    missing = needed - set(cached.names) if cached is not None else None
    if missing:
        raise InvalidInput(
            "teacher",
            ", ".join(sorted(cached.names)) if cached is not None else None,
            f"the objectives need {', '.join(sorted(missing))} as well",
            "Build the signals with all names in DistillationCriterion.teacher_signals.",
        )
    if live is not None and not {*student.parameters()}.isdisjoint(live.parameters()):
        raise InvalidInput(
            "teacher",
            type(live).__name__,
            "it is frozen, and shares weights with the student",
            "Give models of their own: copy.deepcopy(teacher), or slice_student(teacher, architecture).",
        )
    source = cached if cached is not None else cast("PreTrainedModel", live).config
    if source.vocab_size != student.config.vocab_size:
        raise InvalidInput(
            "vocab_size",
            student.config.vocab_size,
            f"the teacher's vocabulary has {source.vocab_size} entries",
            "Make the student from the teacher's config and tokenizer.",
        )
    if cached is not None:
        theirs = EACH_TOKEN if cached.token_logits else EACH_TEXT
    else:
        theirs = outputs_of(type(live))
    if "logits" in needed and theirs != outputs_of(type(student)):
        raise InvalidInput(
            "model",
            type(student).__name__,
            f"the teacher's logits are those of {theirs}",
            "Give student and teacher the same head, or leave the logits objective out.",
        )
    if "logits" in needed and source.num_labels != student.config.num_labels:
        raise InvalidInput(
            "num_labels",
            student.config.num_labels,
            f"the teacher has {source.num_labels} labels",
            "Give student and teacher the same labels, or leave the logits objective out.",
        )
    ours, named = _class_names(student.config), None if live is None else _class_names(live.config)
    if "logits" in needed and ours and named and ours != named and sorted(ours) == sorted(named):
        raise InvalidInput(
            "id2label",
            ", ".join(ours),
            f"the teacher has these classes in the order {', '.join(named)}",
            "Give the student's config the teacher's id2label and label2id, and the rows its numbers.",
        )


def _class_names(config: PretrainedConfig) -> list[str] | None:
    """The names of a model's classes in their order, in lower case; None where nobody named them."""
    names = [str(name).lower() for _, name in sorted((config.id2label or {}).items())]
    return None if all(name.startswith("label_") for name in names) else names


def check_vocabularies(
    student: PreTrainedTokenizerBase | None,
    teacher: PreTrainedTokenizerBase | None,
    key: str = "processing_class",
) -> None:
    """Refuse tokenizers that number their tokens differently, even where the sizes agree.

    Args:
        student: The student's, where it is known.
        teacher: The teacher's, where it is known.
        key: What brings the student's.

    Raises:
        InvalidInput: Naming a token.
    """
    if student is None or teacher is None:
        return
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if differing:
        token = differing[0]
        raise InvalidInput(
            key,
            f"{token!r} as id {ours.get(token)}",
            f"the teacher's tokenizer has it as id {theirs.get(token)}; {len(differing)} tokens differ",
            "Use the teacher's tokenizer for the student.",
        )


def refuse_sharding(distributed_type: DistributedType) -> None:
    """Refuse launches that split layers over ranks."""
    if distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise InvalidInput(
            "distributed_type",
            distributed_type.value,
            "hooks need whole layers on each rank",
            "Launch with DDP (accelerate launch --multi_gpu) or one process.",
        )


def check_lengths(lengths: Sequence[int], config: PretrainedConfig, whose: str) -> None:
    """Refuse texts that a model has no positions for.

    Args:
        lengths: Tokens of each text.
        config: The model's config.
        whose: Which model it is.
    """
    most = get_family(config).max_length(config)
    longest = max(lengths, default=0)
    if longest > most:
        raise InvalidInput(
            "input_ids",
            f"a text of {longest} tokens",
            f"this {whose} has positions for {most}",
            f"Truncate the texts: tokenizer(..., truncation=True, max_length={most}).",
        )


def check_dataset(dataset: Any) -> None:
    """Refuse rows that are streamed (batches are made by length, of rows from anywhere) or not tokenised."""
    if dataset is None:
        return
    if not has_length(dataset):
        raise InvalidInput(
            "train_dataset",
            type(dataset).__name__,
            "must have a length and rows by number",
            "Load it whole: load_dataset(...) without streaming=True.",
        )
    if not len(dataset) or "input_ids" not in dataset[0]:
        raise InvalidInput(
            "train_dataset",
            f"rows with {', '.join(dataset[0])}" if len(dataset) else "no rows",
            "rows need input_ids",
            "Tokenise them before: dataset.map(lambda row: tokenizer(row['text'], truncation=True)).",
        )


def refuse_loss(given: Any) -> None:
    """Refuse a loss in the place of the objectives, which would never be called."""
    if given is not None:
        raise InvalidInput(
            "compute_loss_func",
            given,
            "the loss is the sum of the objectives",
            'Write it as an Objective, and name it by import path: objectives={"package.module:Class": {}}.',
        )


def text_head(student: PreTrainedModel) -> Head | None:
    """What the outputs of a student's head for whole texts mean; None where it has another head or none."""
    if not any(each.__name__.endswith("ForSequenceClassification") for each in type(student).__mro__):
        return None
    config = student.config
    return Head(config.problem_type or (REGRESSION if config.num_labels == 1 else None), config.num_labels)


def check_labels(labels: Sequence[Any], student: PreTrainedModel) -> None:
    """Refuse labels that a student's head can't be trained on.

    Args:
        labels: Of each row, as `DistillationCollator` takes them.
        student: The model; one without a head for texts or tokens takes any labels.
    """
    head = text_head(student)
    if head is not None:
        _check_text_labels(labels, head)
    elif outputs_of(type(student)) == EACH_TOKEN and np.ndim(labels[0]) == 1:
        _check_classes(np.fromiter(chain.from_iterable(labels), dtype=np.int64), student.config.num_labels)


def check_spans(rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse answers that begin or end where their text has no token.

    Args:
        rows: Rows for question answering, without padding.
    """
    for row in rows:
        for column in ("start_positions", "end_positions"):
            if not 0 <= int(row[column]) < len(row["input_ids"]):
                raise InvalidInput(
                    column,
                    int(row[column]),
                    f"the tokens of this text have the places 0 to {len(row['input_ids']) - 1}",
                    "Where an answer was cut off, set both to the place of the first token ([CLS]).",
                )


def _check_text_labels(labels: Sequence[Any], head: Head) -> None:
    try:
        values = np.asarray(labels)
    except ValueError:  # rows of several lengths
        values = np.array(labels, dtype=object)
    kind, shape = values.dtype.kind, values.shape[1:]
    problem, outputs = head.problem or (SINGLE_LABEL if kind in "iu" else MULTI_LABEL), head.num_labels
    one = {SINGLE_LABEL: "iu", REGRESSION: "iuf" if outputs == 1 else "", MULTI_LABEL: ""}[problem]
    several = "" if problem == SINGLE_LABEL else "f"
    allowed = {"iu": "a whole number", "iuf": "a number", "": f"a list of {outputs} floats"}[one]
    if kind not in {(): one, (outputs,): several}.get(shape, ""):
        raise InvalidInput(
            "labels",
            labels[0],
            f"a head for {problem} with {outputs} outputs takes {allowed} a row",
            "Change the labels, or the num_labels and problem_type of the student's config.",
        )
    if problem == SINGLE_LABEL:
        _check_classes(values, outputs)


def _check_classes(labels: NDArray[np.int64], classes: int) -> None:
    wrong = labels[((labels < 0) & (labels != IGNORED)) | (labels >= classes)]
    if len(wrong):
        raise InvalidInput(
            "labels",
            int(wrong[0]),
            f"the student has classes 0 to {classes - 1}; {IGNORED} is a label that is left out",
            "Change the labels, or give the student another num_labels.",
        )


def refuse_reentrant(student: PreTrainedModel) -> None:
    """Refuse a student on which reentrant checkpointing was enabled: hooks would capture no gradients."""
    for module in student.modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        options = getattr(function, "keywords", {})
        if getattr(module, "gradient_checkpointing", False) and options.get("use_reentrant"):
            raise InvalidInput(
                "model",
                "reentrant checkpointing",
                "hooks need use_reentrant: False",
                "Leave it to the arguments (gradient_checkpointing), which set that.",
            )
