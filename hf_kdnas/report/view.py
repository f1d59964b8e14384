"""What the report and the model card say: results.json, arranged for reading."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from hf_kdnas.errors import InvalidInput
from hf_kdnas.latency.target import describe_target
from hf_kdnas.report.formats import NOTHING, milliseconds, percent, score, times
from hf_kdnas.run import read_json

# What the results of every run have, and those of other commands have not all.
_RESULTS = {"workflow", "name", "seed", "teacher", "student", "seconds"}

Role = Literal["teacher", "winner", "finalist", "hand-crafted", "random search"]


@dataclass(frozen=True)
class Row:
    """A model that was trained in full.

    Attributes:
        role: What it is in the comparison.
        name: Its name.
        architecture: Its key.
        quality: The metric on the reporting split.
        retained: That quality over the teacher's, None where that is not above 0.
        latency_ms: Median latency in milliseconds.
        speedup: Teacher's latency over its own, timed in turn.
        parameters: Number of parameters.
        selection_quality: The metric on the selection split.
        proxy_quality: The same after the short distillation.
        reward: On the selection split, after full distillation.
    """

    role: Role
    name: str
    architecture: str
    quality: float
    retained: float | None
    latency_ms: float
    speedup: float
    parameters: int
    selection_quality: float | None = None
    proxy_quality: float | None = None
    reward: float | None = None


@dataclass(frozen=True)
class Timing:
    """A measured ONNX file.

    Attributes:
        name: What was measured.
        median_ms: Median latency in milliseconds.
        interval: 95 % interval of the median, as text.
        spread_ms: Distance between the quartiles.
        speedup: Over the teacher, timed in turn.
        speedup_interval: Its 95 % interval, as text.
    """

    name: str
    median_ms: float
    interval: str = NOTHING
    spread_ms: float | None = None
    speedup: float = 1.0
    speedup_interval: str = NOTHING


@dataclass(frozen=True)
class Bar:
    """The cost of a stage.

    Attributes:
        stage: Its name.
        seconds: Wall time over all launches of the run.
        width: Per cent of the costliest stage.
    """

    stage: str
    seconds: float
    width: float


def load_results(run_dir: Path) -> dict[str, Any]:
    """Read the results.json of a finished search, distillation or narrowing.

    Raises:
        InvalidInput: If there is none, or it is another command's.
    """
    try:
        results = read_json(run_dir / "results.json")
    except (OSError, ValueError) as error:
        raise unfinished(run_dir, f"its results.json can't be read ({error})") from None
    if results is None:
        raise unfinished(run_dir, "it has no results.json")
    if not (isinstance(results, dict) and results.keys() >= _RESULTS):
        raise unfinished(run_dir, "its results.json is not that of a search or a distillation")
    return results


def unfinished(run_dir: Path, reason: str) -> InvalidInput:
    """The error for a folder that is not that of a finished run."""
    return InvalidInput(
        "RUN",
        str(run_dir),
        f"must be the output folder of a finished search or distillation: {reason}",
        "Repeat the run's command, which goes on where it stopped, or give another folder.",
    )


def rows(results: Mapping[str, Any]) -> list[Row]:
    """Teacher, finalists (the winner first), hand-crafted shapes, and the random search's best."""
    teacher = results["teacher"]
    found = [_row(teacher | {"speedup": 1.0, "name": "teacher"}, "teacher", teacher["quality"])]
    ordered = sorted(results["finalists"], key=lambda each: (not each["winner"], -each["quality"]))
    groups: Sequence[tuple[Role, Sequence[Mapping[str, Any]]]] = (
        ("winner", [each for each in ordered if each["winner"]]),
        ("finalist", [each for each in ordered if not each["winner"]]),
        ("hand-crafted", results["baselines"]),
        ("random search", [results["random_baseline"]] if results["random_baseline"] else []),
    )
    found += [_row(each, role, teacher["quality"]) for role, members in groups for each in members]
    return found


