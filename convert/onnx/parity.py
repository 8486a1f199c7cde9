"""Whether an exported step graph says what the eager model says; run in a process that loads both from disk.

``python -m lineahead.convert.onnx.parity ARTIFACT GRAPH PRECISION`` prints one JSON object.
"""

import gc
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from transformers import PreTrainedModel

from lineahead.convert.checkpoint import load_model
from lineahead.convert.onnx.blockwise import CHUNK_ROWS
from lineahead.convert.onnx.quantize import stored_weights
from lineahead.convert.onnx.rollout import Array, Backend, Case, Turn, cases, run
from lineahead.errors import ParityError
from lineahead.plugins import step_graph
from lineahead.plugins.augmented_attention.huggingface.layers import LinearLayer
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
from lineahead.plugins.augmented_attention.huggingface.softmax_layers import SoftmaxLayer
from lineahead.plugins.augmented_attention.huggingface.step_model import StepModel

logger = logging.getLogger(__name__)

OWN_TOKENS = 64
USUAL_WINDOW = 64  # how long the runs are where no layer is converted
LONGEST_WINDOW = 1024
ROWS_FIRST = (torch.nn.Linear, torch.nn.Embedding)  # GPT-2's Conv1D keeps [K, N]
Reference = list[list[list[Array]]]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far a graph is from eager.

    Attributes:
        logits: largest difference over all runs, see :func:`scaled_error`.
        hidden_states: likewise.
        state: likewise, over every state and pending tensor at the end of each run.
        worst_case: the run in which it occurred.
        kl: mean KL divergence of the graph's next-token distributions from float32 eager's; 0 without
            quantisation.
        agreement: how often both prefer the same token.
        rounding: largest relative RMS change of a weight matrix by quantisation.
    """

    logits: float
    hidden_states: float
    state: float
    worst_case: str
    kl: float = 0.0
    agreement: float = 1.0
    rounding: float = 0.0

    @property
    def largest(self) -> float:
        """The largest difference of all."""
        return max(self.logits, self.hidden_states, self.state)

    def figures(self) -> dict[str, float]:
        """For the manifest."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, float)}


def compare(artifact: Path, graph: Path, *, precision: str = "fp32", seed: int = 0) -> Parity:
    """Run eager and `graph` through the same script.

    A quantised graph is compared, with its activations kept in float32, to eager on the dequantised weights:
    what is left
    is rounding, so a wrong zero point or a swapped split is seen. `kl` and `agreement` are of the graph as
    shipped, against float32 eager, on text that the float32 model wrote.

    Args:
        artifact: the artifact folder.
        graph: the ONNX file.
        precision: ``fp32``, ``int8`` or ``int4``.
        seed: of tokens and trees.
    """
    model = StepModel(*_load(artifact))
    script = cases(windows(model), model.model.get_input_embeddings().num_embeddings, seed=seed)
    empty = [x.numpy() for x in model.empty(1, rows=max(OWN_TOKENS + 2, *(case.nodes for case in script)))]
    rounding, text, original = 0.0, [], []
    if precision == "fp32":
        reference = _roll(backend_of(model), script, empty)
    else:
        text = [own_text(model, empty, seed=seed)]
        original = _roll(backend_of(model), text, empty)
        rounding = load_rounded(model, ir.load(graph))
        reference = _roll(backend_of(model), script, empty)
    del model
    gc.collect()
    judged = graph if precision == "fp32" else _exact(graph)
    result = _differences(script, reference, _roll(open_backend(judged), script, empty))
    if precision == "fp32":
        return Parity(**result)
    judged.unlink()
    quality = _quality(original, _roll(open_backend(graph), text, empty))
    return Parity(**result, **quality, rounding=rounding)


def compare_in_subprocess(artifact: Path, graph: Path, *, precision: str = "fp32") -> Parity:
    """:func:`compare` in a fresh interpreter, which shares nothing with the process that exported.

    Raises:
        ParityError: when that process dies.
    """
    command = [sys.executable, "-m", "lineahead.convert.onnx.parity", str(artifact), str(graph), precision]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["no output"])[-1]
        raise ParityError(
            f"{graph.name}: the parity check died: {last}",
            hint=f"Run it by hand: {' '.join(command[1:])}",
        )
    return Parity(**json.loads(process.stdout.splitlines()[-1]))


def windows(model: StepModel) -> tuple[int, ...]:
    """Window of the converted layers, then those of other layers that are short enough to be crossed here.

    Where no layer is converted the first is a usual one: the runs need some length.
    """
    settings = [layer.settings for layer in model.layers if isinstance(layer, LinearLayer)]
    kept = {layer.window for layer in model.layers if isinstance(layer, SoftmaxLayer)}
    first = settings[0].window if settings else USUAL_WINDOW
    return (first, *sorted(size for size in kept if 0 < size <= LONGEST_WINDOW))


