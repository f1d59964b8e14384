"""What a ranking by held-out loss is worth: SuperLMs of the MiniLM teacher's spaces, and their members.

The SuperLMs of the three spaces are trained on WikiText-2 and the novels by the recipe `autodistil_minilm`,
with fewer steps. Their members' held-out loss is compared with

- the accuracy of 12 of them, spread over the spaces, after fine-tuning on MRPC and on 10,000 sentences of
  SST-2, on the validation splits, one seed (Spearman's: the lower the loss, the higher the score);
- the loss of 6 of these when they are distilled alone, with as many steps as their space;
- the loss of 10 members drawn at random in one SuperLM of all members, which has as many steps as the three
  together, and in one that has as many as each of them.

Takes some 80 minutes on 2 CPU cores, at most 40 of them for training the three spaces; `--quick` some 12
minutes: fewer steps, 6 architectures, 2,000 sentences of SST-2 alone. With a GPU more steps. KDNAS_DATA or
--data is a folder with text/ and glue/.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from harness import Benchmark
from prepared import TITLES
from scipy.stats import spearmanr
from superlms import SuperLMs, arguments, only, union

from hf_kdnas.superlm.plan import plan_superlm
from hf_kdnas.superlm.ranking import Member
from hf_kdnas.superlm_workflows import Budget, extract_student, rank_superlms, train_superlms

# Architectures of each space that are fine-tuned, and every which of these is distilled alone.
OF_EACH_SPACE, EVERY = 4, 2
QUICK_OF_EACH_SPACE = 2
TASKS, QUICK_TASKS = ("mrpc", "sst2"), ("sst2",)
DRAWN = 10
# One SuperLM of all members, by the cell's name: the run's, and its steps in those of one of the three.
ONE_SPACE = {"one space": ("one", 3), "one space, a third of the steps": ("one-short", 1)}

# No figure is known of such a ranking: half of a perfect one is aimed at.
LEAST_CORRELATION = 0.5
MOST_MINUTES = 40


def three_spaces(superlms: SuperLMs) -> dict[str, Any]:
    """Train the SuperLMs of the three spaces, and rank all members."""
    recipe = superlms.recipe()
    history = train_superlms(recipe)
    members = rank_superlms(recipe)
    seconds = superlms.opened(recipe, plan_superlm(recipe).spaces).folder.seconds()
    return {"history": history, "members": [each.as_dict() for each in members], "seconds": seconds}


def one_space(superlms: SuperLMs, drawn: Sequence[Member], name: str, steps: int) -> dict[str, Any]:
    """Train one SuperLM of all members; the held-out loss of those drawn."""
    spaces = plan_superlm(superlms.recipe()).spaces
    settings = [f"superlm.training.steps={steps}", f"superlm.training.evaluation_steps={max(1, steps // 5)}"]
    run = superlms.opened(superlms.recipe(name, settings), {name: union(spaces.values())})
    history, superlm = run.train(), run.superlm(name)
    found = run.held_out.mean_losses(superlm, [each.architecture for each in drawn])
    losses = {each.architecture.key: loss for each, loss in zip(drawn, found, strict=True)}
    return {"history": history, "losses": losses, "seconds": run.folder.seconds()}


def fine_tuned(superlms: SuperLMs, member: Member, tasks: Sequence[str]) -> dict[str, Any]:
    """A member's score on each task."""
    key = member.architecture.key
    student = superlms.folder / "students" / key
    # Cells may be of another machine, whose run folder is not here.
    train_superlms(superlms.recipe())
    rank_superlms(superlms.recipe())
    extract_student(superlms.recipe(), student, Budget(), architecture=key)
    scores = superlms.fine_tuned(student, tasks, seeds=[0])
    return {"scores": {task: values[0] for task, values in scores.items()}}


def alone(superlms: SuperLMs, member: Member) -> dict[str, Any]:
    """A member's held-out loss when it is the only one of its space."""
    key = member.architecture.key
    run = superlms.opened(superlms.recipe(f"alone/{key}"), {"alone": only(member.architecture)})
    history = run.train()["alone"]
    return {"loss": history[-1]["held_out"]["largest"], "seconds": run.folder.seconds()}


def spread_out(members: Sequence[Member], count: int) -> list[Member]:
    """So many members of each space, from its smallest to its largest."""
    chosen: list[Member] = []
    for space in sorted({member.space for member in members}):
        own = sorted((each for each in members if each.space == space), key=lambda each: each.parameters)
        chosen += [own[round(place * (len(own) - 1) / (count - 1))] for place in range(count)]
    return chosen


def correlation(ones: Sequence[float], others: Sequence[float]) -> float:
    """Spearman's rank correlation."""
    return float(spearmanr(ones, others).statistic)


