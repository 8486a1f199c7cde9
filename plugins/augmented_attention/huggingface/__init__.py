"""The operator inside transformers models: attention function, cache, model classes, step model."""
