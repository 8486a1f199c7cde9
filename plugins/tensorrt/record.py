"""What an engine file is and where it may run, in a JSON file beside it. Standard library only."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lineahead.errors import ArtifactError

FOLDER, LIBRARY, CACHE = "tensorrt", "liblineahead_plugins.so", "timing.cache"
VERIFIER, PREFILL, DRAFT = "verifier", "prefill", "draft"
PRECISIONS = ("fp32", "fp16", "bf16")
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Sizes that one optimisation profile serves.

    Attributes:
        batch: sequences; fewer are padded.
        nodes: nodes of a call; fewer are padded.
        results: most results of a call.
    """

    batch: int
    nodes: int
    results: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What an engine is bound to.

    Attributes:
        sm: compute capability, e.g. ``sm_90``.
        tensorrt: version, e.g. ``8.6.1``.
        card: name of the GPU.
    """

    sm: str
    tensorrt: str
    card: str = ""

    @property
    def folder(self) -> str:
        """Name of the folder of its engines."""
        return f"{self.sm}-{self.tensorrt}"


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """One engine.

    Attributes:
        kind: ``verifier``, ``prefill`` of chains only, or ``draft``.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        sm: compute capability it was built on.
        tensorrt: version that built it.
        card: GPU it was built on.
        plugin_sha256: of the plugin library it was built with; empty without one.
        graph_sha256: of the ONNX file it was made from.
        buckets: one per optimisation profile, in order.
        difference: largest difference from ONNX Runtime when it was checked, scaled.
        weights: file beside it with the weights that it takes as inputs; empty when it holds them.
    """

    kind: str
    precision: str
    sm: str
    tensorrt: str
    card: str
    plugin_sha256: str
    graph_sha256: str
    buckets: tuple[Bucket, ...]
    difference: float = 0.0
    weights: str = ""

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n", encoding="utf-8")

    def require(self, machine: Machine, plugin_sha256: str, where: Path) -> None:
        """Refuse to load the engine where it was not made for.

        Raises:
            ArtifactError: naming what differs.
        """
        pairs = (
            ("GPU architecture", self.sm, machine.sm),
            ("TensorRT version", self.tensorrt, machine.tensorrt),
            ("plugin library's SHA-256", self.plugin_sha256[:12], plugin_sha256[:12]),
        )
        for what, built, here in pairs:
            if built != here:
                raise ArtifactError(
                    f"{where}: built for {what} {built}, here it is {here}",
                    hint="Build it again here: `lineahead export tensorrt ARTIFACT`, or pass --rebuild.",
                )


def read_record(path: Path) -> EngineRecord:
    """Read a record.

    Raises:
        ArtifactError: when it is missing, damaged or of another format.
    """
    hint = "Build the engine again: `lineahead export tensorrt ARTIFACT`."
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise ArtifactError(f"{path}: written by another version of lineahead", hint=hint)
        data["buckets"] = tuple(Bucket(**one) for one in data["buckets"])
        return EngineRecord(**data)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path}: not an engine's record: {error}", hint=hint) from error


def engine_name(kind: str, precision: str) -> str:
    """File name of an engine."""
    return f"{kind}_{precision}.engine"


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    total = hashlib.sha256()
    with path.open("rb") as data:
        while block := data.read(1 << 22):
            total.update(block)
    return total.hexdigest()
