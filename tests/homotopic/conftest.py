"""What tests of narrowing share."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from hf_kdnas.homotopic.importance import no_scores


@pytest.fixture
def make_scores() -> Callable:
    """Scores of a model's units, drawn."""

    def build(model, seed: int = 0):
        draw = torch.Generator().manual_seed(seed)
        return {group: torch.rand(len(zeros), generator=draw) for group, zeros in no_scores(model).items()}

    return build


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Four texts, one of them padded."""
    ids = torch.randint(5, 120, (4, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def make_distillation(tiny_bert_config, make_model) -> Callable:
    """A tiny student that is narrowed in 20 steps: two epochs of 80 rows, in batches of 8."""
    from dataclasses import replace

    from hf_kdnas.architecture import Architecture
    from hf_kdnas.homotopic.run import HomotopicDistillation, total_steps
    from hf_kdnas.homotopic.schedule import plan_segments
    from hf_kdnas.progress import Narrator
    from hf_kdnas.recipe import TrainingSection
    from hf_kdnas.recipe_homotopic import HomotopicSection

    draw = random.Random(0)
    rows = [
        {
            "input_ids": [draw.randrange(5, 120) for _ in range(draw.choice((2, 3, 20)))],
            "labels": draw.randrange(2),
            "index": index,
        }
        for index in range(96)
    ]
    teacher = make_model(tiny_bert_config).requires_grad_(False)

    def build(target: str = "3L-16H-40F-4A-gelu", **changes) -> HomotopicDistillation:
        section = {"target": target, "compactions": 3, "evaluation_steps": 5, "save_steps": 3}
        section |= changes.pop("section", {})
        training = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32"}
        count = changes.pop("count", 80)
        training_section = TrainingSection(**training | changes.pop("training", {}))
        made = HomotopicDistillation(
            teacher=teacher,
            signals=None,
            segments=plan_segments(
                tiny_bert_config,
                Architecture.parse(target),
                total_steps(training_section, count),
                compactions=section["compactions"],
            ),
            section=HomotopicSection(**section),
            training=training_section,
            objectives={
                "logits": {},
                "hidden": {},
                "attention": {},
                "embeddings": {},
                "task": {"weight": 0.1},
            },
            rows=rows[:count],
            held_out=rows[80:],
            masking=None,
            seed=0,
            narrator=Narrator(speaks=False),
        )
        return replace(made, **changes)

    return build
