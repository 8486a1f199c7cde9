"""Draft models that a linearized checkpoint speculates with."""
