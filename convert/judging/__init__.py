"""How a converted model compares with its original: recall, agreement, tasks, one report."""
