"""The recurrent draft as an ONNX graph: one step, with its candidates; weights in 8 bits."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lineahead.convert.checkpoint import load_model
from lineahead.convert.drafts.medusa import head_rows
from lineahead.convert.drafts.recurrent import RecurrentDraft, embedding_table, load_recurrent
from lineahead.convert.onnx.graph import IR_VERSION, save, strip_metadata
from lineahead.convert.onnx.parity import scaled_error
from lineahead.convert.onnx.quantize import quantize_file
from lineahead.errors import ParityError
from lineahead.plugins.augmented_attention.onnx import exported, simplify
from lineahead.recipes.manifest import Export

INPUTS, OUTPUTS = ("hidden_states", "input_ids"), ("guess", "tokens", "log_probs")
BOUND = 1e-4
BITS = 8
MIN_AGREEMENT = 0.8  # of the best candidate in 8 bits; measured on SmolLM2-135M: 0.97


class RecurrentGraph(nn.Module):
    """`RecurrentDraft.forward` with the model's tables bound."""

    def __init__(self, draft: RecurrentDraft, table: Tensor, rows: Tensor, offsets: Tensor) -> None:
        """Bind the draft to the embeddings ``[V, E]`` and the LM head's ``[V', E]`` and ``[V']``."""
        super().__init__()
        self.draft = draft
        self.table, self.rows, self.offsets = nn.Buffer(table), nn.Buffer(rows), nn.Buffer(offsets)

    def forward(self, hidden_states: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[N, E]`` and ``[N]`` to the guess, its candidates and their log-probabilities."""
        guess, tokens, log_probs = self.draft(hidden_states, input_ids, self.table, self.rows, self.offsets)
        return guess, tokens, log_probs


def bound(draft: RecurrentDraft, model: PreTrainedModel) -> RecurrentGraph:
    """The graph's module for a model, float32, for inference."""
    tables = (embedding_table(model).float(), *head_rows(model, draft.token_ids))
    return RecurrentGraph(draft, *tables).eval().requires_grad_(False)


def export_recurrent(artifact: Path, path: Path, *, opset: int) -> Export:
    """Write the graph of an artifact's recurrent draft: compared with eager in float32, then in 8 bits.

    Args:
        artifact: the artifact folder.
        path: file to write.
        opset: version of the default domain.

    Raises:
        ArtifactError: when the artifact has no such draft.
        ParityError: when the graph and eager disagree; nothing is left at `path`.
    """
    graph = bound(load_recurrent(artifact), load_model(artifact, dtype=torch.float32))
    full = path.with_name(f"{path.stem}_fp32.onnx")
    try:
        trace_recurrent(graph, full, opset=opset)
        error, _ = compare_recurrent(graph, full)
        if not error <= BOUND:
            raise ParityError(
                f"{path.name}: differs from eager by {error:.1e}, more than {BOUND:.0e}",
                hint="Nothing was saved. Report it with draft/config.json.",
            )
        quantize_file(full, path, bits=BITS)
    finally:
        full.unlink(missing_ok=True)
        full.with_name(f"{full.name}.data").unlink(missing_ok=True)
    onnx.checker.check_model(str(path))
    rounding, agreement = compare_recurrent(graph, path)
    if not agreement >= MIN_AGREEMENT:
        path.unlink()
        raise ParityError(
            f"{path.name}: in 8 bits only {agreement:.0%} of the best candidates stay",
            hint="Nothing was saved. Report it with draft/config.json.",
        )
    return Export(
        file=f"onnx/{path.name}",
        kind="draft",
        precision="int8",
        opset=opset,
        parity={"log_probs": error, "log_probs_int8": rounding, "agreement_int8": agreement},
    )


def trace_recurrent(graph: RecurrentGraph, path: Path, *, opset: int) -> None:
    """Write the graph in float32."""
    batch = torch.export.Dim("batch", min=1, max=65536)
    sample = (torch.zeros(3, graph.draft.config.hidden_size), torch.zeros(3, dtype=torch.int64))
    axes = ({0: batch}, {0: batch})
    model = exported(graph, sample, opset=opset, inputs=list(INPUTS), outputs=OUTPUTS, axes=axes)
    model.ir_version = IR_VERSION
    simplify(model)
    strip_metadata(model)
    save(model, path)


def compare_recurrent(graph: RecurrentGraph, path: Path, *, seed: int = 0) -> tuple[float, float]:
    """Largest difference of guesses and log-probabilities, and how often the best candidate is the same.

    Candidates are compared by value at every rank: equal ones may change places.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(seed)
    scale = float(graph.draft.output_scale.abs().mean())
    worst, same = 0.0, []
    for batch in (1, 2, 61):
        hidden = torch.randn(batch, graph.draft.config.hidden_size, generator=generator) * scale
        tokens = torch.randint(len(graph.table), (batch,), generator=generator)
        got = session.run(list(OUTPUTS), {INPUTS[0]: hidden.numpy(), INPUTS[1]: tokens.numpy()})
        with torch.no_grad():
            guess, best, log_probs = graph(hidden, tokens)
        errors = (scaled_error(guess.numpy(), got[0]), scaled_error(log_probs.numpy(), got[2]))
        repeated = (np.diff(np.sort(got[1], -1), axis=-1) == 0).any()
        worst = max(worst, *errors, float("inf") if repeated else 0.0)
        same.append(got[1][:, 0] == best[:, 0].numpy())
    return worst, float(np.concatenate(same).mean())
