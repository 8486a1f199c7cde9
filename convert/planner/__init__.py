"""Which layers to leave softmax, from short probes of perplexity."""
