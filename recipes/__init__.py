"""What to do (recipes) and what was done (manifests), as typed data."""
