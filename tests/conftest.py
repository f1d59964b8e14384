"""Tiny real models and tokenizers, built from configs: no test needs the network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

WORDS = (
    "the a film movie plot acting actor scene story is was not very quite so too good great fine superb "
    "warm bad poor dull awful weak slow funny sad long short and but with of in it this that one ending"
).split()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep fine-tuned teachers and signals of tests out of the user's cache."""
    monkeypatch.setenv("KDNAS_CACHE", str(tmp_path / "kdnas-cache"))


@pytest.fixture
def tiny_bert_config():
    """A BERT of 3 layers x 32 with two labels."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=120,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=2,
    )


@pytest.fixture
def tiny_roberta_config():
    """A RoBERTa of 3 layers x 32 with two labels; positions count from the padding index + 1."""
    from transformers import RobertaConfig

    return RobertaConfig(
        vocab_size=120,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=66,
        type_vocab_size=1,
        num_labels=2,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )


@pytest.fixture
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory):
    """A real fast BERT tokenizer over a small vocabulary."""
    from transformers import BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocabulary += [f"[unused{index}]" for index in range(120 - len(vocabulary))]
    file = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
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
