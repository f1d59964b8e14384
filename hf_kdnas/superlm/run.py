"""The stages of a SuperLM run over its folder: the teacher, a SuperLM for each space, ranking, students."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from hf_kdnas.content import settings_hash, weights_hash
from hf_kdnas.distill.signal_keys import signals_key, teacher_hash
from hf_kdnas.distill.signals import TeacherSignals
from hf_kdnas.errors import InvalidInput
from hf_kdnas.initialisation import Initialiser
from hf_kdnas.precision import resolve_attention, resolve_precision, teacher_precision
from hf_kdnas.processes import on_first
from hf_kdnas.progress import Narrator
from hf_kdnas.resources import cache_dir
from hf_kdnas.run import atomic_folder, changes, read_json, recover_folder, write_json
from hf_kdnas.slicing import move_to
from hf_kdnas.superlm.checkpoint import Checkpoint
from hf_kdnas.superlm.held_out import HeldOut
from hf_kdnas.superlm.model import SuperLM
from hf_kdnas.superlm.ranking import Member, rank_space
from hf_kdnas.superlm.texts import TextWindows
from hf_kdnas.superlm.trainer import SuperLMTrainer
from hf_kdnas.tasks.masking import Masking
from hf_kdnas.teacher import load_untuned

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor
    from transformers import PreTrainedModel

    from hf_kdnas.run import RunFolder
    from hf_kdnas.superlm.plan import SuperLMPlan

# Windows of training text on which units are scored, those of a batch, and those of the sample that the
# residual stream is looked at with (8,192 tokens of 128-token windows).
IMPORTANCE_WINDOWS = 640
IMPORTANCE_BATCH_SIZE = 32
STREAM_WINDOWS = 64

PROJECTION = "projection.safetensors"
RANKING = "ranking.json"
SETTINGS = "settings.json"


# Settings of a teacher that only cards, or other tasks, read.
_OF_THE_TEACHERS_CARD = ("base_model", "pooling")


class SuperLMRun:
    """What `kdnas superlm` does one after another over one run folder.

    `teacher/` holds the teacher with its units in the order of importance, `spaces/NAME/` each SuperLM, first
    as it starts (`start/`), then trained (`superlm/`), with its `history.json`.

    Args:
        plan: The resolved recipe.
        folder: The run folder, opened.
        processes: The ranks of this launch.
    """

    def __init__(self, plan: SuperLMPlan, folder: RunFolder, processes: PartialState) -> None:
        self.plan = plan
        self.recipe = plan.recipe
        self.section = plan.section
        self.folder = folder
        self.processes = processes
        self.device = processes.device
        self.narrator = Narrator(processes.is_main_process)

    def train(self) -> dict[str, list[dict[str, Any]]]:
        """Train what isn't trained yet.

        Returns:
            The history of each space's training (see `SuperLMTrainer.run`).
        """
        if self.processes.is_main_process:
            self._recover()
        with self._stage("teacher", f"teacher {self.recipe.teacher.model}"):
            self._prepare()
        return {name: self._trained(name) for name in self.plan.spaces}

    def rank(self) -> list[Member]:
        """Rank all members of all spaces by their held-out loss, the best first."""
        members: list[Member] = []
        for name in self.plan.spaces:
            self._require_trained(name)
        for name, space in self.plan.spaces.items():
            superlm = self.superlm(name)
            objectives = settings_hash(self.plan.ranking_objectives, self.section.layers)
            key = settings_hash(weights_hash(superlm.model), self.held_out.signals.key, objectives)
            with self._stage("ranking", f"ranking {len(space)} members of {name}"):
                members += rank_space(
                    name,
                    space,
                    superlm,
                    self.held_out,
                    self._space(name) / f"ranking-{key}",
                    parameters=self.plan.parameters,
                    length=self.plan.length,
                    processes=self.processes,
                    narrator=self.narrator,
                )
        members.sort(key=lambda member: (member.loss, member.parameters))
        if self.processes.is_main_process:
            write_json(self.folder / RANKING, [member.as_dict() for member in members])
        return members

    def ranking(self) -> list[Member]:
        """What `rank` found, or nothing before it.

        Raises:
            InvalidInput: If the file is damaged.
        """
        try:
            return [Member.from_dict(each) for each in read_json(self.folder / RANKING) or []]
        except (ValueError, TypeError, KeyError) as error:
            file = str(self.folder / RANKING)
            raise InvalidInput(
                "superlm", file, f"it can't be read ({error})", "Run kdnas superlm rank again."
            ) from error

    def extract(
        self,
        member: Member,
        to: Path,
        keep: Collection[str] = (),
        beside: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Write a member as a folder for plain `from_pretrained`: weights, config and tokenizer.

        Args:
            member: What to write.
            to: The folder, which may hold another student.
            keep: Names of files beside that one which stay.
            beside: What is said of the student, by the names of JSON files.

        Raises:
            InvalidInput: If there are yet others, which would be lost or be about another student.
        """
        student = self.superlm(member.space).extract(member.architecture)
        with atomic_folder(to) as unfinished:
            student.save_pretrained(unfinished)
            self.plan.tokenizer.save_pretrained(unfinished)
            for name, content in (beside or {}).items():
                write_json(unfinished / name, content)
            ours = {path.name for path in unfinished.iterdir()}
            for path in sorted(to.iterdir()) if to.is_dir() else ():
                if path.name in keep:
                    shutil.copy2(path, unfinished / path.name)
                elif path.name not in ours:
                    raise InvalidInput(
                        "output",
                        str(to),
                        f"it holds {path.name}, which is not part of a student that is written",
                        "Move that away, or choose another folder (--output).",
                    )

    def superlm(self, name: str) -> SuperLM:
        """A space's trained SuperLM, on the device.

        Raises:
            InvalidInput: If it isn't trained yet.
        """
        return SuperLM(self._load(self._require_trained(name)), self.section.layers)

    def _require_trained(self, name: str) -> Path:
        """The folder of a space's trained SuperLM."""
        folder = self._space(name) / "superlm"
        if not folder.is_dir():
            raise InvalidInput(
                "superlm",
                name,
                f"{self.folder.path} has no trained SuperLM of this space",
                "Run kdnas superlm train first, with the same recipe.",
            )
        return folder

    @cached_property
    def held_out(self) -> HeldOut:
        """Held-out text, with what the teacher says about it."""
        losses = self.plan.losses(self.plan.ranking_objectives, self._projection, self.device)
        windows, precision = self.windows.held_out, self.section.training.precision
        compute = resolve_precision(self.device, teacher_precision(self.recipe.teacher.dtype, precision))
        # Training fixes its constants on them as well.
        kept = self.plan.losses(self.plan.kept_objectives, self._projection, self.device)
        names = sorted(kept.teacher_signals)
        kept_in = self.recipe.distillation.signals.precision
        key = signals_key(teacher_hash(self.teacher), windows, names, kept_in, compute=compute)
        folder = cache_dir() / "signals" / key[:16]
        build = partial(
            TeacherSignals.build, self.teacher, windows, names, folder, precision=kept_in, compute=compute
        )
        held_out = HeldOut(
            windows=windows,
            signals=on_first(build, self.processes),
            losses=losses,
            batch_size=self.section.training.batch_size,
            precision=precision,
            device=self.device,
        )
        sample = next(held_out.batches())
        losses.calibrate(sample["teacher"], sample)
        return held_out

    @cached_property
    def windows(self) -> TextWindows:
        """The text."""
        asked, length = self.section.held_out, self.plan.length
        windows = TextWindows(
            self.recipe.data, self.plan.tokenizer, length=length, held_out=asked, seed=self.recipe.seed
        )
        if len(windows.held_out) < asked:
            found = f"{len(windows.held_out)} windows of {length} tokens"
            self.narrator.say(f"held-out text is {found}, not the {asked} of superlm.held_out")
        return windows

    @cached_property
    def teacher(self) -> PreTrainedModel:
        """The prepared teacher, frozen, on the device."""
        teacher = self._load(self.folder / "teacher")
        teacher.eval().requires_grad_(False)
        return teacher

    @cached_property
    def _projection(self) -> Tensor | None:
        """The map from teacher to student states, (hidden, hidden)."""
        file = self.folder / "teacher" / PROJECTION
        return load_file(file)["projection"] if file.is_file() else None

    def _recover(self) -> None:
        """Tidy up behind launches that were killed."""
        recover_folder(self.folder / "teacher")
        for name in self.plan.spaces:
            for part in ("start", "checkpoint", "superlm"):
                recover_folder(self._space(name) / part)

    def _prepare(self) -> None:
        """Look at the teacher as the initialisation needs it, and make the SuperLMs of it (on one rank)."""
        teacher = self.folder / "teacher"

        def make() -> None:
            made = [teacher, *(self._space(name) / "start" for name in self.plan.spaces)]
            if all(folder.is_dir() for folder in made):
                return
            initialiser = self.initialiser()
            with atomic_folder(teacher) as unfinished:
                initialiser.teacher.save_pretrained(unfinished)
                projection = initialiser.projection(self.plan.teacher)
                if projection is not None:
                    save_file({"projection": projection.cpu().contiguous()}, unfinished / PROJECTION)
            for name, space in self.plan.spaces.items():
                with atomic_folder(self._space(name) / "start") as unfinished:
                    initialiser.student(space.widest, self.recipe.seed).save_pretrained(unfinished)

        on_first(make, self.processes)
        if not teacher.is_dir():
            raise InvalidInput(
                "output_dir",
                str(self.folder.path),
                "the teacher that the first process wrote is not there: all machines must see this folder",
                "Choose one on a file system that they share.",
            )

    def initialiser(self) -> Initialiser:
        """What makes the SuperLMs' first weights, and the teacher in its order."""
        teacher = load_untuned(self.recipe.teacher, self.plan.head)
        move_to(teacher, self.device)
        taken = islice(self.windows.training(), IMPORTANCE_WINDOWS)
        windows = torch.tensor([window for window, *_ in taken])
        batches = [self._scored(ids) for ids in windows.split(IMPORTANCE_BATCH_SIZE)]
        sample = self._on_device(windows[:STREAM_WINDOWS])
        teacher.requires_grad_(True)
        initialiser = Initialiser.prepare(self.section.initialisation, teacher, batches, sample)
        teacher.requires_grad_(False)
        return replace(initialiser, layers=self.section.layers, nested=True)

    def _scored(self, ids: Tensor) -> dict[str, Tensor]:
        """A batch that units are scored on: with hidden tokens where there is a head to find them."""
        if self._masking is None:
            return self._on_device(ids)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            masked, labels = self._masking(ids, torch.ones_like(ids))
        return {**self._on_device(masked), "labels": labels.to(self.device)}

    def _on_device(self, ids: Tensor) -> dict[str, Tensor]:
        ids = ids.to(self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    @property
    def _masking(self) -> Masking | None:
        """Hides tokens, where an objective is about them."""
        tokenizer = self.plan.tokenizer
        if not self.plan.head or tokenizer.mask_token_id is None:
            return None
        special = tuple(tokenizer.all_special_ids)
        probability = self.recipe.data.mlm_probability
        return Masking(tokenizer.mask_token_id, len(tokenizer), special, probability)

    def _trained(self, name: str) -> list[dict[str, Any]]:
        space, folder = self.plan.spaces[name], self._space(name)
        if not (folder / "superlm").is_dir():
            with self._stage("training", f"SuperLM of {len(space)} members, {name}: {space.widest}"):
                self._train(name)
        history: list[dict[str, Any]] = read_json(folder / "history.json")
        return history

    def _train(self, name: str) -> None:
        space, folder, section = self.plan.spaces[name], self._space(name), self.section
        model = self._load(folder / "start")
        losses = self.plan.losses(self.plan.objectives, self._projection, self.device)
        sample = next(self.held_out.batches())
        losses.calibrate(sample["teacher"], sample)
        checkpoint = Checkpoint(folder / "checkpoint")
        history = SuperLMTrainer(
            superlm=SuperLM(model, section.layers),
            space=space,
            parameters=self.plan.parameters,
            teacher=self.teacher,
            teacher_precision=teacher_precision(self.recipe.teacher.dtype, section.training.precision),
            losses=losses,
            windows=self.windows,
            masking=self._masking,
            held_out=self.held_out,
            section=section.training,
            seed=self.recipe.seed,
            checkpoint=checkpoint,
            processes=self.processes,
            narrator=self.narrator,
        ).run(name)
        if self.processes.is_main_process:
            write_json(folder / "history.json", history)
            with atomic_folder(folder / "superlm") as unfinished:
                model.save_pretrained(unfinished)
            checkpoint.remove()
        self.processes.wait_for_everyone()

    def check_settings(self) -> None:
        """See that what the SuperLMs follow from is what it was: a SuperLM can't change halfway.

        Raises:
            InvalidInput: If it isn't, naming what has changed.
        """
        settings, kept = self._settings(), read_json(self.folder / SETTINGS) or {}
        for name in _OF_THE_TEACHERS_CARD:
            kept.get("teacher", {}).pop(name, None)  # older versions kept them
        # A version that did not keep one of them yet can't say that it changed.
        changed = changes({name: kept.get(name, value) for name, value in settings.items()}, settings)
        if changed:
            (key, (old, new)), *others = changed.items()
            also = f" (and with other {', '.join(name for name, _ in others)})" if others else ""
            raise InvalidInput(
                key,
                new,
                f"{self.folder.path} began with {old!r}{also}, and a SuperLM goes on with its own settings",
                "Take the old settings again, choose another folder, or start again with --overwrite.",
            )

    def keep_settings(self) -> None:
        """Keep what the SuperLMs follow from, where it isn't kept yet.

        Raises:
            InvalidInput: If something else is.
        """
        self.check_settings()
        file = self.folder / SETTINGS
        if self.processes.is_main_process and not file.is_file():
            write_json(file, self._settings())
        self.processes.wait_for_everyone()

    def _settings(self) -> dict[str, Any]:
        """What the SuperLMs follow from, as JSON gives it back."""
        training = asdict(self.section.training)
        for free in ("save_steps", "evaluation_steps", "not_finite"):
            training.pop(free)
        teacher = asdict(self.recipe.teacher)
        for free in _OF_THE_TEACHERS_CARD:
            teacher.pop(free)
        spaces = {name: [member.key for member in space] for name, space in self.plan.spaces.items()}
        names = ("path", "name", "revision", "data_files", "text", "train_split")
        data = {name: getattr(self.recipe.data, name) for name in names}
        settings = {
            "seed": self.recipe.seed,
            "teacher": teacher,
            "data": {**data, "held_out": self.recipe.data.reporting_split, "length": self.plan.length},
            "data.mlm_probability": self.recipe.data.mlm_probability,
            "superlm.spaces": spaces,
            "superlm.objectives": self.plan.objectives,
            "superlm.layers": self.section.layers,
            "superlm.initialisation": self.section.initialisation,
            "superlm.held_out": self.section.held_out,
            "superlm.training": training,
        }
        found: dict[str, Any] = json.loads(json.dumps(settings))
        return found

    def _load(self, folder: Path) -> PreTrainedModel:
        loaded: PreTrainedModel = self.plan.model_class.from_pretrained(
            folder,
            use_safetensors=True,
            attn_implementation=resolve_attention(self.device, self.recipe.teacher.attn_implementation),
        )
        move_to(loaded, self.device)
        return loaded

    def _space(self, name: str) -> Path:
        return self.folder / "spaces" / name

    def _stage(self, name: str, what: str) -> AbstractContextManager[None]:
        """Say what begins, and add its seconds to the run's."""
        return self.folder.stage(name, what, self.narrator)
