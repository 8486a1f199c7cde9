"""Load the model to convert, from the Hub, a folder, a GGUF file, or a GGUF file in an installed package."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    __version__,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from lineahead.convert.gguf import tokenizer as gguf_tokenizer
from lineahead.convert.gguf import weights as gguf_weights
from lineahead.convert.gguf.file import open_gguf
from lineahead.convert.intact import check_finite, check_tokenizer_files, read_json, weight_files
from lineahead.convert.locate import GGUF, Location, locate
from lineahead.convert.model_class import model_class
from lineahead.errors import ArchitectureError, CheckpointError, InputError, LineaheadError
from lineahead.recipes.files import sha256
from lineahead.recipes.manifest import Base

logger = logging.getLogger(__name__)
LINEAR = "lineahead"
Loaded = tuple[PreTrainedModel, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class LoadedSource:
    """A checkpoint in memory.

    Attributes:
        model: in evaluation mode, on the CPU.
        tokenizer: its tokenizer, with its chat template.
        provenance: where it came from, with the SHA-256 of every file that was read.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    provenance: Base


def load_source(
    reference: str | Path,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype | None = None,
    tokenizer: str | Path | None = None,
) -> LoadedSource:
    """Load a softmax-attention model and its tokenizer, refusing by name what is damaged.

    Args:
        reference: a folder, a ``.gguf`` file, ``package:NAME``, a Hub id, or ``owner/name/file.gguf``.
        revision: branch, tag or commit on the Hub.
        cache_dir: of the Hub; its default when None. ``HF_HUB_OFFLINE`` is respected.
        token: for private models; the saved one when None.
        trust_remote_code: whether to run Python code that comes with the model.
        dtype: of the weights; as stored when None, float32 for GGUF.
        tokenizer: reference of another tokenizer, for checkpoints that lack one.

    Returns:
        The model, its tokenizer, and its provenance.

    Raises:
        InputError: when the reference points nowhere.
        ArchitectureError: when the architecture is not known, or has no head that can be converted.
        CheckpointError: when a file is missing, truncated, pickled or holds NaN, or the Hub is out of reach.
        StorageError: when a download fills the disk.
    """
    found = locate(
        str(reference), revision=revision, cache_dir=cache_dir, token=token, with_code=trust_remote_code
    )
    other = None
    if tokenizer is not None:
        place = locate(str(tokenizer), cache_dir=cache_dir, token=token)
        other = (
            _gguf_tokenizer(place.path) if place.path.is_file() else _tokenizer(place.path, trust_remote_code)
        )
    if found.path.is_dir():
        with _quiet():
            loaded = _from_folder(found, str(reference), dtype, other, trust_remote_code)
    elif found.path.suffix == GGUF:
        with _quiet():
            loaded = _from_gguf(found, str(reference), dtype, other)
    else:
        raise InputError(
            f"{found.path}: neither a folder nor a .gguf file", hint="Name the checkpoint's folder."
        )
    rows = cast(nn.Embedding, loaded.model.get_input_embeddings()).num_embeddings
    if len(loaded.tokenizer) > rows:
        raise CheckpointError(
            f"{found.path}: the tokenizer has {len(loaded.tokenizer)} tokens, the embedding {rows} rows",
            hint="Use the tokenizer that belongs to the model.",
        )
    logger.info(
        "%s: %s, %d parameters", reference, type(loaded.model).__name__, loaded.model.num_parameters()
    )
    return loaded


def _from_folder(
    found: Location,
    reference: str,
    dtype: torch.dtype | None,
    tokenizer: PreTrainedTokenizerBase | None,
    trust_remote_code: bool,
) -> LoadedSource:
    folder = found.path
    config = _config(folder, trust_remote_code)
    made = _class(folder, config)
    files = weight_files(folder)
    if tokenizer is None:
        tokenizer = _tokenizer(folder, trust_remote_code)
    model = _model(made, folder, config, dtype, trust_remote_code)
    check_finite(model, folder, files)
    read = {*files.values(), *(path for path in folder.iterdir() if path.suffix in (".json", ".model"))}
    return LoadedSource(
        model=model,
        tokenizer=tokenizer,
        provenance=Base(
            reference=reference,
            revision=found.revision,
            model_type=config.model_type,
            files={path.name: sha256(path) for path in sorted(read) if path.is_file()},
            trust_remote_code=trust_remote_code,
            license=_license(folder),
        ),
    )


