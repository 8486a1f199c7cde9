"""Everything that `lineahead eval` measures beyond perplexity, recorded in the manifest."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from lineahead.convert.checkpoint import load_artifact
from lineahead.convert.evaluate import read_tokens, require_positions
from lineahead.convert.judging.agreement import measure_agreement
from lineahead.convert.judging.pair import Pair
from lineahead.convert.judging.recall import Report, measure_recall
from lineahead.convert.source import load_source
from lineahead.convert.training.leading import leading_token
from lineahead.recipes.kind import require_decoder
from lineahead.recipes.manifest import (
    Agreement,
    Manifest,
    Recall,
    TaskScore,
    read_manifest,
    write_manifest,
)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to measure.

    Attributes:
        recall: context lengths of the recall tests; none for no such tests.
        cases: questions per test and context.
        agreement: text files to compare predictions on.
        contexts: window lengths there.
        tokens: tokens read per file.
        tasks: lm-eval's tasks.
        include: folder with further task files.
        limit: examples per task; all when None.
    """

    recall: Sequence[int] = ()
    cases: int = 16
    agreement: Sequence[Path] = ()
    contexts: Sequence[int] = (1024,)
    tokens: int = 16384
    tasks: Sequence[str] = ()
    include: Path | None = None
    limit: int | None = None

    @property
    def asks(self) -> bool:
        """Whether it is anything at all."""
        return bool(self.recall or self.agreement or self.tasks)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was measured now.

    Attributes:
        recalls: tests of recall.
        agreements: how often both models say the same.
        tasks: scores of lm-eval's tasks.
    """

    recalls: tuple[Recall, ...]
    agreements: tuple[Agreement, ...]
    tasks: tuple[TaskScore, ...]


def judge(
    artifact: Path,
    wanted: Wanted,
    *,
    device: str | None = None,
    report: Report = lambda name, done, total: None,
) -> Found:
    """Measure, and write the results into the manifest; those of the same test and length are replaced.

    Args:
        artifact: the artifact folder.
        wanted: what to measure.
        device: ``cpu`` or ``cuda``; the CPU when None.
        report: called with a name, what is done, and how much there is in all.

    Returns:
        What was measured now.

    Raises:
        InputError: when a text or context is too short or too long, or a task is not known.
        ArtifactError: when the folder is not an artifact of a decoder.
    """
    require_decoder(artifact, "recall, agreement and tasks")
    manifest = read_manifest(artifact)
    longest = max((*wanted.recall, *(wanted.contexts if wanted.agreement else ())), default=0)
    require_positions(longest, manifest.model.max_position)
    student, tokenizer = load_artifact(artifact, device=device)
    pair = Pair(student=student, teacher=_teacher(manifest, device))
    recalls = measure_recall(pair, tokenizer, contexts=wanted.recall, count=wanted.cases, report=report)
    leading = leading_token(tokenizer)
    agreements = [
        measure_agreement(pair, ids, context=context, file=path.name, leading=leading)
        for path in wanted.agreement
        for ids in [read_tokens([path], tokenizer, wanted.tokens, max(wanted.contexts))]
        for context in wanted.contexts
    ]
    tasks: list[TaskScore] = []
    if wanted.tasks:
        from lineahead.convert.judging.tasks import measure_tasks

        tasks = measure_tasks(pair, tokenizer, wanted.tasks, include=wanted.include, limit=wanted.limit)
    new = {(one.test, one.context) for one in recalls}
    read = {(one.file, one.context) for one in agreements}
    scored = {(one.task, one.metric) for one in tasks}
    manifest = read_manifest(artifact)
    updated = manifest.model_copy(
        update={
            "recalls": (*(x for x in manifest.recalls if (x.test, x.context) not in new), *recalls),
            "agreements": (*(x for x in manifest.agreements if (x.file, x.context) not in read), *agreements),
            "tasks": (*(x for x in manifest.tasks if (x.task, x.metric) not in scored), *tasks),
        }
    )
    write_manifest(artifact, updated)
    return Found(recalls=tuple(recalls), agreements=tuple(agreements), tasks=tuple(tasks))


def _teacher(manifest: Manifest, device: str | None) -> PreTrainedModel | None:
    if manifest.base_weights == "original":
        return None
    base = manifest.base
    loaded = load_source(base.reference, revision=base.revision, trust_remote_code=base.trust_remote_code)
    return loaded.model.to(device) if device else loaded.model  # type: ignore[arg-type]