class Table:
    """What was found, as targets and rows."""

    def __init__(self, benchmark: Benchmark, tasks: Sequence[str]) -> None:
        self.benchmark = benchmark
        self.tasks = tasks
        self.cells = benchmark.cells

    def targets(self, chosen: Sequence[Member], lone: Sequence[Member], drawn: Sequence[Member]) -> None:
        """Note the targets."""
        for task in self.tasks:
            known = [(each, score) for each in chosen if (score := self._score(each, task)) is not None]
            found = [(each.loss, -each.parameters, -score) for each, score in known]
            self._correlated(f"held-out loss and {TITLES[task]}", found, len(chosen))
        found = [
            (each.loss, -each.parameters, loss) for each in lone if (loss := self._alone(each)) is not None
        ]
        self._correlated("held-out loss and that of students distilled alone", found, len(lone))
        mean = statistics.fmean(each.loss for each in drawn)
        for cell in ONE_SPACE:
            one = self.cells.get(cell)
            beside = statistics.fmean(one["losses"].values()) if one else float("nan")
            self.benchmark.target(
                mean <= beside,
                f"mean loss of {len(drawn)} members drawn, three spaces",
                f"{mean:.4g}",
                f"at most that of {cell}, {beside:.4g}",
            )
        minutes = {
            name: sum(self.cells[cell]["seconds"]["training"] / 60 for cell in cells if cell in self.cells)
            for name, cells in (
                ("three spaces", ["three spaces"]),
                ("one space", list(ONE_SPACE)),
                ("alone", [_name("alone", each) for each in lone]),
            )
        }
        self.benchmark.target(
            minutes["three spaces"] <= MOST_MINUTES,
            "minutes of training, three spaces",
            ", ".join(f"{each:.1f} ({name})" for name, each in minutes.items()),
            f"at most {MOST_MINUTES} on 2 cores",
        )

    def _correlated(self, what: str, found: Sequence[tuple[float, float, float]], wanted: int) -> None:
        """Note how well a loss orders what was measured, and how well the number of parameters does."""
        by_loss, measured = None, "not run"
        if len(found) == wanted:
            losses, sizes, values = zip(*found, strict=True)
            by_loss = correlation(losses, values)
            measured = f"{by_loss:.2f} (of the parameters {correlation(sizes, values):.2f})"
        self.benchmark.target(
            by_loss is not None and by_loss >= LEAST_CORRELATION,
            f"rank correlation of {what}, {wanted} architectures",
            measured,
            f"{LEAST_CORRELATION}",
        )

    def rows(self, chosen: Sequence[Member]) -> list[tuple[object, ...]]:
        """Losses over the training of each SuperLM, then the architectures."""
        histories = {
            **self.cells["three spaces"]["history"],
            **{space: each for cell in ONE_SPACE for space, each in self._history(cell).items()},
        }
        found: list[tuple[object, ...]] = [
            (space, size, "", _over_steps(history, size), *("" for _ in self.tasks), "")
            for space, history in histories.items()
            for size in ("largest", "middle", "smallest")
        ]
        for each in chosen:
            scores = [self._score(each, task) for task in self.tasks]
            lone = self._alone(each)
            found.append(
                (
                    each.space,
                    each.architecture.key,
                    f"{each.parameters / 1e6:.1f} M",
                    f"{each.loss:.4g}",
                    *("" if score is None else f"{100 * score:.1f}" for score in scores),
                    "" if lone is None else f"{lone:.4g}",
                )
            )
        return found

    def _history(self, cell: str) -> Mapping[str, Any]:
        return self.cells[cell]["history"] if cell in self.cells else {}

    def _score(self, member: Member, task: str) -> float | None:
        cell = self.cells.get(_name("fine-tuned", member))
        return cell["scores"][task] if cell else None

    def _alone(self, member: Member) -> float | None:
        cell = self.cells.get(_name("alone", member))
        return cell["loss"] if cell else None


def _name(what: str, member: Member) -> str:
    """A cell about a member."""
    return f"{what}, {member.architecture.key}"


def _over_steps(history: Sequence[Mapping[str, Any]], size: str) -> str:
    return ", ".join(f"{each['held_out'][size]:.4g} ({each['step']})" for each in history)


def main() -> None:
    """Run what is missing, and print the table and the targets."""
    options, superlms = arguments(__doc__ or "")
    benchmark = Benchmark(f"superlm_ranking{superlms.suffix}", options.cells)
    three = benchmark.cell("three spaces", partial(three_spaces, superlms))
    if three is None:
        return
    members = [
        Member.from_dict(each) for each in sorted(three["members"], key=lambda each: each["architecture"])
    ]
    tasks = QUICK_TASKS if options.quick else TASKS
    chosen = spread_out(members, QUICK_OF_EACH_SPACE if options.quick else OF_EACH_SPACE)
    lone = chosen[::EVERY]
    drawn = random.Random(0).sample(members, DRAWN)
    each = superlms.scale.steps
    for cell, (name, steps) in ONE_SPACE.items():
        benchmark.cell(cell, partial(one_space, superlms, drawn, name, steps * each))
    for member in chosen:
        benchmark.cell(_name("fine-tuned", member), partial(fine_tuned, superlms, member, tasks))
    for member in lone:
        benchmark.cell(_name("alone", member), partial(alone, superlms, member))
    table = Table(benchmark, tasks)
    table.targets(chosen, lone, drawn)
    header = ("space", "architecture", "parameters", "held-out loss (at step)")
    benchmark.finish((*header, *(TITLES[task] for task in tasks), "loss, alone"), table.rows(chosen))


if __name__ == "__main__":
    main()
