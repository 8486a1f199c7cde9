"""The augmented-attention operator in all its forms."""
