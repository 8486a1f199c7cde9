"""The conformance table as a page of Markdown, made from measured cells alone."""

from collections.abc import Iterable, Mapping, Sequence

from lineahead.convert.conformance.cells import ABSENT, BOUND, BOUND_FP64, FORMS, SCENARIOS, Cell

_RANK = ("failed", "ok", "refused", "absent")


def counts(cells: Iterable[Cell]) -> dict[str, int]:
    """How many cells of each status."""
    found = dict.fromkeys(_RANK, 0)
    for cell in cells:
        found[cell.status] += 1
    return found


def as_markdown(cells: Sequence[Cell], versions: Mapping[str, str], commands: Sequence[str]) -> str:
    """The page: forms by scenarios, then families by methods for every form, then every reason once.

    Args:
        cells: measured cells.
        versions: of what was measured.
        commands: that made them.
    """
    number = counts(cells)
    lines = [
        "# Conformance",
        "",
        f"Generated with {', '.join(f'{name} {one}' for name, one in versions.items())} by",
        "",
        "```",
        *commands,
        "```",
        "",
        "Every form of every method is compared with the per-token reference, which runs the whole model in "
        "float64, on tiny models with random weights. A figure is the largest difference of the logits "
        "(of an encoder: its hidden states), relative where they exceed one; "
        f"more than {BOUND:.0e} ({BOUND_FP64:.0e} in float64) is a failure. "
        "`refused`: the package declines by name, for the reason given below. `not run`: not measured; "
        "an empty entry: form and model do not meet.",
        "",
        f"{number['ok']} cells agree, {number['failed']} fail, {number['refused']} are refused; "
        f"in {number['absent']} form and scenario do not meet.",
        "",
        *_forms(cells),
    ]
    for form in FORMS:
        mine = [cell for cell in cells if cell.form == form]
        if mine:
            lines += [f"## {FORMS[form][0].upper()}{FORMS[form][1:]}", "", *_families(cells, form), ""]
    return "\n".join([*lines, *_reasons(cells)]).rstrip() + "\n"


def _forms(cells: Sequence[Cell]) -> list[str]:
    forms = [form for form in FORMS if any(cell.form == form for cell in cells)]
    lines = ["## Forms by scenarios", "", _line("", *(FORMS[form] for form in forms))]
    lines += [_line(*["---"] * (len(forms) + 1))]
    for scenario, meaning in SCENARIOS.items():
        mine = {
            form: [c for c in cells if (c.form, c.scenario) == (form, scenario) and c.status != "absent"]
            for form in forms
        }
        lines += [_line(f"{scenario}: {meaning}", *(_entry(mine[form]) for form in forms))]
    shown = sorted(
        {f"{form}, {scenario}: {why}" for (form, scenario), why in ABSENT.items() if form in forms}
    )
    return [*lines, "", "Empty entries:", "", *(f"- {one}" for one in shown), ""]


def _families(cells: Sequence[Cell], form: str) -> list[str]:
    presets = list(dict.fromkeys(cell.preset for cell in cells))
    lines = [_line("", *presets), _line(*["---"] * (len(presets) + 1))]
    for family, kind in dict.fromkeys((cell.family, cell.kind) for cell in cells):
        mine = [c for c in cells if (c.family, c.kind, c.form) == (family, kind, form)]
        ran = {preset: [cell for cell in mine if cell.preset == preset] for preset in presets}
        entries = [_entry(ran[preset]) if ran[preset] else "not run" for preset in presets]
        lines += [_line(family if kind == "decoder" else f"{family} ({kind})", *entries)]
    return lines


def _entry(cells: Sequence[Cell]) -> str:
    """The worst of some cells: a failure, else the largest error, else a refusal."""
    number = counts(cells)
    if number["failed"]:
        return f"**{number['failed']} failed**"
    errors = [cell.error for cell in cells if cell.error is not None]
    if errors:
        return f"{max(errors):.0e}"
    return "refused" if number["refused"] else ""


def _reasons(cells: Sequence[Cell]) -> list[str]:
    """Every reason of a failure or refusal once, with the subjects that it holds for."""
    lines = []
    for status in ("failed", "refused"):
        reasons: dict[str, dict[str, None]] = {}
        for cell in cells:
            if cell.status == status:
                where = f"{cell.family} {cell.preset}"
                where += f" {cell.form} {cell.scenario}" if status == "failed" else ""
                reasons.setdefault(cell.reason, {})[where] = None
        if reasons:
            lines += [f"## {status.capitalize()}", ""]
            lines += [f"- {reason}: {', '.join(_some(list(names)))}" for reason, names in reasons.items()]
            lines += [""]
    return lines


def _some(names: list[str], most: int = 12) -> list[str]:
    return names if len(names) <= most else [*names[:most], f"and {len(names) - most} more"]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
