"""Whether a model puts its tokens where it is told: a step graph counts positions itself."""

import inspect

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lineahead.errors import ArchitectureError
from lineahead.plugins.augmented_attention.huggingface.attention import teacher

HINT = "transformers' generate() runs this model; a step graph cannot. Choose another architecture to export."


@torch.no_grad()
def require_given_positions(model: PreTrainedModel) -> None:
    """Run three tokens with and without positions given.

    Raises:
        ArchitectureError: when the model numbers tokens otherwise than from 0, or will not be told.
    """
    kind, ids = type(model).__name__, torch.arange(1, 4, device=model.device)[None]

    def said(*positions: int) -> Tensor:  # logits, or hidden states of a model without a head
        given = {"position_ids": torch.tensor([positions], device=model.device)} if positions else {}
        return model(input_ids=ids, use_cache=False, **given)[0]  # type: ignore[no-any-return]

    with teacher():
        own = said()
        try:
            told, elsewhere = said(0, 1, 2), said(1, 2, 3)
        except TypeError as error:
            raise ArchitectureError(f"{kind} takes no position_ids", hint=HINT) from error
    if not torch.allclose(own, told, rtol=1e-3, atol=1e-3 * float(own.abs().max())):
        raise ArchitectureError(f"{kind} does not number its tokens from 0", hint=HINT)
    deaf = "position_ids" not in inspect.signature(model.forward).parameters
    if deaf and torch.equal(told, elsewhere):
        raise ArchitectureError(f"{kind} does not use the position_ids that it is given", hint=HINT)
