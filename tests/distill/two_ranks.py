"""What the ranks of test_ranks.py run: `two_ranks.py FOLDER BATCH_SIZE`.

Writes the gradients of the first step, then the weights of a whole run and of the same run resumed in
the middle of its second epoch, and the weights of runs whose loss reads no logits. In double precision, so
that rounding hides nothing.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, BertConfig, TrainerCallback

from hf_kdnas.distill.arguments import DistillationArguments
from hf_kdnas.distill.trainer import DistillationTrainer
from hf_kdnas.processes import leave_processes

ROWS = 64

# Of these the loss doesn't reach the head, or much more.
HEADLESS = {
    "hidden": {"hidden": {"layers": "last"}},
    "relations": {"relations": {}},
    "embeddings": {"embeddings": {}},
    "sentence": {"sentence": {}},
}


class FirstGradients(TrainerCallback):
    """Keeps the gradients of the first step, of the student and of the learned maps."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.found = {}

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        for module in (self.trainer.model, self.trainer.criterion):
            for name, parameter in module.named_parameters():
                self.found.setdefault(name, parameter.grad.clone())


def model_of(layers: int, hidden: int, seed: int):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=120,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return AutoModelForSequenceClassification.from_config(config).double()


def rows_of(count: int):
    draw = random.Random(0)
    lengths = [draw.choice((2, 3, 60)) for _ in range(count)]
    return [
        {"input_ids": [draw.randrange(5, 120) for _ in range(length)], "labels": draw.randrange(2)}
        for length in lengths
    ]


def trainer_of(folder: Path, batch_size: int, **options) -> DistillationTrainer:
    defaults = {
        "output_dir": str(folder),
        "objectives": {"logits": {}, "hidden": {"layers": "searched"}, "relations": {}, "task": {}},
        "per_device_train_batch_size": batch_size,
        "max_grad_norm": 0.0,
        "learning_rate": 1e-3,
        "num_train_epochs": 2,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "save_steps": 1,
        "save_strategy": "steps",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    arguments = DistillationArguments(**defaults | options)
    # Ranks may begin with other students: the first one's counts.
    student, teacher = model_of(2, 16, seed=1 + int(os.environ.get("RANK", "0"))), model_of(3, 32, seed=0)
    trainer = DistillationTrainer(student, arguments, teacher, train_dataset=rows_of(ROWS))
    trainer.criterion.double()
    return trainer


def weights_of(trainer: DistillationTrainer):
    return {
        name: parameter.detach().clone()
        for module in (trainer.model, trainer.criterion)
        for name, parameter in module.named_parameters()
    }


def headless(folder: Path, size: int, objectives):
    trainer = trainer_of(folder, size, objectives=objectives, save_strategy="no")
    trainer.train()
    return weights_of(trainer)


def run(folder: Path, size: int) -> None:
    trainer = trainer_of(folder / "whole", size)
    gradients = FirstGradients(trainer)
    trainer.add_callback(gradients)
    trainer.train()
    resumed = trainer_of(folder / "whole", size, save_total_limit=10)
    resumed.train(resume_from_checkpoint=str(folder / "whole" / "checkpoint-3"))
    others = {name: headless(folder / name, size, objectives) for name, objectives in HEADLESS.items()}
    if int(os.environ.get("RANK", "0")) == 1:
        torch.save(others, folder / "second.pt")
    if trainer.is_world_process_zero():
        results = {
            "ranks": trainer.accelerator.num_processes,
            "gradients": gradients.found,
            "weights": weights_of(trainer),
            "resumed": weights_of(resumed),
            "logs": trainer.state.log_history[0],
            "headless": others,
        }
        torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
    leave_processes()
