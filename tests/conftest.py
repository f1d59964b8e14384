"""Tiny real models and tokenizers, built from configs: no test needs the network."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Read when the libraries are imported: whatever the user has exported, tests see neither a network nor what
# is cached at home, and their servers on the loopback are behind no proxy.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="kdnas-hf-home-")
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

# How long an example takes depends on what else the machine does.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

WORDS = (
    "the a film movie plot acting actor scene story is was not very quite so too good great fine superb "
    "warm bad poor dull awful weak slow funny sad long short and but with of in it this that one ending"
).split()


_SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_ROBERTA = {
    **_SIZES,
    "max_position_embeddings": 66,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_DISTILBERT = {"n_layers": 3, "dim": 32, "n_heads": 4, "hidden_dim": 64}

# Fields of a tiny model of each family: 3 layers x 32, 4 heads, 64 neurons, 64 tokens.
FAMILIES = [
    {"model_type": "bert", **_SIZES},
    {"model_type": "roberta", **_ROBERTA},
    {"model_type": "xlm-roberta", **_ROBERTA},
    {"model_type": "mpnet", **_SIZES, "max_position_embeddings": 66},
    {"model_type": "electra", **_SIZES, "embedding_size": 32},
    {"model_type": "electra", **_SIZES, "embedding_size": 16},
    # Nothing reads a field for token types, but the config keeps it.
    {
        "model_type": "distilbert",
        "vocab_size": 120,
        **_DISTILBERT,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
    },
    {"model_type": "exact-bert", **_SIZES, "head_size": 12},
]


def _name(fields: dict) -> str:
    width = fields.get("embedding_size")
    return fields["model_type"] if width is None else f"{fields['model_type']}-{width}"


def _tiny(fields: dict):
    from transformers import AutoConfig

    import hf_kdnas.exact  # noqa: F401  # a type of ours

    return AutoConfig.for_model(**fields, num_labels=2)


@pytest.fixture(params=FAMILIES, ids=_name)
def tiny_config(request: pytest.FixtureRequest):
    """A tiny config of each family, with two labels: a new family is a line in FAMILIES."""
    return _tiny(request.param)


@pytest.fixture
def tiny_configs() -> list:
    """Those of all families, for what takes them together."""
    return [_tiny(fields) for fields in FAMILIES]


@pytest.fixture
def tiny_families() -> set[str]:
    """The model types that `tiny_config` goes through."""
    return {fields["model_type"] for fields in FAMILIES}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep fine-tuned teachers and signals of tests out of the user's cache."""
    monkeypatch.setenv("KDNAS_CACHE", str(tmp_path / "kdnas-cache"))


@pytest.fixture(autouse=True)
def _nothing_left_for_accelerate() -> Iterator[None]:
    """TrainingArguments leave precision (4.57) and `torch_compile` in the environment, for later Trainers."""
    _forget_wishes()
    yield
    _forget_wishes()


def _forget_wishes() -> None:
    names = ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_")
    for name in [name for name in os.environ if name.startswith(names)]:
        del os.environ[name]


