"""Medusa heads on ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lineahead.errors import ArtifactError
from lineahead.runtime.backends.ort_library import Provider, open_graph, reported

HIDDEN, TOKENS, LOG_PROBS = "hidden_states", "tokens", "log_probs"


class OnnxRuntimeHeads:
    """Runs ``onnx/draft.onnx``: hidden states ``[B, E]`` to candidates and their log-probabilities."""

    def __init__(self, graph: Path, *, provider: Provider = "cpu") -> None:
        """Load the graph, on one thread: a second pool of spinning threads slows both graphs down tenfold.

        Raises:
            ArtifactError: when it is missing or not a draft graph.
            BackendError: when it cannot be loaded on `provider`.
        """
        self._session: Any = open_graph(graph, provider=provider, threads=1)
        inputs = {one.name for one in self._session.get_inputs()}
        outputs = {one.name for one in self._session.get_outputs()}
        if inputs != {HIDDEN} or not {TOKENS, LOG_PROBS} <= outputs:
            raise ArtifactError(f"{graph}: not a draft graph", hint="Run `lineahead export onnx` again.")

    def __call__(
        self, hidden: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """``[B, E]`` to tokens ``[B, K, top]`` and log-probabilities ``[B, K, top]``."""
        with reported("the draft heads failed", "Export the heads again: `lineahead export onnx`."):
            tokens, log_probs = self._session.run([TOKENS, LOG_PROBS], {HIDDEN: hidden})
        return tokens, log_probs
