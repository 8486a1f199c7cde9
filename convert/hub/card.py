"""The model card: written from the manifest, so that it says what was made and measured, and nothing else."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lineahead.convert.hub.contents import CARD
from lineahead.convert.hub.licence import Licence
from lineahead.convert.hub.trial import Trial
from lineahead.recipes.kind import kind_of
from lineahead.recipes.manifest import Evaluation, Manifest

MARKER = "<!-- Written by `lineahead push`. Delete this line to keep your own changes. -->"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
TASKS = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSeq2SeqLM": "text2text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModel": "feature-extraction",
}


def is_own(folder: Path) -> bool:
    """Whether the folder holds a card that its user wrote or changed, which is kept."""
    path = folder / CARD
    return path.is_file() and MARKER not in path.read_text(encoding="utf-8", errors="replace")


def render(
    folder: Path,
    manifest: Manifest,
    *,
    repo: str,
    licence: Licence,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    trial: Trial | None = None,
    certificate: dict[str, Any] | None = None,
    prompt: str,
) -> str:
    """The card's text, header included.

    Args:
        folder: the artifact.
        manifest: its manifest.
        repo: where it goes.
        licence: inherited from the base model.
        base_model: Hub id of the original; where the manifest says when None.
        datasets: Hub ids of training data; those of the recipe are added.
        trial: what the usage example printed; None when it was not run.
        certificate: of ``verify --certificate``.
        prompt: of the usage example.
    """
    base = base_model or (manifest.base.reference if _from_hub(manifest) else None)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(
        ModelCard.from_template(
            _header(folder, manifest, repo, licence, base, datasets, config),
            template_path=str(TEMPLATE),
            marker=MARKER,
            repo=repo,
            title=repo.rpartition("/")[2],
            base_url=f"https://huggingface.co/{base}" if base else None,
            base_name=base or _public_name(manifest.base.reference),
            licence=licence.identifier,
            licence_name=licence.name,
            licence_link=licence.link,
            non_commercial=licence.non_commercial,
            prompt=json.dumps(prompt, ensure_ascii=False),
            shell_prompt=shlex.quote(prompt),
            trial=trial,
            trial_text=trial.text.replace("~~~~", "~ ~ ~ ~") if trial else None,
            custom_generate=(folder / "custom_generate" / "generate.py").is_file(),
            certificate=certificate,
            certificate_drafters=", ".join(map(str, certificate["drafters"])) if certificate else None,
            commands=_commands(manifest, base, repo),
            kind=kind_of(config),
            auto=next(iter(_heads(config)), "AutoModelForCausalLM"),
            dtype=config.get("dtype") or config.get("torch_dtype") or "float32",
            **_figures(manifest),
        )
    )


def _figures(manifest: Manifest) -> dict[str, Any]:
    model = manifest.model
    drafts = [f"{one.kind}, {one.heads} heads over {one.vocabulary:,} tokens" for one in manifest.drafts]
    graphs = [f"`{one.file}` ({one.precision}, {one.bytes / 1e6:.0f} MB)" for one in manifest.exports]
    return {
        "linear": len(model.linear_layers),
        "layers": model.layers,
        "preset": manifest.recipe.get("method", {}).get("preset", "linear attention"),
        "version": manifest.lineahead,
        "trained": bool(manifest.training),
        "state": f"{model.state_bytes / 1e6:.2f} MB",
        "per_token": f"{model.bytes_per_token:,} bytes" if model.bytes_per_token else None,
        "parameters": f"{model.parameters:,}",
        "new_parameters": f"{model.new_parameters:,}",
        "model_type": manifest.base.model_type,
        "positions": f"{model.max_position:,} tokens" if model.max_position else "not limited by a table",
        "drafts": "; ".join(drafts) or "none",
        "heads": bool(manifest.drafts),
        "graphs": ", ".join(graphs) or "none",
        "evaluations": manifest.evaluations,
        "recalls": manifest.recalls,
        "agreements": manifest.agreements,
        "tasks": manifest.tasks,
        "training": [{**one.model_dump(), "data": _public_name(one.data)} for one in manifest.training],
        "tools": ", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
    }


def _header(
    folder: Path,
    manifest: Manifest,
    repo: str,
    licence: Licence,
    base: str | None,
    datasets: Sequence[str],
    config: dict[str, Any],
) -> ModelCardData:
    task = next((TASKS[one] for one in _heads(config)), None)
    used = manifest.recipe.get("data", {}).get("dataset")
    named = [*datasets, *([used] if isinstance(used, str) and HUB_ID.fullmatch(used) else [])]
    tags = ["lineahead", "linear-attention"]
    if (folder / "custom_generate" / "generate.py").is_file():
        tags += ["custom_generate", "speculative-decoding"]
    if manifest.exports:
        tags.append("onnx")
    results = [result for one in manifest.evaluations for result in _results(one)] if task else []
    return ModelCardData(
        base_model=base,
        base_model_relation="finetune" if base else None,
        library_name="transformers",
        pipeline_tag=task,
        datasets=list(dict.fromkeys(named)) or None,
        license=licence.identifier,
        license_name=licence.name,
        license_link=licence.link,
        tags=tags,
        model_name=repo.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )


def _heads(config: dict[str, Any]) -> list[str]:
    """The auto classes of transformers that load the model."""
    return [name for name in config.get("auto_map", {}) if name in TASKS]


def _results(evaluation: Evaluation) -> list[EvalResult]:
    """Perplexity and bits per byte of this model; the original's are in the table of the card."""
    where: dict[str, Any] = {
        "task_type": "text-generation",
        "dataset_type": "text",
        "dataset_name": evaluation.file,
        "dataset_args": {
            "sha256": evaluation.file_hash,
            "context": evaluation.context,
            "stride": evaluation.stride,
        },
    }
    found = [
        ("perplexity", "Perplexity", evaluation.perplexity),
        ("bits_per_byte", "Bits per byte", evaluation.bits_per_byte),
    ]
    return [
        EvalResult(**where, metric_type=kind, metric_name=name, metric_value=round(values["student"], 4))
        for kind, name, values in found
        if "student" in values
    ]


def _commands(manifest: Manifest, base: str | None, repo: str) -> str:
    """What makes this artifact from the original, and publishes it."""
    source = base or _public_name(manifest.base.reference)
    revision = f" --revision {manifest.base.revision}" if manifest.base.revision else ""
    recipe = manifest.recipe.get("name") or "recipe.yaml"
    lines = [f"lineahead convert {shlex.quote(source)} model --recipe {shlex.quote(str(recipe))}{revision}"]
    pretrained = manifest.recipe.get("pretrained")
    if manifest.training and not pretrained:
        lines.append("lineahead finetune model")
    if manifest.drafts and not pretrained:
        lines.append("lineahead draft model")
    precisions = sorted({one.precision for one in manifest.exports if one.kind == "verifier"})
    if precisions:
        lines.append("lineahead export onnx model" + "".join(f" --precision {one}" for one in precisions))
    return "\n".join([*lines, f"lineahead push model {repo}"])


def _from_hub(manifest: Manifest) -> bool:
    return manifest.base.revision is not None and HUB_ID.fullmatch(manifest.base.reference) is not None


def _public_name(reference: str) -> str:
    """A reference without the folders of the machine that it was read on."""
    if reference.startswith("package:") or HUB_ID.fullmatch(reference):
        return reference
    return Path(reference).name if reference.startswith(("/", "~", ".", "\\")) else reference


def as_dict(trial: Trial | None) -> dict[str, Any] | None:
    """For JSON."""
    return None if trial is None else asdict(trial)
