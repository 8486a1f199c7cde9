"""The operator inside transformers models: attention function, cache, model classes, step model.

Checkpoints name parts that a method may have brought itself: the methods are entered first.
"""

from lineahead.plugins.augmented_attention import methods

__all__ = ["methods"]
