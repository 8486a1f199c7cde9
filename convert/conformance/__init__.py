"""``lineahead conformance``: every form of every method on every family against the per-token reference."""