def _config(folder: Path, trust_remote_code: bool) -> PreTrainedConfig:
    raw, path = read_json(folder / "config.json"), folder / "config.json"
    kind = raw.get("model_type")
    if kind == LINEAR:
        raise InputError(f"{folder} is linear already", hint="Name the original checkpoint.")
    if "quantization_config" in raw:
        method = (raw["quantization_config"] or {}).get("quant_method", "unknown")
        raise ArchitectureError(
            f"{path}: weights quantised by {method!r}", hint="Use the unquantised checkpoint."
        )
    if kind not in CONFIG_MAPPING and not (trust_remote_code and "auto_map" in raw):
        own = "auto_map" in raw
        raise ArchitectureError(
            f"{path}: model_type {kind!r} is not known to transformers {__version__}",
            hint="It brings its own code: pass trust_remote_code if you trust it."
            if own
            else "Update transformers, or see `lineahead architectures`.",
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise CheckpointError(f"{path}: {_one_line(error)}", hint="Use an undamaged config.json.") from error
    return cast(PreTrainedConfig, config)


def _class(folder: Path, config: PreTrainedConfig) -> Any:
    if "auto_map" in read_json(folder / "config.json"):
        return AutoModelForCausalLM
    try:
        return model_class(config)
    except ArchitectureError as error:
        raise ArchitectureError(f"{folder / 'config.json'}: {error}", hint=error.hint) from error


def _model(
    made: Any, folder: Path, config: PreTrainedConfig, dtype: torch.dtype | None, trust_remote_code: bool
) -> PreTrainedModel:
    try:
        model, report = cast(
            Loaded,
            made.from_pretrained(
                folder,
                config=config,
                dtype="auto" if dtype is None else dtype,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            ),
        )
    except LineaheadError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: cannot load the weights: {_one_line(error)}", hint="Use an undamaged checkpoint."
        ) from error
    _check_complete(folder, report)
    model.eval()
    return model


def _check_complete(folder: Path, report: dict[str, Any]) -> None:
    """Refuse weights that transformers did not find and made up."""
    missing = sorted(str(name) for name in report.get("missing_keys", ()))
    if missing:
        raise CheckpointError(
            f"{folder}: no tensor {missing[0]!r} ({len(missing)} missing)", hint="Use a complete checkpoint."
        )
    wrong = sorted(str(entry[0]) for entry in report.get("mismatched_keys", ()))
    if wrong:
        raise CheckpointError(
            f"{folder}: tensor {wrong[0]!r} has another shape than the config says",
            hint="Use weights and config of one model.",
        )
    if report.get("unexpected_keys"):
        logger.warning("%s: %d tensors were not used", folder, len(report["unexpected_keys"]))


def _tokenizer(folder: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    check_tokenizer_files(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        usable = bool(tokenizer("a b").input_ids)
    except Exception as error:
        raise CheckpointError(
            f"{folder}: the tokenizer is damaged: {_one_line(error)}",
            hint="Copy the original model's tokenizer files there.",
        ) from error
    if not usable:
        raise CheckpointError(
            f"{folder}: the tokenizer knows no token", hint="Copy the original model's tokenizer files there."
        )
    return cast(PreTrainedTokenizerBase, tokenizer)


def _gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    return gguf_tokenizer.load_tokenizer(open_gguf(path))


def _from_gguf(
    found: Location, reference: str, dtype: torch.dtype | None, tokenizer: PreTrainedTokenizerBase | None
) -> LoadedSource:
    file = open_gguf(found.path)
    entries = gguf_weights.config_entries(file)
    dtype = torch.float32 if dtype is None else dtype
    tokenizer = tokenizer or gguf_tokenizer.load_tokenizer(file)
    config = CONFIG_MAPPING[entries["model_type"]](**{k: v for k, v in entries.items() if k != "model_type"})
    architecture = cast(type[PreTrainedModel], MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
    try:
        model, report = cast(
            Loaded,
            architecture.from_pretrained(
                None,
                config=config,
                state_dict=gguf_weights.state_dict(file, dtype),
                dtype=dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            ),
        )
    except LineaheadError:
        raise
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{found.path}: cannot load the weights: {_one_line(error)}", hint="Use an undamaged file."
        ) from error
    if report.get("unexpected_keys"):
        names = sorted(report["unexpected_keys"])
        raise ArchitectureError(
            f"{found.path}: {names[0]!r} has no place in {architecture.__name__}",
            hint="Use the original checkpoint.",
        )
    _check_complete(found.path, report)
    model.config.architectures = [architecture.__name__]
    model.eval()
    return LoadedSource(
        model=model,
        tokenizer=tokenizer,
        provenance=Base(
            reference=reference,
            revision=found.revision,
            model_type=config.model_type,
            files={found.path.name: sha256(found.path)},
            license=file.metadata.get("general.license") or found.license,
        ),
    )


def _license(folder: Path) -> str | None:
    """The licence that the model card states in its header."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    header = re.match(r"---\s*\n(.*?)\n---\s*\n", card, re.DOTALL)
    try:
        data = yaml.safe_load(header.group(1)) if header else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    value = data.get("license") if isinstance(data, dict) else None
    return value if isinstance(value, str) else None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' reports of several lines: what they hold is checked here."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
