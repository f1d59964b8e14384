"""What the ranks of test_ranks.py run: `two_ranks.py FOLDER BATCH_SIZE`.

Writes the gradients of the first step, then the weights of a whole run and of the same run resumed in
the middle of its second epoch, and the weights of runs by other objectives. In double precision, so that
rounding hides nothing.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    TrainerCallback,
)

from hf_kdnas.distill.arguments import DistillationArguments
from hf_kdnas.distill.trainer import DistillationTrainer
from hf_kdnas.processes import leave_processes
from hf_kdnas.tasks.masking import Masking

ROWS = 64

# Of the first four the loss doesn't reach the head, or much more; a rank hides more tokens than the other.
OTHERS = {
    "hidden": {"hidden": {"layers": "last"}},
    "relations": {"relations": {}},
    "embeddings": {"embeddings": {}},
    "sentence": {"sentence": {}},
    "mlm": {"mlm": {}},
}
MASKING = Masking(mask_token_id=4, vocab_size=120, special_ids=(0, 1, 2, 3, 4), probability=0.3)


class FirstGradients(TrainerCallback):
    """Keeps the gradients of the first step, of the student and of the learned maps."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.found = {}

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        for module in (self.trainer.model, self.trainer.criterion):
            for name, parameter in module.named_parameters():
                self.found.setdefault(name, parameter.grad.clone())


def model_of(head, layers: int, hidden: int, seed: int):
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
    return head.from_config(config).double()


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
    masked = "mlm" in arguments.objectives
    head = AutoModelForMaskedLM if masked else AutoModelForSequenceClassification
    student = model_of(head, 2, 16, seed=1 + int(os.environ.get("RANK", "0")))
    teacher = model_of(head, 3, 32, seed=0)
    rows = rows_of(ROWS)
    if masked:
        rows = [{"input_ids": row["input_ids"]} for row in rows]
    trainer = DistillationTrainer(student, arguments, teacher, masking=MASKING, train_dataset=rows)
    trainer.criterion.double()
    return trainer


def weights_of(trainer: DistillationTrainer):
    return {
        name: parameter.detach().clone()
        for module in (trainer.model, trainer.criterion)
        for name, parameter in module.named_parameters()
    }


def other(folder: Path, size: int, objectives):
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
    # Neither rank waits for gradients of what is frozen, and the signal that follows from it alone.
    frozen = trainer_of(
        folder / "frozen", size, objectives={"logits": {}, "embeddings": {}}, save_strategy="no"
    )
    frozen.model.bert.embeddings.requires_grad_(False)
    frozen.train()
    others = {name: other(folder / name, size, objectives) for name, objectives in OTHERS.items()}
    if int(os.environ.get("RANK", "0")) == 1:
        torch.save(others, folder / "second.pt")
    if trainer.is_world_process_zero():
        results = {
            "ranks": trainer.accelerator.num_processes,
            "gradients": gradients.found,
            "weights": weights_of(trainer),
            "resumed": weights_of(resumed),
            "logs": trainer.state.log_history[0],
            "others": others,
        }
        torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
    leave_processes()
