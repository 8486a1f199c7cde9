"""The operator inside transformers models: attention function, cache, model classes, explicit-state step model."""
