"""Studies: grids of models, tasks and methods under one budget, as YAML files."""
