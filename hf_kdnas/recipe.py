"""The recipe: everything that a run is asked to do, as dataclasses read from YAML.

This module imports no torch, so that a recipe can be read, checked and printed at once.
"""

# ruff: noqa: RUF009
# `option` is dataclasses.field with a help text and limits: its calls are no shared defaults.
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hf_kdnas.baselines import BASELINES
from hf_kdnas.metrics import GLUE
from hf_kdnas.recipe_checks import OBJECTIVE_NAMES, check_evaluation, check_recipe
from hf_kdnas.recipe_data import DataSection
from hf_kdnas.recipe_files import Option, fingerprint, option, read_recipe, to_yaml, walk_options
from hf_kdnas.recipe_homotopic import HomotopicSection
from hf_kdnas.recipe_superlm import SuperLMSection

__all__ = [
    "CompareSection",
    "ConstraintsSection",
    "DataSection",
    "DistillationSection",
    "EvaluationSection",
    "ExportSection",
    "HomotopicSection",
    "LatencySection",
    "Recipe",
    "SearchSection",
    "SignalsSection",
    "SpaceSection",
    "SuperLMSection",
    "TeacherSection",
    "TrainingSection",
    "load_recipe",
    "recipe_fingerprint",
    "recipe_options",
    "recipe_to_yaml",
]


@dataclass(frozen=True, kw_only=True)
class TrainingSection:
    """How a model is trained; the same on both Transformers lines."""

    epochs: float = option(3.0, "passes over the training rows", above=0)
    batch_size: int = option(
        32,
        "rows per batch, over all devices, whose number has to divide it; a candidate of a search learns on "
        "one device",
        least=1,
    )
    learning_rate: float = option(5e-5, "highest learning rate; it decays linearly to 0", above=0)
    warmup_fraction: float = option(0.06, "part of the steps with a rising learning rate", least=0, most=1)
    weight_decay: float = option(0.01, "AdamW's weight decay", least=0)
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm", above=0)
    dropout: float | None = option(
        None, "probability of dropout during this training; null: as the model's config says", least=0, most=1
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "arithmetic of the forward pass; auto is bf16 where the hardware computes in it, else fp32"
    )
    gradient_accumulation_steps: int = option(1, "batches per optimiser step", least=1)
    training_arguments: dict[str, Any] = option(
        {},
        "other fields of transformers.TrainingArguments, but those that evaluate or shard; refused where no "
        "Trainer does the training (search.proxy)",
    )


@dataclass(frozen=True, kw_only=True)
class TeacherSection:
    """The model that is distilled."""

    model: str = field(
        metadata={"help": "Hub id, folder, or `package:NAME/FOLDER` for one inside an installed package"}
    )
    revision: str | None = option(None, "branch, tag or commit on the Hub")
    base_model: str | None = option(
        None, "the teacher's Hub id, for the model card, where it is loaded from a folder"
    )
    trust_remote_code: bool = option(False, "run code from the teacher's repository")
    attn_implementation: str = option(
        "auto",
        "attention of teacher and students while they are trained, as in `from_pretrained`: eager, sdpa ...; "
        "auto: the fastest on CPUs, else Transformers' choice",
    )
    pooling: Literal["auto", "mean", "cls"] = option(
        "auto", "sentence-similarity: how token states become one vector; auto: as the teacher's folder says"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "what the finished teacher computes in while students learn from it; auto: as distillation.training. "
        "Its weights stay in float32, also while it is fine-tuned",
    )
    adapter: str | None = option(
        None,
        "PEFT adapter, a folder or Hub id, that is merged into the teacher. Where it brings the task head, "
        "data.labels has to name the classes in the order that it was trained with",
    )
    adapter_revision: str | None = option(None, "branch, tag or commit of an adapter on the Hub")
    fine_tune: TrainingSection | None = option(
        None, "train the teacher on the task first; null takes its task head as it is"
    )


