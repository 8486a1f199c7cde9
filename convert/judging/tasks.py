"""lm-eval's tasks on a converted model and its original, through lm-eval's own class for transformers models.

Registered as the model type ``lineahead`` once this module is imported, so that lm-eval's own functions take
an artifact too: ``lm_eval.simple_evaluate(model="lineahead", model_args="pretrained=FOLDER", tasks=[...])``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lineahead.convert.checkpoint import load_artifact
from lineahead.convert.judging.pair import Pair
from lineahead.errors import InputError, needs_package
from lineahead.recipes.manifest import TaskScore

with needs_package(
    "lm-eval's tasks need the `lm_eval` package", 'Run `pip install "lineahead[eval]"`.', InputError
):
    import lm_eval
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager


@register_model("lineahead")
class LineaheadLM(HFLM):  # type: ignore[misc]
    """An artifact as a model of lm-eval."""

    def __init__(self, pretrained: Any, tokenizer: Any = None, **options: Any) -> None:
        """Take a model and its tokenizer, or load them.

        Args:
            pretrained: a linear model, or an artifact folder.
            tokenizer: the model's; the folder's when None.
            options: as lm-eval's ``HFLM``: ``batch_size``, ``max_length``, ``device``.
        """
        if isinstance(pretrained, str | Path):
            pretrained, tokenizer = load_artifact(Path(pretrained), device=options.get("device"))
        super().__init__(pretrained=pretrained, tokenizer=tokenizer, backend="causal", **options)


def measure_tasks(
    pair: Pair,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
    batch: int = 1,
) -> list[TaskScore]:
    """Scores of teacher and student in lm-eval's tasks.

    Args:
        pair: both models.
        tokenizer: theirs.
        tasks: names of tasks or groups.
        include: folder with further task files.
        limit: examples per task; all when None.
        batch: examples per pass.

    Raises:
        InputError: when lm-eval does not know a task, or cannot read its data.
    """
    manager = TaskManager(include_path=None if include is None else str(include))
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise InputError(
            f"lm-eval has no task {unknown[0]!r}", hint="Name other tasks, or give --include FOLDER."
        )
    values: dict[tuple[str, str], dict[str, float]] = {}
    cases: dict[str, int] = {}
    for reader in pair.readers():
        model = LineaheadLM(reader.model, tokenizer, batch_size=batch)
        with reader.mode():
            try:
                found = lm_eval.simple_evaluate(
                    model,
                    tasks=list(tasks),
                    limit=limit,
                    task_manager=manager,
                    log_samples=False,
                    bootstrap_iters=0,
                )
            except (OSError, ConnectionError) as error:
                raise InputError(
                    f"lm-eval cannot read the data of {', '.join(tasks)}: {error}",
                    hint="Check the network, or name tasks whose data are on this machine.",
                ) from error
        for task, scores in found["results"].items():
            cases[task] = int(found["n-samples"][task]["effective"]) if task in found["n-samples"] else 0
            for metric, value in scores.items():
                if isinstance(value, float) and "_stderr" not in metric:
                    values.setdefault((task, metric), {})[reader.name] = value
    return [TaskScore(task=t, metric=m, cases=cases[t], value=v) for (t, m), v in values.items()]