@pytest.fixture(scope="session")
def _graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(autouse=True)
def _shapes_are_exported_once(_graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tests measure the same shapes, and Transformers' exporter takes seconds for the smallest."""
    from hf_kdnas.latency import shape
    from hf_kdnas.latency.export import EXPORTERS

    export_shape = shape.export_shape

    def exported(model_class: type, config: Any, exporter: Any, path: Path) -> None:
        if not isinstance(exporter, tuple(EXPORTERS.values())) or path.is_file():
            return export_shape(model_class, config, exporter, path)
        made_of = f"{model_class.__name__} {exporter.name} {config.to_json_string()}"
        graph = _graphs / hashlib.sha256(made_of.encode()).hexdigest() / path.name
        export_shape(model_class, config, exporter, graph)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(graph, path)

    monkeypatch.setattr(shape, "export_shape", exported)


@pytest.fixture
def steady_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """The latency of a shape goes by its FLOPs: what a search finds is not a matter of the machine's load."""
    from hf_kdnas.architecture import Architecture
    from hf_kdnas.latency.measure import LatencyReport
    from hf_kdnas.search.latencies import ShapeLatencies

    def told(self: ShapeLatencies, shape: Architecture) -> LatencyReport:
        length = self.target.sequence_length
        own, whole = (each.flops(length) / 1e6 for each in (shape, Architecture.from_config(self.config)))
        self.used[shape] = LatencyReport(
            median_ms=own,
            iqr_ms=0.0,
            interval_ms=(own, own),
            ratio=own / whole,
            ratio_interval=(own / whole, own / whole),
            reference_median_ms=whole,
            rounds=self.target.rounds,
            target=vars(self.target),
            device="made up",
            onnxruntime="0",
        )
        return self.used[shape]

    monkeypatch.setattr(ShapeLatencies, "__call__", told)


_BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_kdnas":
            raise ImportError("hf_kdnas is not here")

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture
def stranger() -> Callable[..., str]:
    """Run code where hf_kdnas can't be imported, and return what it prints; it has to succeed."""

    def run(
        code: str,
        *arguments: str,
        stdin: str = "",
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        done = subprocess.run(
            [sys.executable, "-c", f'{_BLOCKED}{code}\nassert "hf_kdnas" not in sys.modules', *arguments],
            input=stdin,
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def tiny_bert_config():
    """A BERT of 3 layers x 32 with two labels."""
    from transformers import BertConfig

    return BertConfig(**_SIZES, num_labels=2)


@pytest.fixture
def tiny_roberta_config():
    """A RoBERTa of 3 layers x 32 with two labels; positions count from the padding index + 1."""
    from transformers import RobertaConfig

    return RobertaConfig(**_ROBERTA, num_labels=2)


@pytest.fixture
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory):
    """A real fast BERT tokenizer over a small vocabulary."""
    return _tokenizer(tmp_path_factory.mktemp("tokenizer"))


def _tokenizer(folder: Path):
    from transformers import BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocabulary += [f"[unused{index}]" for index in range(120 - len(vocabulary))]
    file = folder / "vocab.txt"
    file.write_text("\n".join(vocabulary), encoding="utf-8")
    return BertTokenizerFast(vocab=str(file), vocab_file=str(file), model_max_length=64)


@pytest.fixture
def make_model() -> Callable:
    """Build a sequence classifier from a config, seeded, in evaluation mode."""
    import torch
    from transformers import AutoModelForSequenceClassification

    def build(config, seed: int = 0):
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_config(config).eval()

    return build


@pytest.fixture
def tiny_project(tmp_path: Path, tiny_bert_config, tiny_tokenizer) -> Path:
    """A folder with a tiny teacher without a head, reviews, and a recipe that is done in seconds."""
    return _project(tmp_path, tiny_bert_config, tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished `kdnas distill` of the tiny project, in `run`; only to be read."""
    from transformers import BertConfig

    from hf_kdnas import cli

    folder = tmp_path_factory.mktemp("tiny-run")
    _project(folder, BertConfig(**_SIZES, num_labels=2), _tokenizer(folder))
    arguments = ["distill", "--config", str(folder / "recipe.yaml"), "--student", "2L-16H-32F-2A-gelu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDNAS_CACHE", str(folder / "kdnas-cache"))
        assert cli.main(arguments) == 0
    return folder / "run"


def _project(folder: Path, config, tokenizer) -> Path:
    import random

    import torch
    from transformers import BertModel

    torch.manual_seed(0)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    BertModel(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rng = random.Random(0)
    good, bad, other = WORDS[13:19], WORDS[19:25], WORDS[:13]
    lines = ["text,label"]
    for _ in range(300):
        label = rng.choice(["rotten", "fresh"])
        words = rng.choices(other, k=rng.randint(2, 12)) + rng.choices(good if label == "fresh" else bad, k=2)
        rng.shuffle(words)
        lines.append(f"{' '.join(words)},{label}")
    (folder / "reviews.csv").write_text("\n".join(lines), encoding="utf-8")
    (folder / "recipe.yaml").write_text(
        f"""
name: tiny
output_dir: {folder / "run"}
teacher:
  model: {folder / "base"}
  fine_tune: {{epochs: 4, learning_rate: 3e-3, batch_size: 16, precision: fp32}}
data:
  path: {folder / "reviews.csv"}
  text: text
  labels: [rotten, fresh]
  max_length: 32
  reporting_fraction: 0.2
  selection_fraction: 0.2
distillation:
  training: {{epochs: 2, learning_rate: 1e-3, batch_size: 16, precision: fp32}}
search:
  episodes: 2
  candidates: 3
  proxy_fraction: 0.5
  proxy: {{epochs: 1, learning_rate: 1e-3, batch_size: 16, precision: fp32}}
  finalists: 2
  baselines: [every-second-layer]
latency: {{sequence_length: 16, rounds: 5, warmup: 1}}
""",
        encoding="utf-8",
    )
    return folder


@pytest.fixture
def adamw_steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Learning rate and norm of the gradients at each step of AdamW, in the place of the step."""
    import torch

    steps: list[tuple[float, float]] = []

    def step(optimiser: torch.optim.AdamW) -> None:
        [group] = optimiser.param_groups
        gradients = [each.grad.norm() for each in group["params"] if each.grad is not None]
        steps.append((group["lr"], torch.stack(gradients).norm().item()))

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return steps
