"""Fine-tuning a linearized checkpoint: data, stages, loop, checkpoints."""
