"""The recurrent draft: a small block that guesses the next hidden state from this one and a token."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lineahead.convert.drafts.stored import FOLDER, damaged, read_draft, save_draft

KIND = "recurrent"
EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """Shape of the draft.

    Attributes:
        hidden_size: E.
        width: inner width W of a feed-forward block.
        blocks: how many of them.
        depth: steps that it was trained to go ahead.
        vocabulary: tokens that it can propose.
        top: candidates per step.
    """

    hidden_size: int
    width: int
    blocks: int
    depth: int
    vocabulary: int
    top: int


def unit(x: Tensor) -> Tensor:
    """Each row divided by its root mean square."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)


class RecurrentDraft(nn.Module):
    """``h' = norm(x + ffn(x))`` with ``x = A norm(h) + B norm(e)``: e embeds the token that follows h's.

    h is the input of the LM head, so the model's own hidden state starts the recurrence and the LM head's
    rows of frequent tokens read every step's result. Unlike heads that see the hidden state alone, every step
    knows the tokens before it. No state outlives a proposal: rejection costs nothing here either.

    Attributes:
        fuse_hidden, fuse_token: ``[E, E]``, A and B.
        input_scale: ``[2, E]``, scales of the two norms.
        gate, up: ``[blocks, W, E]``; down: ``[blocks, E, W]``, zero at first.
        block_scale: ``[blocks, E]``; output_scale: ``[E]``.
        token_ids: ``[V']`` int64, the tokens that can be proposed.

    Source: after Zhang et al., 2024 (ReDrafter), arXiv:2403.09919, and Li et al., 2024 (EAGLE),
        arXiv:2401.15077; the block and its norms are this package's choice.
    """

    token_ids: Tensor

    def __init__(self, config: RecurrentConfig, token_ids: Tensor, *, scale: float = 1.0) -> None:
        """Draw the initial weights; at first every step repeats the hidden state.

        Args:
            config: the shape.
            token_ids: ``[V']``.
            scale: root mean square of the model's hidden states.
        """
        super().__init__()
        self.config = config
        size, width, blocks = config.hidden_size, config.width, config.blocks
        self.fuse_hidden = nn.Parameter(torch.eye(size))
        self.fuse_token = nn.Parameter(torch.randn(size, size) * 0.01)
        self.input_scale = nn.Parameter(torch.ones(2, size))
        self.gate = nn.Parameter(torch.randn(blocks, width, size) * size**-0.5)
        self.up = nn.Parameter(torch.randn(blocks, width, size) * size**-0.5)
        self.down = nn.Parameter(torch.zeros(blocks, size, width))
        self.block_scale = nn.Parameter(torch.ones(blocks, size))
        self.output_scale = nn.Parameter(torch.full((size,), scale))
        self.register_buffer("token_ids", token_ids)

    def advance(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """One step: ``[..., E]`` and the embedding ``[..., E]`` of the token after it, to the guess."""
        x = functional.linear(unit(hidden) * self.input_scale[0], self.fuse_hidden)
        x = x + functional.linear(unit(embedding) * self.input_scale[1], self.fuse_token)
        for i in range(self.config.blocks):
            y = unit(x) * self.block_scale[i]
            inner = functional.silu(functional.linear(y, self.gate[i])) * functional.linear(y, self.up[i])
            x = x + functional.linear(inner, self.down[i])
        return unit(x) * self.output_scale

    def forward(
        self, hidden: Tensor, tokens: Tensor, table: Tensor, rows: Tensor, offsets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The draft graph: one step and its candidates.

        Args:
            hidden: ``[N, E]``, the LM head's input, the model's or the previous step's.
            tokens: ``[N]`` int64, the token after it.
            table: ``[V, E]``, the model's token embeddings.
            rows: ``[V', E]``, the LM head's rows of `token_ids`.
            offsets: ``[V']``, its bias there.

        Returns:
            ``[N, E]``, the guess; ``tokens [N, top]`` int64, best first; ``log_probs [N, top]`` float32.
        """
        guess = self.advance(hidden, table[tokens])
        best = (guess @ rows.t() + offsets).float().log_softmax(-1).topk(self.config.top)
        return guess, self.token_ids[best.indices], best.values


def embedding_table(model: PreTrainedModel) -> Tensor:
    """The model's token embeddings ``[V, E]``."""
    embeddings: Any = model.get_input_embeddings()
    table: Tensor = embeddings.weight
    return table.detach()


def save_recurrent(draft: RecurrentDraft, artifact: Path) -> Path:
    """Write ``draft/`` into an artifact, in float16.

    Raises:
        StorageError: when it cannot be written.
    """
    tensors = {name: x.half() for name, x in draft.named_parameters()}
    return save_draft(artifact, KIND, asdict(draft.config), {**tensors, "token_ids": draft.token_ids.int()})


def load_recurrent(artifact: Path) -> RecurrentDraft:
    """The recurrent draft of an artifact, float32.

    Raises:
        ArtifactError: when there is none, or it is damaged.
    """
    config, tensors = read_draft(artifact, KIND)
    try:
        return recurrent_from(RecurrentConfig(**config), tensors)
    except (TypeError, KeyError, RuntimeError) as error:
        raise damaged(artifact / FOLDER, error) from error


def recurrent_from(config: RecurrentConfig, tensors: Mapping[str, Tensor]) -> RecurrentDraft:
    """A draft with the given weights."""
    token_ids = tensors["token_ids"].long()
    draft = RecurrentDraft(config, token_ids)
    floats = {name: x.float() for name, x in tensors.items() if name != "token_ids"}
    draft.load_state_dict({**floats, "token_ids": token_ids})
    return draft.eval()