def _row(model: Mapping[str, Any], role: Role, teacher_quality: float) -> Row:
    return Row(
        role=role,
        name=model.get("name", model["architecture"]),
        architecture=model["architecture"],
        quality=model["quality"],
        retained=part(model["quality"], teacher_quality),
        latency_ms=model["latency_ms"],
        speedup=model["speedup"],
        parameters=model["parameters"],
        selection_quality=model.get("selection_quality"),
        proxy_quality=model.get("proxy_quality"),
        reward=model.get("reward"),
    )


def part(quality: float, teacher_quality: float) -> float | None:
    """What a student keeps of its teacher's quality; None where that is not above 0."""
    return quality / teacher_quality if teacher_quality > 0 else None


def timings(results: Mapping[str, Any]) -> list[Timing]:
    """The teacher's file, the student's, and the student in PyTorch, timed in turn."""
    student, int8 = results["student"], results["student"]["int8"]
    found = [
        Timing("teacher, fp32", results["teacher"]["latency_ms"]),
        _timing("student, fp32", student["latency"]),
    ]
    if int8 is not None:
        found.append(_timing("student, dynamic INT8", int8["latency"]))
    if pytorch := student.get("pytorch"):
        found.append(_timing("student, fp32, in PyTorch", pytorch))
    return found


def _timing(name: str, report: Mapping[str, Any]) -> Timing:
    low, high = report["interval_ms"]
    slow, fast = (1 / ratio for ratio in reversed(report["ratio_interval"]))
    return Timing(
        name=name,
        median_ms=report["median_ms"],
        interval=f"{milliseconds(low)} to {milliseconds(high)}",
        spread_ms=report["iqr_ms"],
        speedup=1 / report["ratio"],
        speedup_interval=f"{slow:.2f} to {fast:.2f}",
    )


def bars(results: Mapping[str, Any]) -> list[Bar]:
    """Cost by stage, in the order in which the stages ran."""
    seconds = results["seconds"]
    most = max(seconds.values(), default=0.0) or 1.0
    return [Bar(stage, spent, 100 * spent / most) for stage, spent in seconds.items()]


