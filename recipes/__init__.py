"""What to do (recipes) and what was done (the manifest of an artifact folder). Imports without torch."""
