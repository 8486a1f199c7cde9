"""Attention transfer: every layer learns its own softmax output, all in one softmax forward pass."""

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lineahead.convert.training.rows import Rows, squared_error
from lineahead.convert.training.weights import layer_of, new_parameters
from lineahead.plugins.augmented_attention.huggingface.attention import LayerCall, transfer


class TransferTrainer:
    r"""Per layer: ``|linear(q, k, v) - softmax(q, k, v)|^2 / |softmax(q, k, v)|^2``, summed over layers.

    The pass runs the teacher, so layers do not see each other's errors and each layer's gradient is taken
    and its graph freed before the next layer runs: memory is one layer's. Dividing makes layers with small
    outputs count as much.

    Source: Zhang et al., 2024 (LoLCATs), arXiv:2410.10254, section 3.1, eq. 7 (there without the division).
    """

    def __init__(self, model: PreTrainedModel, rate: float) -> None:
        """Prepare `model`, whose parameters are frozen, for training with peak learning rate `rate`."""
        self._model, self._rate = model, rate
        self._new = new_parameters(model)
        for parameter in self._new.values():
            parameter.requires_grad_(True)
        self._names = [layer_of(name) for name in self._new]
        self._layer_losses: list[float] = []

    def parameters(self) -> dict[str, tuple[nn.Parameter, float]]:
        """All new parameters."""
        return {name: (parameter, self._rate) for name, parameter in self._new.items()}

    def backward(self, batch: Tensor, share: float) -> dict[str, float]:
        """One pass over a batch (:class:`Rows`); ``loss`` is the mean of the layers' relative errors."""
        rows = Rows.of(batch)
        losses: list[Tensor] = []

        def record(call: LayerCall) -> None:
            target = call.output.float()
            with torch.enable_grad():
                error, size = squared_error(call.linear().float(), target, rows)
                loss = error / size.clamp(min=torch.finfo(torch.float32).tiny)
                (loss * share).backward()
            losses.append(loss.detach())

        with torch.no_grad(), transfer(record):
            rows.hidden(self._model)
        self._layer_losses = torch.stack(losses).tolist()
        return {"loss": sum(self._layer_losses) / len(self._layer_losses)}

    def after_step(self) -> None:
        """Nothing: the parameters trained are the model's own."""

    def culprit(self) -> str:
        """The first layer whose loss is not finite."""
        layers = list(dict.fromkeys(self._names))
        bad = [i for i, loss in enumerate(self._layer_losses) if not math.isfinite(loss)]
        return f"layer {layers[bad[0]]}" if bad else first_bad_gradient(self._new)

    def updates(self) -> dict[str, Tensor]:
        """New values of the model's parameters, by name."""
        return {name: parameter.detach() for name, parameter in self._new.items()}

    def changes(self) -> dict[str, Tensor]:
        """What is added to the model's weights: nothing."""
        return {}


def first_bad_gradient(parameters: dict[str, nn.Parameter]) -> str:
    """The layer of the first parameter whose gradient is not finite, in words."""
    for name, parameter in parameters.items():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return f"layer {layer_of(name)}"
    return "LM head"
