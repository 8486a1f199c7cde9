"""The recurrent draft on ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lineahead.errors import ArtifactError
from lineahead.runtime.backends.ort_library import Provider, open_graph, reported

HIDDEN, IDS = "hidden_states", "input_ids"
OUTPUTS = ("guess", "tokens", "log_probs")


class OnnxRuntimeRecurrent:
    """Runs one step of ``onnx/draft.onnx``: hidden states ``[N, E]`` and the tokens that follow them."""

    def __init__(self, graph: Path, *, provider: Provider = "cpu", threads: int = 1) -> None:
        """Load the graph, on one thread: a second pool of spinning threads slows both graphs down tenfold.

        Raises:
            ArtifactError: when it is missing or not a recurrent draft's.
            BackendError: when it cannot be loaded on `provider`.
        """
        self._session: Any = open_graph(graph, provider=provider, threads=threads)
        inputs = {one.name for one in self._session.get_inputs()}
        outputs = {one.name for one in self._session.get_outputs()}
        if inputs != {HIDDEN, IDS} or not set(OUTPUTS) <= outputs:
            raise ArtifactError(
                f"{graph}: not a recurrent draft's graph", hint="Run `lineahead export onnx` again."
            )

    def __call__(
        self, hidden: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Guesses ``[N, E]``, candidates ``[N, top]`` and their log-probabilities ``[N, top]``."""
        with reported("the draft failed", "Export it again: `lineahead export onnx`."):
            guess, found, log_probs = self._session.run(list(OUTPUTS), {HIDDEN: hidden, IDS: tokens})
        return guess, found, log_probs
