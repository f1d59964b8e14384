"""The teacher: loaded with safety, checked against the task, fine-tuned once if the recipe asks for it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_kdnas.adapter import brings_head, merge_adapter
from hf_kdnas.content import rows_hash, settings_hash, weights_hash
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import get_family
from hf_kdnas.precision import resolve_attention
from hf_kdnas.processes import from_first
from hf_kdnas.resources import cache_dir, resolve_path, why_not_loaded
from hf_kdnas.run import atomic_folder, one_at_a_time, recover_folder
from hf_kdnas.tasks.base import auto_class

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hf_kdnas.progress import Narrator
    from hf_kdnas.recipe import TeacherSection, TrainingSection
    from hf_kdnas.tasks import TaskData

_BYTE_LEVEL = ("roberta",)

# Files of a teacher's folder, of each kind at least one.
_CONFIGS = ("config.json",)
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "tokenizer.model")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = {"pytorch_model.bin", "pytorch_model.bin.index.json"}


def load_config(section: TeacherSection, head: str) -> PretrainedConfig:
    """The teacher's config.

    Args:
        section: The recipe's teacher.
        head: The task's head, such as `SequenceClassification`; empty where the encoder alone does.

    Raises:
        InvalidInput: If the model or its adapter can't be found, its type has no family, or neither has
            such a head and the recipe doesn't fine-tune it.
        MissingPackage: If there is an adapter, but not peft.
    """
    from transformers import AutoConfig

    check_folder("teacher.model", section.model)
    config: PretrainedConfig = _from_pretrained(AutoConfig, section)
    get_family(config)
    adapted = brings_head(section.adapter, section.adapter_revision)
    if section.fine_tune is None and not (adapted or has_head(config, head)):
        raise InvalidInput(
            "teacher.model",
            f"{section.model} ({', '.join(config.architectures or []) or 'no architecture named'})",
            f"without teacher.fine_tune it must have a task head (...For{head})",
            "Set teacher.fine_tune, for example to {epochs: 3}, or choose a fine-tuned teacher.",
        )
    return config


def has_head(config: PretrainedConfig, head: str) -> bool:
    """Whether a model of this config was saved with a task's head; that of an encoder alone is none."""
    return not head or any(name.endswith(f"For{head}") for name in config.architectures or [])


def load_tokenizer(
    section: TeacherSection, config: PretrainedConfig, *, task: str = "text-classification"
) -> PreTrainedTokenizerBase:
    """The teacher's tokenizer.

    Args:
        section: The recipe's teacher.
        config: Its config.
        task: The recipe's `data.task`.

    Raises:
        InvalidInput: If it makes ids that the model has no embedding for, or can't say which word or
            character a token is from, where the task needs that.
    """
    from transformers import AutoTokenizer

    # Byte-level tokenizers want a space before each of the words that they are given one by one.
    words = task == "token-classification" and config.model_type in _BYTE_LEVEL
    options: dict[str, Any] = {"add_prefix_space": True} if words else {}
    # A BERT tokenizer in a DistilBERT's folder makes token types that the model doesn't take.
    inputs = get_family(config).inputs
    if "token_type_ids" not in inputs:
        options["model_input_names"] = list(inputs)
    tokenizer: PreTrainedTokenizerBase = _from_pretrained(AutoTokenizer, section, **options)
    if task != "text-classification" and not tokenizer.is_fast:
        raise InvalidInput(
            "teacher.model",
            f"{type(tokenizer).__name__}, a slow tokenizer",
            f"{task} needs a fast one, which knows where in the text a token is",
            "Convert it with AutoTokenizer and save_pretrained, or choose another teacher.",
        )
    if len(tokenizer) > config.vocab_size:
        raise InvalidInput(
            "teacher.model",
            f"a tokenizer of {len(tokenizer)} tokens",
            f"the model's vocabulary has {config.vocab_size}",
            "Give the tokenizer that belongs to the model.",
        )
    return tokenizer


