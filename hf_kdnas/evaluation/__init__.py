"""Fine-tune and score a model over the tasks of GLUE."""
