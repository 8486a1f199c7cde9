"""The Medusa heads as one ONNX graph: hidden state in, candidates out."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor, nn

from lineahead.convert.checkpoint import load_model
from lineahead.convert.drafts.medusa import MedusaHeads, head_rows, load_heads
from lineahead.convert.onnx.graph import IR_VERSION, OPSET, save, strip_metadata
from lineahead.convert.onnx.parity import scaled_error
from lineahead.errors import ParityError
from lineahead.plugins.augmented_attention.onnx import exported, simplify
from lineahead.recipes.manifest import Export

INPUT, OUTPUTS = "hidden_states", ("tokens", "log_probs")
BOUND = 1e-4


class DraftGraph(nn.Module):
    """`MedusaHeads.forward` with the LM head's rows bound."""

    def __init__(self, heads: MedusaHeads, rows: Tensor, offsets: Tensor) -> None:
        """Bind the heads to ``rows [V', E]`` and ``offsets [V']`` of the LM head."""
        super().__init__()
        self.heads = heads
        self.rows, self.offsets = nn.Buffer(rows), nn.Buffer(offsets)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, E]`` to ``tokens [B, K, top]`` and ``log_probs [B, K, top]``."""
        tokens, log_probs = self.heads(hidden_states, self.rows, self.offsets)
        return tokens, log_probs


def export_draft(artifact: Path, path: Path, *, opset: int = OPSET) -> Export:
    """Write the graph of an artifact's heads, after comparing it with eager.

    Args:
        artifact: the artifact folder.
        path: file to write.
        opset: version of the default domain.

    Raises:
        ArtifactError: when the artifact has no heads.
        ParityError: when the graph and eager disagree; nothing is left at `path`.
    """
    heads = load_heads(artifact)
    model = load_model(artifact, dtype=torch.float32)
    graph = DraftGraph(heads, *head_rows(model, heads.token_ids)).eval().requires_grad_(False)
    del model
    save(trace_draft(graph, opset=opset), path)
    onnx.checker.check_model(str(path))
    error = compare_draft(graph, path)
    if not error <= BOUND:
        path.unlink()
        raise ParityError(
            f"{path.name}: differs from eager by {error:.1e}, more than {BOUND:.0e}",
            hint="Nothing was saved. Report it with draft/config.json.",
        )
    return Export(
        file=f"onnx/{path.name}", kind="draft", precision="fp32", opset=opset, parity={"log_probs": error}
    )


def trace_draft(graph: DraftGraph, *, opset: int = OPSET) -> ir.Model:
    """The draft graph as an ONNX model, its weights by reference."""
    batch = torch.export.Dim("batch", min=1, max=65536)
    sample = torch.zeros(3, graph.heads.config.hidden_size)
    model = exported(graph, (sample,), opset=opset, inputs=[INPUT], outputs=OUTPUTS, axes=({0: batch},))
    model.ir_version = IR_VERSION
    simplify(model)
    strip_metadata(model)
    return model


def compare_draft(graph: DraftGraph, path: Path, *, seed: int = 0) -> float:
    """Largest difference of log-probabilities, at every rank and of every candidate.

    Candidates whose log-probabilities are equal but for rounding may change places.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    generator = torch.Generator().manual_seed(seed)
    place = torch.zeros(int(graph.heads.token_ids.max()) + 1, dtype=torch.int64)
    place[graph.heads.token_ids] = torch.arange(len(graph.heads.token_ids))
    for batch in (1, 2, 5):
        hidden = torch.randn(batch, graph.heads.config.hidden_size, generator=generator)
        got_tokens, got = session.run(list(OUTPUTS), {INPUT: hidden.numpy()})
        with torch.no_grad():
            ranked = graph(hidden)[1]
            table = (graph.heads.features(hidden) @ graph.rows.t() + graph.offsets).log_softmax(-1)
            own = table.gather(-1, place[torch.from_numpy(got_tokens)])
        repeated = (np.diff(np.sort(got_tokens, -1), axis=-1) == 0).any()
        errors = (scaled_error(ranked.numpy(), got), scaled_error(own.numpy(), got))
        worst = max(worst, *errors, float("inf") if repeated else 0.0)
    return worst
