"""Load on a server that speaks OpenAI's API, ours or another's, and what its clients see."""
