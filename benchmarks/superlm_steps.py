"""Steps of SuperLMTrainer, and a member's own, timed and with their memory."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import accumulate, cycle
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import AdamW

from hf_kdnas import Architecture, TeacherSignals, load_recipe
from hf_kdnas.distill.capture import Capture, forward_signals
from hf_kdnas.precision import autocast, resolve_attention, teacher_precision
from hf_kdnas.processes import join_processes
from hf_kdnas.progress import Narrator
from hf_kdnas.resources import resolve_path
from hf_kdnas.slicing import move_to, new_student
from hf_kdnas.superlm.checkpoint import Checkpoint
from hf_kdnas.superlm.held_out import HeldOut
from hf_kdnas.superlm.model import SuperLM
from hf_kdnas.superlm.plan import plan_superlm
from hf_kdnas.superlm.sandwich import extremes, sandwich
from hf_kdnas.superlm.trainer import SuperLMTrainer

# Steps before the clock starts, so that the optimiser has its state, and those that are timed.
WARM_UP, STEPS = 2, 4
BATCH, LENGTH = 16, 128


class Windows:
    """Windows of random tokens without end, as SuperLMTrainer takes them.

    Args:
        tokens: Size of the vocabulary.
    """

    def __init__(self, tokens: int) -> None:
        generator = torch.Generator().manual_seed(0)
        count = BATCH * (WARM_UP + STEPS + 1)
        self.all: list[list[int]] = torch.randint(1000, tokens, (count, LENGTH), generator=generator).tolist()

    def training(self, epoch: int = 0, skipped: int = 0) -> Iterator[tuple[list[int], int, int]]:
        """All of them, again and again."""
        for place, window in enumerate(cycle(self.all), start=1):
            yield window, epoch, place

    def of_step(self, step: int) -> list[list[int]]:
        """The batch of a step."""
        return self.all[step * BATCH : (step + 1) * BATCH]


class Steps(Narrator):
    """Is told when each step has ended."""

    def __init__(self, ended: Callable[[int], None]) -> None:
        super().__init__(speaks=False)
        self._ended = ended

    @contextmanager
    def loop(self, what: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
        """Hand the number of steps on."""
        yield lambda done, note="": self._ended(done)


class Clock:
    """Times the steps after the warm-up."""

    def __init__(self, device: torch.device, warm_up: int = WARM_UP) -> None:
        self._device = device
        self._warm_up = warm_up
        self._ends: list[float] = []

    def __call__(self, done: int) -> None:
        """A step has ended."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        self._ends.append(time.perf_counter())

    def seconds(self, steps: int) -> float:
        """Of this many steps after the warm-up."""
        return self._ends[self._warm_up + steps - 1] - self._ends[self._warm_up - 1]


