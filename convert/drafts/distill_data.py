"""``lineahead distill-data``: a model's own text as a file, for training where there is no corpus."""

import gzip
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lineahead.convert.drafts.self_data import sample_tokens
from lineahead.convert.evaluate import require_positions
from lineahead.convert.source import load_source
from lineahead.convert.training.checkpoint import digest
from lineahead.convert.training.devices import accelerate_on
from lineahead.convert.training.progress import Progress
from lineahead.convert.training.weights import freeze, resolve_precision
from lineahead.errors import InputError, TrainingError
from lineahead.recipes.files import replacing, write_text
from lineahead.recipes.schema import Samples

SETTINGS = "settings.json"
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written.

    Attributes:
        file: the file.
        texts: lines in it.
        tokens: of all texts.
    """

    file: Path
    texts: int
    tokens: int


def write_samples(
    model: str,
    output: Path,
    samples: Samples,
    *,
    seed: int,
    precision: Precision,
    device: str | None,
    progress: Progress,
) -> Written:
    """Sample texts from a checkpoint into JSON lines ``{"text": ...}``, special tokens spelled out.

    Finished batches wait in ``<output>.samples`` until all are there, so a killed run goes on where it was.

    Args:
        model: reference of the checkpoint, as for ``convert``.
        output: a ``.jsonl`` or ``.jsonl.gz`` file, replaced as a whole.
        samples: how many, how long, from which prompts.
        seed: of the sampling.
        precision: of the weights, as in a recipe.
        device: ``cpu`` or ``cuda``; what accelerate finds when None.
        progress: where to report.

    Raises:
        InputError: for another kind of file, or samples longer than the model's position table.
        TrainingError: when the batches that wait there were made with other settings.
        LineaheadError: as ``load_source`` and ``sample_tokens`` say.
    """
    if not output.name.endswith((".jsonl", ".jsonl.gz")):
        raise InputError(f"{output}: not a .jsonl or .jsonl.gz file", hint="Name it so: recipes read those.")
    folder = output.with_name(output.name + ".samples")
    _settle(
        folder,
        {"model": model, "samples": samples.model_dump(mode="json"), "seed": seed, "precision": precision},
    )
    loaded = load_source(model)
    config: Any = loaded.model.config.get_text_config(decoder=True)
    require_positions(samples.sequence_length, getattr(config, "max_position_embeddings", None))
    place = accelerate_on(device).device
    freeze(loaded.model, resolve_precision(precision, place))
    loaded.model.to(place)
    tokens = sample_tokens(
        loaded.model,
        loaded.tokenizer,
        samples,
        seed=seed,
        folder=folder,
        progress=progress,
        softmax=False,
    )
    rows = tokens.ids.reshape(-1, samples.sequence_length)
    texts = [loaded.tokenizer.decode(row.tolist(), skip_special_tokens=False) for row in rows]
    _write(output, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    shutil.rmtree(folder)
    return Written(file=output, texts=len(texts), tokens=tokens.ids.size)


def _settle(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse waiting batches of other settings, and note these."""
    path, mine = folder / SETTINGS, digest(settings)
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"digest": mine}
    if found["digest"] != mine:
        raise TrainingError(
            f"{folder}: unfinished samples of other settings",
            hint="Repeat that command to finish them, or delete the folder to start over.",
        )
    write_text(path, json.dumps({"digest": mine, **settings}) + "\n")


def _write(output: Path, text: str) -> None:
    """The same bytes for the same text: gzip's header gets neither name nor time."""
    data = text.encode()
    if output.suffix == ".gz":
        held = io.BytesIO()
        with gzip.GzipFile(fileobj=held, mode="wb", filename="", mtime=0) as file:
            file.write(data)
        data = held.getvalue()
    with replacing(output) as temporary:
        temporary.write_bytes(data)
