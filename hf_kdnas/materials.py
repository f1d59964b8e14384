"""What students are made of: the prepared teacher, their first weights, the teacher's signals."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_kdnas.distill.criterion import DistillationCriterion
from hf_kdnas.distill.data import LABELS, DistillationCollator, LengthGroupedSampler
from hf_kdnas.distill.signal_files import check_room, occupied, unfinished_folder
from hf_kdnas.distill.signal_keys import signals_key, teacher_hash
from hf_kdnas.distill.signals import TeacherSignals
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import reads_tokens
from hf_kdnas.given_student import load_student
from hf_kdnas.initialisation import Initialiser
from hf_kdnas.precision import resolve_precision, teacher_precision
from hf_kdnas.processes import from_first, on_first
from hf_kdnas.resources import cache_dir
from hf_kdnas.teacher import prepare_teacher

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor

    from hf_kdnas.plan import Plan
    from hf_kdnas.progress import Narrator

# Batches of training rows on which units are scored, and tokens of the sample that the residual
# stream is looked at with.
IMPORTANCE_BATCHES = 20
IMPORTANCE_BATCH_SIZE = 32
STREAM_TOKENS = 8192


@dataclass(frozen=True)
class Materials:
    """What all students of a run are made of.

    Attributes:
        initialiser: Holds the prepared teacher and makes students of it.
        signals: What the teacher says about the training rows, or None where it runs live.
        collator: Makes batches, with the signals.
    """

    initialiser: Initialiser
    signals: TeacherSignals | None
    collator: DistillationCollator


def prepare_initialiser(plan: Plan, processes: PartialState, narrator: Narrator) -> Initialiser:
    """Load or fine-tune the teacher, and look at it as the initialisation needs it."""
    recipe = plan.recipe
    teacher = prepare_teacher(recipe.teacher, plan.task, recipe.seed, narrator).to(processes.device)
    if plan.student is not None:
        given = load_student(plan.student, teacher, recipe.seed, recipe.student_revision)
        return Initialiser("given", teacher, given=given.train())
    if plan.workflow == "homotopic":
        return Initialiser("copy", teacher)
    if plan.superlms is not None:
        superlms, layers = plan.superlms.load(teacher, recipe.seed), plan.superlms.layers
        return Initialiser("superlm", teacher, superlms=superlms, layers=layers)
    collator = DistillationCollator(plan.task.pad_token_id, masking=plan.task.masking)
    rng = random.Random(recipe.data.split_seed)
    rows = plan.task.train
    lengths = [len(row["input_ids"]) for row in rows]
    batches = LengthGroupedSampler(lengths, IMPORTANCE_BATCH_SIZE, recipe.data.split_seed).batches()
    chosen = rng.sample(batches, min(IMPORTANCE_BATCHES, len(batches)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.data.split_seed)
        labelled = [collator([rows[index] for index in batch]) for batch in chosen]
        sample = collator(_sample(rows, rng))
    for name in LABELS:
        sample.pop(name, None)
    with torch.enable_grad():
        teacher.requires_grad_(True)
        initialiser = Initialiser.prepare(
            recipe.distillation.initialisation,
            teacher,
            [_to(batch, processes.device) for batch in labelled],
            _to(sample, processes.device),
            share=lambda value: from_first(value, processes),
        )
        teacher.requires_grad_(False)
    return initialiser


def check_room_for_signals(plan: Plan) -> None:
    """Refuse, before the teacher is fine-tuned, signals that the disk has no room for.

    Whether the cache has them already is known for certain only once the teacher is there: where it has
    some of the same rows and names, or a build was begun there, `TeacherSignals.build` decides.

    Raises:
        InvalidInput: If there is too little room (says how much is needed).
    """
    size = _kept_size(plan)
    if size and not _may_be_kept(plan):
        begun = sum(map(occupied, _signals_folder("").glob(unfinished_folder(Path("*")).name)))
        check_room(size - begun, _signals_folder("new"))


def _may_be_kept(plan: Plan) -> bool:
    """Whether the cache has signals of these names for texts of these lengths."""
    names, lengths = _needed_signals(plan), [len(row["input_ids"]) for row in plan.distilled_rows]
    for folder in _signals_folder("").glob("[!.]*"):
        with suppress(InvalidInput):
            found = TeacherSignals.open(folder)
            if found.names == names and found.lengths.tolist() == lengths:
                return True
    return False


def prepare_signals(
    plan: Plan, initialiser: Initialiser, processes: PartialState, narrator: Narrator
) -> TeacherSignals | None:
    """Compute, or find in the cache, what the teacher says about the training rows.

    Returns:
        None where no objective needs a teacher, or where the teacher runs live: the recipe says so, or
        the signals would outgrow the disk budget.
    """
    distillation, rows = plan.recipe.distillation, plan.distilled_rows
    names, size = _needed_signals(plan), _kept_size(plan)
    if not size:
        if names:
            narrator.say("  not kept: the teacher runs beside its students")
        return None
    ids = [row["input_ids"] for row in rows]
    types = [row["token_type_ids"] for row in rows] if "token_type_ids" in rows[0] else None
    teacher = initialiser.teacher
    asked = teacher_precision(plan.recipe.teacher.dtype, distillation.training.precision)
    compute = resolve_precision(processes.device, asked)
    precision = distillation.signals.precision
    key = signals_key(teacher_hash(teacher), ids, names, precision, token_type_ids=types, compute=compute)
    folder = _signals_folder(key[:16])

    def build() -> TeacherSignals:
        with narrator.loop(f"signals ({size / 1e9:.2f} GB)", len(rows)) as progress:
            return TeacherSignals.build(
                teacher,
                ids,
                names,
                folder,
                token_type_ids=types,
                precision=precision,
                compute=compute,
                progress=lambda done, _: progress(done, ""),
            )

    return on_first(build, processes)


def _signals_folder(name: str) -> Path:
    return cache_dir() / "signals" / name


def _kept_size(plan: Plan) -> int:
    """Bytes of the signals, or 0 where none are kept: texts whose hidden tokens change have none to keep."""
    signals, names = plan.recipe.distillation.signals, _needed_signals(plan)
    if not signals.cache or plan.task.masking is not None:
        return 0
    lengths = (len(row["input_ids"]) for row in plan.distilled_rows)
    token_logits = reads_tokens(plan.model_class)
    size = TeacherSignals.size_bytes(
        plan.config, lengths, names, signals.precision, token_logits=token_logits
    )
    return size if size <= signals.disk_budget_gb * 1e9 else 0


def _needed_signals(plan: Plan) -> list[str]:
    """What the objectives ask of the teacher, over all depths of the space and the baselines."""
    shapes = {member.num_hidden_layers: member for member in [*plan.space, *plan.baselines.values()]}
    names: set[str] = set()
    for shape, objectives in product(shapes.values(), plan.objectives):
        names |= DistillationCriterion(objectives, shape, plan.teacher).teacher_signals
    return sorted(names)


def _sample(rows: Iterable[Mapping[str, Any]], rng: random.Random) -> list[Mapping[str, Any]]:
    """Rows drawn at random, but for the longest tenth, of some STREAM_TOKENS tokens."""
    by_length = sorted(rows, key=lambda row: len(row["input_ids"]))
    usual = by_length[: max(1, len(by_length) * 9 // 10)]
    rng.shuffle(usual)
    chosen, tokens = [], 0
    for row in usual:
        if tokens >= STREAM_TOKENS:
            break
        chosen.append(row)
        tokens += len(row["input_ids"])
    return chosen


def _to(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}
