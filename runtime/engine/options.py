"""An engine's settings as one flat, typed object: what Ray's and Triton's config files carry."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lineahead.runtime.engine.engine import Engine
from lineahead.runtime.engine.observer import Observer
from lineahead.runtime.engine.request import EngineConfig


class EngineOptions(BaseModel):
    """Named as the options of ``lineahead serve``; unknown names are refused, numbers may be text.

    Attributes:
        backend: what decodes.
        precision: of the weights.
        device: where to decode.
        threads: of the backend; 0 lets it choose.
        speculate: what proposes tokens.
        draft_length: most tokens proposed per step.
        governed: propose only where it pays.
        slots: requests decoded together.
        queue: requests that may wait.
        chunk: prompt tokens per call.
        prefill_budget: prompt tokens read between two decoding steps.
        prefix_cache: MiB of cached states.
        ignore_position_limit: go on past the trained positions.
        max_tokens: most tokens of an answer.
        timeout: seconds after which a request is cut.
    """

    model_config = ConfigDict(extra="forbid")

    backend: Literal["onnxruntime", "eager", "tensorrt"] = "onnxruntime"
    precision: Literal["fp32", "fp16", "bf16", "int8", "int4"] = "fp32"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = Field(0, ge=0)
    speculate: Literal["none", "lookup", "medusa", "recurrent", "auto"] = "none"
    draft_length: int = Field(5, ge=1)
    governed: bool = True
    slots: int = Field(16, ge=1)
    queue: int = Field(256, ge=1)
    chunk: int = Field(64, ge=1)
    prefill_budget: int = Field(64, ge=1)
    prefix_cache: int = Field(256, ge=0)
    ignore_position_limit: bool = False
    max_tokens: int = Field(2048, ge=1)
    timeout: float = Field(600.0, gt=0)

    def open(
        self, folder: Path, observer: Observer | None = None, *, threads: int | None = None, **more: Any
    ) -> Engine:
        """Load an artifact into an engine, not yet started.

        Args:
            folder: of the artifact.
            observer: who is told about times.
            threads: instead of the option's 0.
            more: further arguments of :meth:`Generator.load`.

        Raises:
            ArtifactError, BackendError, InputError: as :meth:`Engine.load`.
        """
        config = EngineConfig(
            slots=self.slots,
            queue=self.queue,
            chunk=self.chunk,
            prefill_budget=self.prefill_budget,
            prefix_cache_bytes=self.prefix_cache << 20,
            default_timeout_s=self.timeout,
            governed=self.governed,
            ignore_position_limit=self.ignore_position_limit,
        )
        return Engine.load(
            folder,
            config=config,
            observer=observer,
            backend=self.backend,
            precision=self.precision,
            provider=self.device,
            threads=self.threads or threads or 0,
            drafter=self.speculate,
            draft_nodes=self.draft_length,
            **more,
        )