def _from_pretrained(auto_class: Any, section: TeacherSection, **options: Any) -> Any:
    import hf_kdnas.exact  # noqa: F401  # so that the Auto classes know it

    try:
        return auto_class.from_pretrained(
            resolve_path(section.model),
            revision=section.revision,
            trust_remote_code=section.trust_remote_code and not _is_exact(section),
            **options,
        )
    except InvalidInput:
        raise
    # tokenizers raises Exception itself, safetensors and weights of other shapes errors of their own.
    except Exception as error:
        raise InvalidInput(
            "teacher.model",
            section.model,
            "must be a Hub id, a folder with a model and its tokenizer, or package:NAME/FOLDER",
            why_not_loaded(section.model, error),
        ) from error


def _is_exact(section: TeacherSection) -> bool:
    """Whether it is of the type that this package has itself; no class beside the weights is its equal."""
    from transformers import PretrainedConfig

    from hf_kdnas.modeling_exact_bert import ExactBertConfig

    fields, _ = PretrainedConfig.get_config_dict(resolve_path(section.model), revision=section.revision)
    return fields.get("model_type") == ExactBertConfig.model_type


def check_folder(key: str, model: str, *, tokenizer: bool = True) -> None:
    """See that a folder holds what a model is made of; Transformers guesses where a file is missing.

    Args:
        key: The setting that names it.
        model: A folder; anything else is passed over.
        tokenizer: Whether a tokenizer has to be there, too.

    Raises:
        InvalidInput: If a file is missing, or the weights are pickled or cut off.
    """
    folder = Path(resolve_path(model))
    if not folder.is_dir():
        return
    names = {path.name for path in folder.iterdir()}
    for wanted, what in ((_CONFIGS, "config"), (TOKENIZERS, "tokenizer"), (_WEIGHTS, "safetensors weights")):
        if names.isdisjoint(wanted) and (tokenizer or what != "tokenizer"):
            remedy = "Give a folder that save_pretrained wrote, of the model and of its tokenizer."
            if what == "safetensors weights" and not names.isdisjoint(_PICKLED):
                remedy = (
                    f"It has {', '.join(names & _PICKLED)}, which loading may run code from: "
                    "if you trust it, load it with from_pretrained and write it with save_pretrained."
                )
            missing = f"the folder has no {what} ({' or '.join(wanted)})"
            raise InvalidInput(key, model, missing, remedy)
    for path in folder.glob("*.safetensors"):
        _check_weights(key, path)


