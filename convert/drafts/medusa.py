"""Medusa heads: one residual block per head on the shared LM head, restricted to frequent tokens."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lineahead.convert.drafts.stored import FOLDER, damaged, read_draft, save_draft

KIND = "medusa"


@dataclass(frozen=True, kw_only=True)
class MedusaConfig:
    """Shape of the heads.

    Attributes:
        heads: K.
        hidden_size: E.
        vocabulary: tokens that the heads can propose.
        top: candidates per head.
    """

    heads: int
    hidden_size: int
    vocabulary: int
    top: int


class MedusaHeads(nn.Module):
    """Head k: ``lm_head(h + SiLU(W_k h + b_k))`` over `token_ids`; predicts token t + 2 + k from h at t.

    Attributes:
        weight: ``[K, E, E]``, zero at first: every head then says what the LM head says.
        bias: ``[K, E]``.
        token_ids: ``[V']`` int64, the tokens that the heads can propose.

    Source: Cai et al., 2024, arXiv:2401.10774, section 2.1.1.
    """

    token_ids: Tensor

    def __init__(self, config: MedusaConfig, token_ids: Tensor) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(config.heads, config.hidden_size, config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.heads, config.hidden_size))
        self.register_buffer("token_ids", token_ids)

    def features(self, hidden: Tensor) -> Tensor:
        """What the heads give to the LM head: ``[N, E] -> [N, K, E]``."""
        moved = torch.einsum("ne,kfe->nkf", hidden, self.weight) + self.bias
        return hidden[:, None] + functional.silu(moved)

    def forward(self, hidden: Tensor, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """The draft graph: candidates of every head.

        Args:
            hidden: ``[B, E]``, the LM head's input at the last committed token.
            rows: ``[V', E]``, the LM head's rows of `token_ids`.
            offsets: ``[V']``, its bias there.

        Returns:
            ``tokens [B, K, top]`` int64, best first, and ``log_probs [B, K, top]`` float32.
        """
        logits = (self.features(hidden) @ rows.t() + offsets).float()
        best = logits.log_softmax(-1).topk(self.config.top)
        return self.token_ids[best.indices], best.values


def head_rows(model: PreTrainedModel, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The LM head's rows and bias of some tokens, float32: ``[V', E]`` and ``[V']``."""
    projection = model.get_output_embeddings()
    weight = projection.weight.detach()[token_ids.to(projection.weight.device)].float()
    bias = getattr(projection, "bias", None)
    if bias is None:
        return weight, torch.zeros(len(weight), device=weight.device)
    return weight, bias.detach()[token_ids.to(bias.device)].float()


def save_heads(heads: MedusaHeads, artifact: Path) -> Path:
    """Write ``draft/`` into an artifact, replacing what is there; returns the folder.

    Raises:
        StorageError: when it cannot be written.
    """
    return save_draft(artifact, KIND, asdict(heads.config), heads.state_dict())


def load_heads(artifact: Path) -> MedusaHeads:
    """The Medusa heads of an artifact.

    Raises:
        ArtifactError: when there are none, or they are damaged.
    """
    config, tensors = read_draft(artifact, KIND)
    try:
        heads = MedusaHeads(MedusaConfig(**config), tensors["token_ids"])
        heads.load_state_dict(tensors)
    except (TypeError, KeyError, RuntimeError) as error:
        raise damaged(artifact / FOLDER, error) from error
    return heads.eval()
