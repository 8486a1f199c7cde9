"""Softmax attention over a cache that grows: what the layers that are not converted run in a step graph."""
