"""Reading recipes: YAML files or shipped names, with dotted overrides; mistakes are named with their cure."""

import copy
import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from lineahead.errors import RecipeError
from lineahead.recipes.schema import Part, Recipe

Kind = TypeVar("Kind", bound=Part)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def shipped_pretrained(name: str) -> Path:
    """Folder of the trained parts that come with the package under `name`.

    Raises:
        RecipeError: when there are none.
    """
    known = {path.name: path for path in sorted((Path(__file__).parent / "pretrained").iterdir())}
    if name not in known:
        raise RecipeError(f"no pretrained parts {name!r}", hint=f"Choose one of: {', '.join(known)}.")
    return known[name]


def load_recipe(reference: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        reference: path of a YAML file, or the name of a shipped recipe.
        overrides: ``key.sub=value`` items applied on top; list entries by number
            (``stages.0.tokens=1000``), values in YAML.

    Raises:
        RecipeError: naming the file, the key and the cure.
    """
    return load_yaml(Recipe, reference, shipped_recipes(), overrides)


def load_yaml(
    kind: type[Kind], reference: str | Path, shipped: Mapping[str, Path], overrides: Sequence[str] = ()
) -> Kind:
    """Read a file of settings of some kind; it is named after the file unless it names itself.

    Args:
        kind: its schema.
        reference: path of a YAML file, or a name in `shipped`.
        shipped: the files that come with the package.
        overrides: as in :func:`load_recipe`.

    Raises:
        RecipeError: naming the file, the key and the cure.
    """
    path = _resolve(str(reference), shipped)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path}: cannot read the recipe: {error}", hint="Give a readable YAML file."
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date of month 13, a thousand brackets
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise RecipeError(f"{path}:{line} not valid YAML", hint="Correct the YAML syntax there.") from error
    if not isinstance(data, dict):
        raise RecipeError(
            f"{path}: a recipe is a mapping of keys", hint="See the shipped recipes for examples."
        )
    data.setdefault("name", path.stem)
    return parse(kind, data, str(path), overrides)


def parse_recipe(data: dict[str, Any], origin: str, overrides: Sequence[str] = ()) -> Recipe:
    """Check a recipe given as plain data; `origin` names it in errors, `overrides` as in :func:`load_recipe`.

    Raises:
        RecipeError: naming the key at fault.
    """
    return parse(Recipe, data, origin, overrides)


def parse(kind: type[Kind], data: dict[str, Any], origin: str, overrides: Sequence[str] = ()) -> Kind:
    """Check settings of some kind given as plain data; as :func:`parse_recipe`.

    Raises:
        RecipeError: naming the key at fault.
    """
    data = copy.deepcopy(data)
    for override in overrides:
        _override(data, override)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise _recipe_error(kind, origin, tuple(first["loc"]), first["type"], first["msg"]) from error


def _resolve(reference: str, shipped: Mapping[str, Path]) -> Path:
    path = Path(reference)
    if path.is_file():
        return path
    if reference in shipped:
        return shipped[reference]
    raise RecipeError(f"no recipe {reference!r}", hint=f"Give a YAML file or one of: {', '.join(shipped)}.")


def _recipe_error(
    kind: type[Part], origin: str, loc: tuple[int | str, ...], error: str, message: str
) -> RecipeError:
    key, known = _place(kind, loc)
    if error == "extra_forbidden":
        return RecipeError(f"{origin}: unknown key {key!r}", hint=_nearest(str(loc[-1]), known))
    message = message.removeprefix("Value error, ")
    return RecipeError(
        f"{origin}: {key + ': ' if key else ''}{message}", hint="Correct this key in the recipe."
    )


def _place(kind: type[Part], loc: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """The dotted key of an error's location, and the keys known in the section that it is in."""
    inside: Any = kind
    key: list[str] = []
    known: list[str] = []
    for part in loc:
        sections = list(_sections(inside))
        known = list(dict.fromkeys(name for one in sections for name in one.model_fields)) or known
        tagged = [one for one in sections if part in get_args(_annotation(one, "kind"))]
        if tagged:  # pydantic names the member of a union by its tag, which is no key
            inside = tagged[0]
            continue
        key.append(str(part))
        inside = next((_annotation(one, part) for one in sections if part in one.model_fields), inside)
    return ".".join(key), known


def _annotation(section: type[Part], name: Any) -> Any:
    return section.model_fields[name].annotation if name in section.model_fields else None


def _sections(annotation: Any) -> Iterator[type[Part]]:
    """The sections that a value of this type may be or contain."""
    if inspect.isclass(annotation) and issubclass(annotation, Part):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)


def _nearest(key: str, names: list[str]) -> str:
    match = difflib.get_close_matches(key, names, n=1)
    return f"Did you mean {match[0]!r}?" if match else f"Known keys here: {', '.join(names)}."


def _override(data: dict[str, Any], item: str) -> None:
    """Set one ``a.b=value`` in `data`, making the sections on the way."""
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"override {item!r} is not key=value", hint="Write overrides as section.key=value.")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date of month 13, a thousand brackets
        raise RecipeError(
            f"override {item!r}: the value is not valid YAML", hint="Quote the value."
        ) from error
    *parents, last = key.strip().split(".")
    node: Any = data
    for part in parents:
        node = _child(node, part, item)
    if isinstance(node, list):
        node[_index(node, last, item)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise _no_section(item, last)


def _child(node: Any, part: str, item: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, item)]
    if not isinstance(node, dict):
        raise _no_section(item, part)
    if node.get(part) is None:
        node[part] = {}
    return node[part]


def _index(node: list[Any], part: str, item: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise RecipeError(
            f"override {item!r}: {part!r} is not one of the {len(node)} entries",
            hint="Count the entries from 0.",
        )
    return int(part)


def _no_section(item: str, part: str) -> RecipeError:
    return RecipeError(
        f"override {item!r}: nothing can be set under a plain value at {part!r}", hint="Shorten the key."
    )