class Memory:
    """The most that is allocated in the steps after the warm-up, beyond what is there before each of them.

    Bytes of tensors, by PyTorch's own account: a process also holds kernels compiled for each shape.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._before = 0
        self._profile = torch.profiler.profile(profile_memory=True)
        self.highest = 0

    def __call__(self, done: int) -> None:
        """A step has ended."""
        if done == WARM_UP:
            self._begin()
        elif done == WARM_UP + STEPS:
            self.highest = self._end()

    def _begin(self) -> None:
        if self._gpu:
            self._before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            self._profile.start()

    def _end(self) -> int:
        if self._gpu:
            return torch.cuda.max_memory_allocated() - self._before
        self._profile.stop()
        events = self._profile.profiler.kineto_results.events()
        changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
        return max(accumulate(size for _, size in changes))


class Bench:
    """The MiniLM teacher, one of its spaces, and a SuperLM of it with weights drawn at random."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        recipe = load_recipe("autodistil_minilm", [f"superlm.training.batch_size={BATCH}"])
        self.plan = plan_superlm(recipe)
        self.section = replace(
            self.plan.section.training,
            steps=WARM_UP + STEPS + 1,  # the last one is followed by a checkpoint, and isn't timed
            save_steps=sys.maxsize,
            evaluation_steps=sys.maxsize,
        )
        self.space = self.plan.spaces[name]
        self.teacher = self.plan.model_class.from_pretrained(
            resolve_path(recipe.teacher.model),
            use_safetensors=True,
            attn_implementation=resolve_attention(self.device, recipe.teacher.attn_implementation),
        )
        self.teacher.eval().requires_grad_(False)
        move_to(self.teacher, self.device)
        self.teacher_precision = teacher_precision(recipe.teacher.dtype, self.section.precision)
        self.losses = self.plan.losses(self.plan.objectives, None, self.device)
        self.windows = Windows(self.teacher.config.vocab_size)
        self.followed_on = self.held_out(BATCH)
        largest, _, smallest = extremes(self.space, self.plan.parameters)
        self.members = [
            sandwich(
                list(self.space),
                largest,
                smallest,
                random_subnets=self.section.random_subnets,
                seed=recipe.seed,
                step=step,
            )
            for step in range(WARM_UP + STEPS)
        ]

    @cached_property
    def superlm(self) -> SuperLM:
        """The shared weights."""
        model = new_student(self.teacher, self.space.widest)
        move_to(model, self.device)
        return SuperLM(model, self.plan.section.layers)

    def held_out(self, count: int) -> HeldOut:
        """Some of the windows, with signals that are built now."""
        windows = self.windows.all[:count]
        folder = Path(tempfile.mkdtemp(dir=self.folder)) / "signals"
        names = sorted(self.losses.teacher_signals)
        signals = TeacherSignals.build(self.teacher, windows, names, folder, compute=self.teacher_precision)
        return HeldOut(windows, signals, self.losses, BATCH, self.section.precision, self.device)

    @torch.no_grad()
    def read(self, batch: Mapping[str, Tensor], *, whole: bool = False) -> dict[str, Tensor]:
        """The teacher's signals, from a forward that ends with the last of them or from a whole one."""
        capture = Capture(self.teacher, self.losses.teacher_signals, only=not whole)
        with autocast(self.device, self.teacher_precision):
            return forward_signals(self.teacher, capture, batch)

    def batch(self, windows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Windows on the device."""
        ids = torch.tensor(windows, device=self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def train_together(self, ended: Callable[[int], None]) -> None:
        """Steps of SuperLMTrainer, and one more."""
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            SuperLMTrainer(
                superlm=self.superlm,
                space=self.space,
                parameters=self.plan.parameters,
                teacher=self.teacher,
                teacher_precision=self.teacher_precision,
                losses=self.losses,
                windows=self.windows,
                masking=None,
                held_out=self.followed_on,
                section=self.section,
                seed=self.plan.recipe.seed,
                checkpoint=Checkpoint(Path(scratch) / "checkpoint"),
                processes=join_processes(),
                narrator=Steps(ended),
            ).run("")

    def train_alone(
        self,
        member: Architecture,
        steps: Iterable[int],
        read: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
        ended: Callable[[int], None],
    ) -> None:
        """A member's own steps, as a model of its own whose forward ends with the last signal, too."""
        section, criterion = self.section, self.losses[member]
        model = new_student(self.teacher, member)
        move_to(model, self.device)
        model.train()
        optimiser = AdamW(
            model.parameters(), lr=section.learning_rate, weight_decay=section.weight_decay, fused=True
        )
        capture = Capture(model, criterion.student_signals, only=True)

        def backward(batch: Mapping[str, Tensor]) -> None:
            signals = read(batch)
            with autocast(self.device, section.precision):
                learned = forward_signals(model, capture, batch)
                loss, _ = criterion(learned, signals, batch, criterion.counts(batch))
            loss.backward()

        for done, step in enumerate(steps, start=1):
            backward(self.batch(self.windows.of_step(step)))
            torch.nn.utils.clip_grad_norm_(model.parameters(), section.max_grad_norm)
            optimiser.step()
            optimiser.zero_grad()
            ended(done)
