"""Measurements: step cost by context and width, speculation against plain decoding, baselines."""
