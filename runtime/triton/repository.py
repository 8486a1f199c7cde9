"""Writing a Triton model repository from an artifact."""

import shutil
from pathlib import Path

from lineahead.errors import InputError
from lineahead.recipes.files import replacing
from lineahead.runtime.artifact import Artifact, read_artifact
from lineahead.runtime.engine.options import EngineOptions
from lineahead.runtime.triton.model import ARTIFACT
from lineahead.runtime.triton.signature import INPUTS, OUTPUTS, Tensor

VERSION = "1"
MODEL = '''"""Triton's Python backend looks for this class here; the work is done by the installed package."""

from lineahead.runtime.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
# What decoding reads beside the graphs; tokenizers come in several files.
ALWAYS = ("config.json", "generation_config.json", "lineahead.json", "chat_template.jinja")
TOKENIZERS = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt")


def write_repository(
    artifact: Path, repository: Path, options: EngineOptions, *, name: str | None = None, instances: int = 1
) -> Path:
    """Write ``REPOSITORY/NAME/{config.pbtxt,1/model.py,1/artifact/}``; one that is there is replaced.

    Args:
        artifact: folder with the graphs or engines that `options` need.
        repository: the model repository; other models in it are left alone.
        options: become the configuration's parameters.
        name: of the model; the artifact's folder's when None.
        instances: processes that load the model, each with slots of its own.

    Returns:
        The model's folder.

    Raises:
        ArtifactError: when something that the options need is missing.
        InputError: when the name cannot be a folder's.
        StorageError: when a file cannot be written.
    """
    name = name or artifact.resolve().name
    if not name or Path(name).name != name or name.startswith("."):
        raise InputError(f"{name!r} cannot name a model", hint="Give --name a plain word.")
    files = needed_files(read_artifact(artifact), options)
    target = repository / name
    with replacing(target) as temporary:
        for file in files:
            copy = temporary / VERSION / ARTIFACT / file.relative_to(artifact)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copy)
        (temporary / VERSION / "model.py").write_text(MODEL, encoding="utf-8")
        (temporary / "config.pbtxt").write_text(configuration(name, options, instances), encoding="utf-8")
    return target


def needed_files(artifact: Artifact, options: EngineOptions) -> list[Path]:
    """The artifact's files that decoding with `options` reads."""
    folder = artifact.folder
    if options.backend == "eager":
        return sorted(path for path in folder.rglob("*") if path.is_file() and "onnx" not in path.parts)
    files = [folder / name for name in ALWAYS if (folder / name).is_file()]
    files += [path for pattern in TOKENIZERS for path in folder.glob(pattern)]
    if options.backend == "tensorrt":
        engines = sorted(path for path in (folder / "tensorrt").rglob("*") if path.is_file())
        if not engines:
            raise InputError(
                f"{folder}: no tensorrt/ engines", hint=f"Run `lineahead export tensorrt {folder}`."
            )
        files += engines
    else:
        graph = artifact.graph(options.precision)
        files += [graph, *graph.parent.glob(f"{graph.name}.data")]
    if options.speculate in ("medusa", "recurrent", "auto") and artifact.has_draft:
        draft = artifact.draft_graph()
        files += [*draft.parent.glob(f"{draft.stem}*")]
        files += (folder / "draft").glob("*.json")
    return sorted(set(files))


def configuration(name: str, options: EngineOptions, instances: int) -> str:
    """The text of ``config.pbtxt``."""
    kind = "KIND_GPU" if options.device == "cuda" else "KIND_CPU"
    parameters = "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in options.model_dump().items()
    )
    return f"""\
name: "{name}"
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
instance_group {{ count: {instances} kind: {kind} }}
{_tensors("input", INPUTS, " optional: true")}
{_tensors("output", OUTPUTS, "")}
{parameters}
"""


def _tensors(field: str, tensors: tuple[Tensor, ...], more: str) -> str:
    return "\n".join(
        f'{field} {{ name: "{one.name}" data_type: TYPE_{one.kind} dims: {one.size}{more} }}'
        for one in tensors
    )