def own_text(model: StepModel, empty: Sequence[Array], *, seed: int) -> Case:
    """A text sampled from the model at temperature 1, as one call that returns every row."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = model.model.get_input_embeddings()
    start = model.model.config.get_text_config().bos_token_id
    tokens = [start if isinstance(start, int) and start < embeddings.num_embeddings else 0]
    past, backend = list(empty), backend_of(model)
    length: Array = np.zeros(1, np.int64)
    pending = 0
    one, row = np.ones((1, 1, 1), bool), np.zeros((1, 1), np.int64)
    for _ in range(OWN_TOKENS):
        index = np.zeros((1, pending), np.int64)
        call = [np.array([tokens[-1:]]), one, row, index, np.array([pending]), length]
        logits, _, length, *past = backend([*call, *past])
        pending = 1
        probabilities = torch.from_numpy(logits[0, 0]).softmax(-1)
        tokens.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    nodes = len(tokens)
    turn = Turn(tokens=np.array([tokens]), ancestors=np.tril(np.ones((1, nodes, nodes), bool)), accepted=[[]])
    return Case(name="own text", turns=[turn], all_rows=True)


def load_rounded(model: StepModel, graph: ir.Model) -> float:
    """Put a quantised graph's weights, as float32, into the eager model.

    Returns:
        The largest relative RMS change of a weight matrix.
    """
    worst = 0.0
    for name, matrix in stored_weights(graph):
        weight = model.get_parameter(name.removesuffix(".T")).data
        rows_first = isinstance(model.get_submodule(name.removesuffix(".T").rpartition(".")[0]), ROWS_FIRST)
        target = weight if rows_first else weight.T
        worst = max(worst, _relative_change(target, matrix))
        target.copy_(torch.from_numpy(matrix))
    return worst


def _relative_change(before: torch.Tensor, after: Array) -> float:
    """RMS of the change over RMS, by rows: a table of embeddings is too large for temporaries of its size."""
    pairs = zip(before.split(CHUNK_ROWS), torch.from_numpy(after).split(CHUNK_ROWS), strict=True)
    parts = [((b - a).square().sum(), a.square().sum()) for a, b in pairs]
    change, size = (torch.stack([part[i] for part in parts]).sum() for i in range(2))
    return float((change / size.clamp(min=1e-30)).sqrt())


def _load(artifact: Path) -> tuple[PreTrainedModel, list[LinearLayer]]:
    model = load_model(artifact, dtype=torch.float32)
    return model, layers_of(model.config)


def backend_of(model: StepModel) -> Backend:
    """The eager step model as a backend."""

    @torch.no_grad()
    def backend(arrays: Sequence[Array]) -> Sequence[Array]:
        return [x.numpy() for x in model(*(torch.from_numpy(x) for x in arrays))]

    return backend


def open_backend(graph: Path) -> Backend:
    """A step graph in ONNX Runtime on the CPU as a backend."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.disable_prepacking", "1"
    )  # a second copy of the weights otherwise
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def _exact(graph: Path) -> Path:
    """A copy of a quantised graph that keeps activations in float32, beside its data file."""
    model = ir.load(graph)
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)
    proto = ir.to_proto(model)
    path = graph.with_name(f"{graph.stem}.exact.onnx")
    path.write_bytes(proto.SerializeToString())
    return path


def _roll(backend: Backend, script: list[Case], empty: Sequence[Array]) -> Reference:
    """Logits and hidden states of every call; the states after the last call of each run."""
    result = []
    for case in script:
        turns = [list(outputs) for outputs in run(backend, case, empty)]
        result.append([outputs[:2] for outputs in turns[:-1]] + [turns[-1]])
    return result


def _differences(script: list[Case], reference: Reference, other: Reference) -> dict[str, Any]:
    worst = {step_graph.LOGITS: 0.0, step_graph.HIDDEN_STATES: 0.0, "state": 0.0}
    worst_case, largest = script[0].name, -1.0
    for case, expected, got in zip(script, reference, other, strict=True):
        for left, right in zip(expected, got, strict=True):
            for name, a, b in zip((*list(worst)[:2], *["state"] * (len(left) - 2)), left, right, strict=True):
                error = scaled_error(a, b)
                worst[name] = max(worst[name], error)
                if error > largest:
                    worst_case, largest = case.name, error
    return {**worst, "worst_case": worst_case}


def scaled_error(expected: Array, got: Array) -> float:
    """Largest absolute difference; relative to the largest expected value where that exceeds one."""
    if expected.shape != got.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(expected - got).max(initial=0) / max(1.0, np.abs(expected).max(initial=0)))


def _quality(reference: Reference, other: Reference) -> dict[str, Any]:
    """Mean KL divergence and agreement of the preferred token, over all rows of logits."""
    divergences, same = [], []
    for expected, got in zip(reference, other, strict=True):
        for left, right in zip(expected, got, strict=True):
            p, q = (torch.from_numpy(x[0]).double().log_softmax(-1) for x in (left, right))
            divergences.append((p.exp() * (p - q)).sum(-1).flatten())
            same.append((p.argmax(-1) == q.argmax(-1)).flatten().double())
    return {"kl": float(torch.cat(divergences).mean()), "agreement": float(torch.cat(same).mean())}


if __name__ == "__main__":
    torch.set_num_threads(
        max(1, torch.get_num_threads() // 2)
    )  # small steps: barriers on a busy machine cost more
    print(json.dumps(asdict(compare(Path(sys.argv[1]), Path(sys.argv[2]), precision=sys.argv[3]))))
