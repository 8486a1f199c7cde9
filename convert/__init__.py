"""From a checkpoint to a linearized, fine-tuned, exported one."""
