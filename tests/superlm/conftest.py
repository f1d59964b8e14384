"""A tiny teacher without a head, texts, and the recipe of SuperLMs that are trained in seconds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from hf_kdnas.recipe import Recipe, load_recipe

WORDS = "the film plot actor scene story is was great superb warm fine dull awful weak slow".split()

RECIPE = """
name: tiny
output_dir: {root}/run
teacher: {{model: {root}/teacher}}
data: {{path: {root}/text, reporting_split: validation, max_length: 16}}
superlm:
  spaces:
    narrow:
      {{num_hidden_layers: [1, 2], hidden_size: [16], num_attention_heads: [2, 4], intermediate_size: [32]}}
    wide:
      {{num_hidden_layers: [2, 3], hidden_size: [24, 32], num_attention_heads: [4], intermediate_size: [64]}}
  relation_heads: 4
  held_out: 6
  training:
    {{steps: 4, batch_size: 4, learning_rate: 1e-3, save_steps: 2, evaluation_steps: 2, precision: fp32}}
"""


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A training and a held-out text of random words."""
    rng = random.Random(0)
    for split, lines in (("train", 80), ("validation", 30)):
        text = "\n".join(" ".join(rng.choices(WORDS, k=rng.randint(3, 12))) for _ in range(lines))
        (tmp_path / f"text.{split}.txt").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def recipe_file(texts: Path, tiny_bert_config, tiny_tokenizer) -> Path:
    """The recipe, beside its teacher and its texts."""
    import torch
    from transformers import BertModel

    torch.manual_seed(0)
    BertModel(tiny_bert_config).save_pretrained(texts / "teacher")
    tiny_tokenizer.save_pretrained(texts / "teacher")
    file = texts / "tiny.yaml"
    file.write_text(RECIPE.format(root=texts), encoding="utf-8")
    return file


@pytest.fixture
def recipe(recipe_file: Path) -> Recipe:
    return load_recipe(str(recipe_file))
