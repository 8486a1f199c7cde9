"""Checkpoints in GGUF files: header, weights, tokenizer."""
