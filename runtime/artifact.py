"""The artifact folder as the runtime sees it: its files, and the numbers that decoding needs."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lineahead.errors import ArtifactError
from lineahead.recipes.json_file import read_object
from lineahead.recipes.kind import kind_of, require_decoder

CONFIG, GENERATION = "config.json", "generation_config.json"
PRECISIONS = ("fp32", "int8", "int4")
LIMIT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length")
UNTABLED_KEYS = (
    "rope_theta",
    "rope_parameters",
    "rope_scaling",
    "rotary_emb_base",
    "rotary_pct",
    "alibi",
    "relative_attention_num_buckets",
)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One artifact folder.

    Attributes:
        folder: where it is.
        vocab_size: rows of the embedding table.
        position_limit: tokens that the position table or the training context covers; None when unlimited.
        learned_positions: whether positions beyond the limit do not exist at all, rather than being merely
            untrained.
        eos: tokens that end a text.
        start: tokens with which an encoder-decoder's own text begins; empty for a decoder, which goes on
            with the prompt.
    """

    folder: Path
    vocab_size: int
    position_limit: int | None
    learned_positions: bool
    eos: frozenset[int]
    start: tuple[int, ...] = ()

    @property
    def reads_sources(self) -> bool:
        """Whether a prompt goes to an encoder, and the text begins anew beside it."""
        return bool(self.start)

    def require_decoder(self, what: str) -> None:
        """Refuse an encoder-decoder.

        Raises:
            ArtifactError: naming `what`, which is asked of it.
        """
        if self.reads_sources:
            require_decoder(self.folder, what)

    def graph(self, precision: str) -> Path:
        """The verifier's ONNX file.

        Raises:
            ArtifactError: when there is none of that precision.
        """
        self.require_decoder("a step graph")
        name = "verifier.onnx" if precision == "fp32" else f"verifier_{precision}.onnx"
        path = self.folder / "onnx" / name
        if not path.is_file():
            have = [one for one in PRECISIONS if one != precision and self._has(one)]
            other = f", or use --precision {have[0]}" if have else ""
            raise ArtifactError(
                f"{self.folder}: no onnx/{name}", hint=f"Run `lineahead export onnx {self.folder}`{other}."
            )
        return path

    def _has(self, precision: str) -> bool:
        name = "verifier.onnx" if precision == "fp32" else f"verifier_{precision}.onnx"
        return (self.folder / "onnx" / name).is_file()

    @property
    def has_draft(self) -> bool:
        """Whether draft heads were exported."""
        return (self.folder / "onnx" / "draft.onnx").is_file()

    @property
    def draft_kind(self) -> str | None:
        """``medusa`` or ``recurrent``; None when no draft was exported."""
        if not self.has_draft:
            return None
        file = self.folder / "draft" / CONFIG
        return str(_read(file).get("model_type", "medusa")) if file.is_file() else "medusa"

    def draft_graph(self) -> Path:
        """The draft heads' ONNX file.

        Raises:
            ArtifactError: when there is none.
        """
        if not self.has_draft:
            raise ArtifactError(
                f"{self.folder}: no onnx/draft.onnx",
                hint="Run `lineahead draft`, then `lineahead export onnx` on it; or use lookup.",
            )
        return self.folder / "onnx" / "draft.onnx"

    def identity(self) -> str:
        """SHA-256 of weights and operator settings: what a saved state belongs to, on any backend.

        Raises:
            ArtifactError: when the folder has no weights.
        """
        return _identity(self.folder)


@cache
def _identity(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ArtifactError(
            f"{folder}: no *.safetensors, so a state cannot be tied to its model",
            hint="Copy the weights beside onnx/.",
        )
    total = hashlib.sha256(json.dumps(_read(folder / CONFIG).get("lineahead"), sort_keys=True).encode())
    for file in files:
        with file.open("rb") as data:
            while block := data.read(1 << 22):
                total.update(block)
    return total.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    return read_object(path, error=ArtifactError, hint="Convert or export the checkpoint again.")


def read_artifact(folder: Path) -> Artifact:
    """Read what decoding needs to know about `folder`.

    Raises:
        ArtifactError: when it is not an artifact folder, its config lacks a number, or it is an encoder,
            which writes no text.
    """
    if not (folder / CONFIG).is_file():
        raise ArtifactError(
            f"{folder}: no {CONFIG}: not an artifact folder", hint="Make one with `lineahead convert`."
        )
    config = _read(folder / CONFIG)
    if kind_of(config) == "encoder":
        raise ArtifactError(
            f"{folder} is an encoder: it writes no text",
            hint="Load it with transformers; docs/two-sided.md says how.",
        )
    text = config.get("text_config", config)
    if not isinstance(text, dict) or not isinstance(text.get("vocab_size"), int):
        raise ArtifactError(f"{folder / CONFIG}: no vocab_size", hint="Convert the checkpoint again.")
    limits = [text[key] for key in LIMIT_KEYS if isinstance(text.get(key), int)]
    generation = _read(folder / GENERATION) if (folder / GENERATION).is_file() else {}
    eos = generation.get("eos_token_id", text.get("eos_token_id"))
    ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(isinstance(token, int) for token in ends):
        raise ArtifactError(
            f"{folder}: eos_token_id is no token number: {eos!r:.60}", hint="Convert the checkpoint again."
        )
    return Artifact(
        folder=folder,
        vocab_size=text["vocab_size"],
        position_limit=min(limits, default=None),
        learned_positions=bool(limits) and not any(text.get(key) for key in UNTABLED_KEYS),
        eos=frozenset(ends),
        start=_start(folder, config, generation),
    )


def _start(folder: Path, config: dict[str, Any], generation: dict[str, Any]) -> tuple[int, ...]:
    """The first tokens of an encoder-decoder's text: its start token, and the one that is always next."""
    if kind_of(config) == "decoder":
        return ()
    names = ("decoder_start_token_id", "forced_bos_token_id")
    first, forced = (generation.get(name, config.get(name)) for name in names)
    if not isinstance(first, int) or not isinstance(forced, int | None):
        raise ArtifactError(
            f"{folder}: decoder_start_token_id is no token number: {first!r:.60}",
            hint="Set it in generation_config.json, as the original checkpoint does.",
        )
    return (first,) if forced is None else (first, forced)
