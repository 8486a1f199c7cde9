"""The operator inside transformers models: attachment, attention function, cache, model class, explicit-state step model."""
