"""Reading studies: YAML files or shipped names, with dotted overrides, like recipes."""

from collections.abc import Sequence
from pathlib import Path

from lineahead.recipes.load import load_yaml
from lineahead.recipes.study.schema import Study


def shipped_studies() -> dict[str, Path]:
    """The studies that come with the package, by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def load_study(reference: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study.

    Args:
        reference: path of a YAML file, or the name of a shipped study.
        overrides: ``key.sub=value`` items applied on top, as for recipes.

    Raises:
        RecipeError: naming the file, the key and the cure.
    """
    return load_yaml(Study, reference, shipped_studies(), overrides)
