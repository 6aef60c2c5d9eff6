"""The training loops, one optimiser step, checkpoints: from a recipe to a finished run."""