@dataclass(frozen=True, kw_only=True)
class SpaceSection:
    """The architectures to search."""

    preset: Literal["from_teacher", "kd_nas", "autodistil-tiny", "autodistil-small", "autodistil-base"] = (
        option("from_teacher", "values of the dimensions that are not listed")
    )
    num_hidden_layers: list[int] | None = option(None, "numbers of layers", least=1)
    hidden_size: list[int] | None = option(None, "widths of the residual stream", least=1)
    num_attention_heads: list[int] | None = option(None, "numbers of heads", least=1)
    intermediate_size: list[int] | None = option(None, "widths of the feed-forward network", least=1)
    hidden_act: list[str] | None = option(None, "activations")
    max_parameters: int | None = option(None, "leave out larger architectures", least=1)


@dataclass(frozen=True, kw_only=True)
class SignalsSection:
    """The teacher's outputs on the training rows, computed once and kept on disk."""

    cache: bool = option(True, "keep them; false runs the teacher beside the student")
    disk_budget_gb: float = option(50.0, "run the teacher live where they would take more", above=0)
    precision: Literal["fp16", "fp32"] = option(
        "fp16", "how they are kept, but for logits; fp32 takes twice the room, for what fp16 does not hold"
    )


@dataclass(frozen=True, kw_only=True)
class AugmentationSection:
    """Texts that are made of the training texts for the teacher to answer, and for students to learn from.

    Each begins as one training text and ends as another. For tasks about single texts, and objectives that
    need no labels.
    """

    copies: int = option(
        0, "how many are made for each training row; epochs and proxy_fraction count them too", least=0
    )
    replaced: float = option(0.08, "part of their tokens that others take the place of", least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class DistillationSection:
    """How finalists and hand-crafted students learn from the teacher."""

    objectives: dict[str, dict[str, Any]] = option(
        {"logits": {"weight": 1.0, "temperature": 2.0}, "hidden": {"weight": 1.0, "layers": "uniform"}},
        f"losses by name ({', '.join(OBJECTIVE_NAMES)}, or `package.module:Class`), each with its options "
        "and its weight: a number, or {from: 1.0, to: 0.0} to change linearly over the training",
    )
    initialisation: Literal["random", "slice", "project", "superlm"] = option(
        "project",
        "a student's first weights: drawn, cut from the teacher, projected and cut, or cut from a SuperLM",
    )
    superlm: str | None = option(
        None,
        "for initialisation: superlm, the run folder of `kdnas superlm train` (a student is cut from the "
        "smallest SuperLM that it fits into), one of its spaces/NAME/superlm, or another encoder's folder",
    )
    training: TrainingSection = option(
        TrainingSection(learning_rate=2e-4), "the full distillation, of finalists and baselines alike"
    )
    signals: SignalsSection = option(SignalsSection(), "the teacher's outputs")
    augmentation: AugmentationSection = option(AugmentationSection(), "more texts to learn from")


@dataclass(frozen=True, kw_only=True)
class ConstraintsSection:
    """What the winner should keep to; among those that do, the highest reward wins."""

    latency_ms: float | None = option(None, "highest median latency, in milliseconds", above=0)
    speedup: float | None = option(None, "least speed-up over the teacher", above=0)
    retained: float | None = option(None, "least part of the teacher's quality", above=0)
    parameters: int | None = option(None, "most parameters; larger architectures are not tried", least=1)


@dataclass(frozen=True, kw_only=True)
class SearchSection:
    """How the space is searched."""

    sampler: str = option(
        "kdnas", "kdnas, random, tpe, nsga2, or an Optuna sampler of your own as `package.module:Class`"
    )
    episodes: int = option(15, "rounds of candidates", least=1)
    candidates: int = option(20, "architectures tried in an episode", least=1)
    proxy_fraction: float = option(
        0.3, "part of the training rows that candidates learn from", above=0, most=1
    )
    proxy: TrainingSection = option(
        TrainingSection(epochs=4.0, learning_rate=2e-4), "the short distillation of a candidate"
    )
    quality: Literal["metric", "hidden_states"] = option(
        "metric",
        "what candidates are rewarded for: the task's metric on the selection split, or 1 - their "
        "hidden-state loss in the last epoch (KD-NAS without a task); finalists are chosen by the metric "
        "in any case",
    )
    alpha: float = option(-0.06, "exponent of latency in the reward", most=0)
    beta: float = option(0.6, "the wanted part of the teacher's latency, in the reward", above=0)
    epsilon: float = option(1.0, "part of the first episode's candidates drawn at random", least=0, most=1)
    epsilon_step: float = option(0.05, "by how much that part falls in each episode", least=0, most=1)
    epsilon_floor: float = option(0.05, "where it stops falling", least=0, most=1)
    storage: str | None = option(
        None, "Optuna storage URL, for several machines, or a journal file; null keeps one in the run folder"
    )
    finalists: int = option(3, "candidates of highest reward that are distilled in full", least=1)
    baselines: list[str] = option(
        ["every-second-layer"],
        f"hand-crafted shapes to compare with: {', '.join(BASELINES)}, or keys like 4L-312H-1200F-12A-gelu",
    )
    finalise: Literal["distill", "homotopic"] = option(
        "distill",
        "how finalists and hand-crafted shapes come to be: distilled in their shape from the first step on, "
        "from weights by distillation.initialisation, or narrowed to it from a copy of the teacher "
        "(HomoDistil; the section homotopic says how)",
    )
    random_baseline: bool = option(False, "also run a random search of the same budget")
    constraints: ConstraintsSection = option(ConstraintsSection(), "what the winner should keep to")


@dataclass(frozen=True, kw_only=True)
class LatencySection:
    """Where and how latency is measured, on ONNX Runtime."""

    provider: str = option("CPUExecutionProvider", "ONNX Runtime execution provider")
    threads: int = option(1, "threads inside an operator", least=1)
    batch_size: int = option(1, "rows in a batch", least=1)
    sequence_length: int = option(128, "tokens in a row", least=1)
    precision: Literal["fp32", "int8"] = option(
        "fp32", "of the graphs that are timed; int8 for `kdnas superlm` and `kdnas latency` alone"
    )
    warmup: int = option(5, "runs before the first that counts", least=1)
    rounds: int = option(30, "timed runs of each model, one after the other in turn", least=5)


@dataclass(frozen=True, kw_only=True)
class ExportSection:
    """The ONNX files of the winner."""

    backend: Literal["auto", "optimum", "transformers"] = option("auto", "exporter; auto takes what is there")
    int8: bool = option(True, "also write, measure and score a dynamic INT8 model")


@dataclass(frozen=True, kw_only=True)
class CompareSection:
    """The same student from several signals, beside each other."""

    objectives: dict[str, dict[str, dict[str, Any]]] = field(
        metadata={
            "help": "sets of objectives by a name of yours, each written as `distillation.objectives`; "
            "the student without distillation, `{task: {}}`, is added, but for sentence-similarity"
        }
    )
    seeds: list[int] = option(
        [0, 1, 2], "each set is trained once with each of these seeds", least=0, most=2**32 - 1
    )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run.

    Raises:
        InvalidInput: If a value is outside its limits, naming the key, the value and what is allowed.
    """

    name: str = option("run", "names the run and its student: letters, digits, dot, dash, underscore")
    seed: int = option(42, "decides everything that is drawn, but not the splits", least=0, most=2**32 - 1)
    output_dir: str = option("", "folder of the run; empty means runs/NAME")
    report_to: list[str] = option(["none"], "trackers, as in Transformers: none, all, tensorboard, wandb ...")
    push_to_hub: bool = option(
        False,
        "publish the student at the end of `kdnas search`, `distill` or `homotopic`, as `publish` does",
    )
    hub_model_id: str | None = option(
        None, "the repository, NAME or OWNER/NAME, made where there is none; null takes the run's name"
    )
    hub_private_repo: bool = option(False, "make it a private one")
    teacher: TeacherSection
    data: DataSection
    space: SpaceSection = option(SpaceSection(), "the architectures to search")
    distillation: DistillationSection = option(DistillationSection(), "how students learn")
    search: SearchSection = option(SearchSection(), "how the space is searched")
    student: str = option(
        "every-second-layer",
        f"what `kdnas distill` makes of the teacher: {', '.join(BASELINES)}, a key like "
        "4L-312H-1200F-12A-gelu, or a model (folder or Hub id) that brings its own weights",
    )
    student_revision: str | None = option(None, "branch, tag or commit of a student on the Hub")
    compare: CompareSection | None = option(None, "other signals that `kdnas distill` tries on this student")
    superlm: SuperLMSection | None = option(
        None, "what `kdnas superlm` trains: weights that a whole space of students shares"
    )
    homotopic: HomotopicSection | None = option(
        None,
        "how `kdnas homotopic`, or a search that finalises by it, narrows students that begin as their "
        "teacher, while they are distilled",
    )
    latency: LatencySection = option(LatencySection(), "how latency is measured")
    export: ExportSection = option(ExportSection(), "the ONNX files")

    def __post_init__(self) -> None:
        folder = Path(self.output_dir or f"runs/{self.name}").expanduser()
        object.__setattr__(self, "output_dir", str(folder))
        check_recipe(self)


@dataclass(frozen=True, kw_only=True)
class EvaluationSection:
    """How `kdnas evaluate` fine-tunes and scores a model; it stands by itself, not in a recipe.

    Raises:
        InvalidInput: If a value is outside its limits, or a list is empty or names something twice.
    """

    revision: str | None = option(None, "branch, tag or commit of a model on the Hub")
    data: str | None = option(
        None,
        "folder that holds a folder for each task, laid out as on the Hub, or a Hub id with a configuration "
        "for each; null takes a task from $KDNAS_DATA/glue, else from the Hub's nyu-mll/glue",
    )
    tasks: list[str] = option([name for name in GLUE if name != "wnli"], "tasks of GLUE")
    seeds: list[int] = option([0, 1, 2], "one run of each task with each", least=0, most=2**32 - 1)
    learning_rates: list[float] = option([5e-5], "highest learning rates to choose from", above=0)
    epochs: list[float] = option([3.0], "passes over the training rows to choose from", above=0)
    batch_sizes: list[int] = option([32], "rows per step to choose from", least=1)
    held_out: float = option(
        0.1,
        "part of the training rows that is held out to choose by, where there is a choice",
        above=0,
        most=0.5,
    )
    max_length: int = option(128, "tokens kept of a row, at most as many as the model takes", least=8)
    precision: Literal["auto", "fp32", "bf16"] = option("auto", "arithmetic of the training, as in a recipe")

    def __post_init__(self) -> None:
        check_evaluation(self)


def load_recipe(path_or_name: str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file, or one that comes with the package.

    Args:
        path_or_name: A YAML file, or a name that `kdnas recipes list` shows.
        overrides: Dotted settings such as `search.episodes=3`, which win over the file.

    Raises:
        InvalidInput: If there is no such recipe, or a key or value in it can't be used.
    """
    recipe: Recipe = read_recipe(Recipe, path_or_name, overrides or [])
    return recipe


def recipe_options() -> Iterator[Option]:
    """Every setting of a recipe with its dotted key, type, default, limits and help, in order."""
    yield from walk_options(Recipe)


def recipe_to_yaml(recipe: Recipe) -> str:
    """The resolved recipe with every default written out; `load_recipe` reads it back."""
    return to_yaml(asdict(recipe))


def recipe_fingerprint(recipe: Recipe, workflow: str) -> str:
    """Identifies what a workflow is asked to do, wherever its results go (SHA-256, hexadecimal)."""
    places = ("output_dir", "report_to", "push_to_hub", "hub_model_id", "hub_private_repo")
    return fingerprint({"workflow": workflow, **asdict(recipe)}, leave_out=places)