def _check_weights(key: str, path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass  # it compares the header with the file's size
    except (SafetensorError, OSError) as error:
        raise InvalidInput(
            key, str(path), f"must be a whole safetensors file ({error})", "Download it again."
        ) from error


def with_task_head(config: PretrainedConfig, task: TaskData) -> PretrainedConfig:
    """The teacher's config as it will be once it has this task's head."""
    config.update(task.config_fields())
    return config


def load_model(section: TeacherSection, task: TaskData, seed: int) -> PreTrainedModel:
    """A model with its adapter merged and a head for the task, as it is before any fine-tuning.

    Args:
        section: The recipe's teacher; without `fine_tune` it or its adapter must have that head.
        task: The task.
        seed: Decides whatever the model lacks.

    Raises:
        InvalidInput: If it can't be loaded.
    """
    from transformers import AutoConfig

    own_head = section.fine_tune is None and has_head(_from_pretrained(AutoConfig, section), task.head)
    teacher = _load(section, task.head_class, seed, {} if own_head else task.config_fields())
    if task.label_names:
        with_task_head(teacher.config, task)  # its own head may have no names for its classes
    return teacher


def load_untuned(section: TeacherSection, head: str) -> PreTrainedModel:
    """A teacher as it is, with its adapter merged, frozen, in evaluation mode and float32.

    Args:
        section: The recipe's teacher.
        head: The head that it has, what stands after `AutoModelFor`; empty for the encoder alone.

    Raises:
        InvalidInput: If it can't be loaded.
    """
    teacher = _load(section, auto_class(head), 0, {})
    teacher.eval().requires_grad_(False)
    return teacher


def _load(section: TeacherSection, head_class: Any, seed: int, fields: Mapping[str, Any]) -> PreTrainedModel:
    import torch
    from accelerate import PartialState

    torch.manual_seed(seed)
    with without_remarks():
        model: PreTrainedModel
        model, loading = _from_pretrained(
            head_class,
            section,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation=resolve_attention(PartialState().device, section.attn_implementation),
            # A head of another task gives way to a new one.
            ignore_mismatched_sizes=section.fine_tune is not None,
            output_loading_info=True,
            **fields,
        )
    _check_sizes(model, loading["mismatched_keys"], section)
    if section.adapter is None:
        return model
    return merge_adapter(model, section.adapter, section.adapter_revision)


def _check_sizes(model: PreTrainedModel, drawn: Iterable[Any], section: TeacherSection) -> None:
    """See that only what is as wide as the labels was drawn anew for having another size."""
    family = get_family(model.config).of(type(model))
    # Transformers 5 puts both shapes beside the name.
    for name in sorted(each if isinstance(each, str) else each[0] for each in drawn):
        if "labels" not in family.parameter_axes(name):
            raise InvalidInput(
                "teacher.model",
                f"{section.model} ({name})",
                "its weights must have the sizes that its config.json says",
                "Give the config.json that was saved with the weights.",
            )


def prepare_teacher(
    section: TeacherSection, task: TaskData, seed: int, narrator: Narrator
) -> PreTrainedModel:
    """The teacher with its adapter merged and a head for the task, frozen, in evaluation mode and float32.

    A fine-tuned one is kept in the cache, keyed by the weights it started from, the rows and the
    settings; a fine-tuning that was interrupted goes on from its last epoch.

    Args:
        section: The recipe's teacher.
        task: The task, with its rows.
        seed: Decides the new head and the order of the rows.
        narrator: Tells how it goes on.
    """
    teacher = load_model(section, task, seed)
    if section.fine_tune is not None:
        key = settings_hash(
            weights_hash(teacher), rows_hash(task.train), asdict(section.fine_tune), seed, task.kind
        )
        teacher = _fine_tuned(
            teacher, section.fine_tune, task, seed, cache_dir() / "teachers" / key, narrator
        )
    teacher.eval().requires_grad_(False)
    return teacher


def _fine_tuned(
    teacher: PreTrainedModel,
    section: TrainingSection,
    task: TaskData,
    seed: int,
    folder: Path,
    narrator: Narrator,
) -> PreTrainedModel:
    """Train on the task's labels alone, or load what an earlier run trained."""
    from accelerate import PartialState

    from hf_kdnas.distill.training import train

    state = PartialState()
    with one_at_a_time(folder) if state.is_main_process else nullcontext():
        if state.is_main_process:
            recover_folder(folder)
        if not from_first(folder.is_dir(), state):
            checkpoints = folder.with_name(f"{folder.name}.checkpoints")
            train(
                teacher,
                section,
                {"task": {}},
                task.train,
                checkpoints,
                seed=seed,
                narrator=narrator,
                what="fine-tuning",
            )
            if state.is_main_process:
                with atomic_folder(folder) as unfinished:
                    teacher.save_pretrained(unfinished)
                shutil.rmtree(checkpoints, ignore_errors=True)
        state.wait_for_everyone()
    loaded: PreTrainedModel = type(teacher).from_pretrained(
        folder, use_safetensors=True, attn_implementation=teacher.config._attn_implementation
    )
    with_task_head(loaded.config, task)  # the run that trained it may have named the classes otherwise
    return loaded


@contextmanager
def without_remarks() -> Iterator[None]:
    """Without Transformers' remark that a new head is new."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