def spread(values: Sequence[float]) -> str:
    """Mean and, of several values, standard deviation."""
    mean = score(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def total_seconds(results: Mapping[str, Any]) -> float:
    """Seconds of all stages."""
    return float(sum(results["seconds"].values()))


def verdict(results: Mapping[str, Any]) -> str:
    """The result in a sentence."""
    student, metric = results["student"], results["task"]["metric"]
    if results["retained"] is None:
        return (
            f"{student['architecture']} reaches {score(student['quality'])} {metric} at "
            f"{results['speedup']:.2f} times the speed of its teacher, which has none to keep: "
            f"{score(results['teacher']['quality'])}."
        )
    return (
        f"{student['architecture']} keeps {percent(results['retained'])} of its teacher's {metric} "
        f"at {results['speedup']:.2f} times its speed."
    )


def target_text(target: Mapping[str, Any]) -> str:
    """Where latency was measured, in words."""
    return f"ONNX Runtime, {describe_target(target)}"


def constraints_text(results: Mapping[str, Any]) -> str:
    """What the winner was asked to keep to, and whether it does; empty if nothing was asked."""
    words = {
        "latency_ms": ("latency of at most", milliseconds),
        "speedup": ("speed-up of at least", times),
        "retained": ("retained quality of at least", percent),
        "parameters": ("parameters, at most", lambda value: f"{value:,}"),
    }
    asked = ", ".join(
        f"{words[name][0]} {words[name][1](limit)}"
        for name, limit in results["constraints"].items()
        if limit is not None
    )
    if not asked:
        return ""
    if not results["constraints_met"]:
        return f"No finalist met the recipe's constraints ({asked}); this one came nearest."
    said = f"On the selection split, which it was chosen by, it meets the recipe's constraints: {asked}."
    return f"{said} {_own_file_text(results)}".rstrip()


def _own_file_text(results: Mapping[str, Any]) -> str:
    """Where the winner's own file came out slower than the shape that the search had measured."""
    ceiling, floor = results["constraints"]["latency_ms"], results["constraints"]["speedup"]
    found = results["student"]["latency_ms"]
    if ceiling is not None and found > ceiling:
        measured = milliseconds(found)
    elif floor is not None and results["speedup"] < floor:
        measured = f"{times(results['speedup'])} the teacher's speed"
    else:
        return ""
    return (
        "Its shape kept to that when it was measured first; its own file, measured again, came out at "
        f"{measured}: a machine that was busy one of the two times, or a shape at the limit."
    )


def int8_text(results: Mapping[str, Any]) -> str:
    """What INT8 brought on this machine; empty if it was not asked for."""
    student, int8 = results["student"], results["student"]["int8"]
    if int8 is None:
        return ""
    speed = _faster(int8["speedup"] / results["speedup"])
    change = int8["quality"] - student["quality"]
    metric = results["task"]["metric"]
    return f"Here the INT8 file is {speed} the fp32 one, and its {metric} differs by {change:+.4f}."


def pytorch_text(results: Mapping[str, Any]) -> str:
    """What ONNX Runtime brought on this machine; empty where PyTorch was not timed."""
    pytorch = results["student"].get("pytorch")
    if not pytorch:
        return ""
    return f"Here ONNX Runtime runs the student {_faster(pytorch['ratio'] * results['speedup'])} PyTorch."


def _faster(gain: float) -> str:
    return f"{gain:.2f} times as fast as" if gain >= 1 else f"slower ({gain:.2f} times the speed) than"


def search_text(results: Mapping[str, Any]) -> str:
    """What is known of what the search itself was worth."""
    rival = results["random_baseline"]
    if results["search"]["sampler"] == "random":
        return "The candidates were drawn at random: another sampler may do better, or not."
    if rival is None:
        return (
            "A random search of the same budget did not run: nothing is known about what the search itself "
            "was worth. The setting search.random_baseline runs one."
        )
    winner = next(each for each in results["finalists"] if each["winner"])
    gain = results["student"]["quality"] - rival["quality"]
    return (
        f"A random search of the same budget found {rival['architecture']}: {results['task']['metric']} "
        f"{score(rival['quality'])} at {times(rival['speedup'])} the teacher's speed, against "
        f"{score(results['student']['quality'])} at {times(winner['speedup'])}: a difference of {gain:+.4f}, "
        f"from one seed each. By the reward on the selection split it is {score(winner['reward'])} against "
        f"the random search's {score(rival['reward'])}."
    )


def distillation_text(results: Mapping[str, Any]) -> str:
    """That nothing is known of what distillation was worth; empty where something is, or can't be."""
    trained = [results["distillation"], *results["comparison"]]
    from_labels = any(set(each["objectives"]) == {"task"} for each in trained)
    if from_labels or results["task"]["kind"] == "sentence-similarity":  # that has no labels
        return ""
    return (
        "The same student was not trained without distillation: nothing is known about what distillation was "
        "worth. The setting compare of kdnas distill tells."
    )


def length_text(training: Mapping[str, Any]) -> str:
    """How long students were trained: `3 epochs`, `1 epoch`, `500 steps`."""
    steps = training["training_arguments"].get("max_steps", -1)
    count, unit = (steps, "step") if steps > 0 else (training["epochs"], "epoch")
    return f"{count:g} {unit}{'' if count == 1 else 's'}"


def space_text(space: Mapping[str, Any]) -> str:
    """How many architectures could be drawn: `798 architectures, 551 of them fast enough`."""
    fewer = "" if space["reachable"] == space["size"] else f" ({space['reachable']:,} of them fast enough)"
    return f"{space['size']:,} architectures{fewer}"


def training_text(results: Mapping[str, Any]) -> str:
    """What students learned from beside the training rows, and their dropout; empty by default."""
    distillation, sentences = results["distillation"], []
    augmentation = distillation.get("augmentation") or {"copies": 0}
    if copies := augmentation["copies"]:
        texts = "one made text" if copies == 1 else f"{copies} made texts"
        sentences.append(
            f"For each training row students also learned from {texts}, the beginning of one row and the end "
            f"of another with {augmentation['replaced']:.0%} of the tokens replaced, which the teacher alone "
            "answered."
        )
    dropout = distillation["training"].get("dropout")
    if dropout is not None:
        sentences.append(f"Their dropout was {dropout:g} meanwhile.")
    return " ".join(sentences)


def hand_crafted_text(results: Mapping[str, Any]) -> str:
    """How the winner compares with the hand-crafted shapes, also where they do better; empty without them."""
    shapes = results["baselines"]
    if not shapes:
        return ""
    winner = next(each for each in results["finalists"] if each["winner"])
    as_fast = [each for each in shapes if each["speedup"] >= winner["speedup"]]
    slower = [each for each in shapes if each["speedup"] < winner["speedup"]]
    against = f"against the winner's {_scored(winner)}"
    sentences = []
    if as_fast:
        best = max(as_fast, key=lambda each: each["quality"])
        sentences.append(
            f"Of the hand-crafted shapes that are no slower, {_named(best)} is the best, {against}."
        )
    if slower:
        best = max(slower, key=lambda each: each["quality"])
        which = (
            "Of the slower ones" if as_fast else "All hand-crafted shapes are slower than the winner: of them"
        )
        sentences.append(f"{which}, {_named(best)} is the best{'' if as_fast else f', {against}'}.")
    ahead = max(shapes, key=lambda each: each["reward"])
    if ahead["reward"] > winner["reward"]:
        sentences.append(
            f"By the reward that chose the winner, {ahead['name']} would have come before it "
            f"({score(ahead['reward'])} against {score(winner['reward'])}, constraints left aside)."
        )
    sentences.append(
        "Hand-crafted shapes were distilled like the winner: same initialisation, data, steps and seed."
    )
    return " ".join(sentences)


def _named(shape: Mapping[str, Any]) -> str:
    return f"{shape['name']} ({shape['architecture']}, {_scored(shape)})"


def _scored(shape: Mapping[str, Any]) -> str:
    return f"{score(shape['quality'])} at {times(shape['speedup'])}"


def noise_text(results: Mapping[str, Any]) -> str:
    """How far an accuracy may be off by chance; empty where the number of rows alone does not tell.

    Agresti and Coull's interval: it stays honest near 1 and for few rows.
    """
    if results["task"]["metric"] != "accuracy" or results["task"]["kind"] != "single_label_classification":
        return ""
    quality, rows = results["student"]["quality"], results["task"]["rows"]["reporting"]
    centre = (quality * rows + 2) / (rows + 4)
    half = 1.96 * math.sqrt(centre * (1 - centre) / (rows + 4))
    return f"On that many rows an accuracy of {score(quality)} is known to ± {half:.4f} (95 %)."


def created_text(results: Mapping[str, Any]) -> str:
    """When the results were written: `2026-11-21 08:00 UTC`."""
    return f"{datetime.fromisoformat(results['created']):%Y-%m-%d %H:%M %Z}"


def predictions(results: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Predicted and measured reward of each candidate that has both."""
    return [
        (each["predicted_reward"], each["reward"])
        for each in results["candidates"]
        if each["predicted_reward"] is not None and each["reward"] is not None
    ]


def prediction_text(pairs: Sequence[tuple[float, float]]) -> str:
    """How well the predictions ranked the candidates; empty where that can't be said."""
    from scipy.stats import spearmanr

    predicted, measured = zip(*pairs, strict=True) if pairs else ((), ())
    if len(pairs) < 3 or len(set(predicted)) == 1 or len(set(measured)) == 1:
        return ""
    return f"Spearman's rank correlation is {spearmanr(predicted, measured).statistic:.2f}."


def proxy_text(results: Mapping[str, Any]) -> str:
    """Whether the short distillation ranked the finalists as the full one did."""
    correlation = results["proxy_rank_correlation"]
    if correlation is None:
        return (
            "Whether the short distillation ranks students as the full one does is not known: "
            "that takes at least three finalists of different quality."
        )
    return (
        f"Rank correlation of short and full distillation over {len(results['finalists'])} finalists: "
        f"{correlation:.2f} (Spearman, selection split)."
    )
