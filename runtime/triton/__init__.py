"""NVIDIA's Triton Inference Server around the engine: its model repository, and the model that runs in it."""
