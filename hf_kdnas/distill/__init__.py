"""Distillation: objectives over captured signals, cached teachers, and a Trainer."""
