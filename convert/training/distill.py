"""Distillation: the student's distribution towards that of the same weights with softmax attention."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lineahead.convert.training.adapters import (
    adapter_parameters,
    attach_adapters,
    weight_changes,
    without_adapters,
)
from lineahead.convert.training.rows import Rows, counted, targets
from lineahead.convert.training.transfer import first_bad_gradient
from lineahead.convert.training.vocabulary import Weights, distillation_backward, head_of
from lineahead.convert.training.weights import is_new, new_parameters
from lineahead.plugins.augmented_attention.huggingface.attention import teacher
from lineahead.recipes.schema import DistillStage


class DistillTrainer:
    """KL to the teacher and cross entropy, over new parameters and adapters or all weights.

    While the pretrained weights are frozen the teacher needs no second copy: it is the student in softmax
    mode with its adapters switched off. Weights trained in full and adapters of 16 bits have float32 masters,
    which the optimiser sees; the model's own copies keep their precision.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stage: DistillStage,
        other: PreTrainedModel | None,
        adapters: torch.dtype = torch.float32,
    ) -> None:
        """Prepare `model`, whose parameters are frozen.

        Args:
            model: the student.
            stage: the recipe's section.
            other: the teacher, when it is not `model` itself; runs in softmax mode too.
            adapters: type of the adapters.
        """
        self._model, self._stage = model, stage
        self._teacher = other if other is not None else model
        if stage.trainable == "lora":
            attach_adapters(model, stage.lora, adapters)
        self._new = new_parameters(model)
        self._base = self._trained_base()
        self._masters = {
            name: nn.Parameter(weight.detach().float().clone()) for name, weight in self._mastered().items()
        }
        for parameter in (*self._new.values(), *self._base.values()):
            parameter.requires_grad_(True)
        self._head = head_of(model)  # runs the model: FSDP looks then at what has gradients
        self._teacher_head = self._head if other is None else head_of(other)
        if stage.gradient_checkpointing:
            recompute_activations(model)
        self._weights = Weights(kl=stage.kl, ce=stage.ce, temperature=stage.temperature)

    def _trained_base(self) -> dict[str, nn.Parameter]:
        if self._stage.trainable == "lora":
            return adapter_parameters(self._model)
        if self._stage.trainable == "full":
            return {name: weight for name, weight in self._model.named_parameters() if not is_new(name)}
        return {}

    def _mastered(self) -> dict[str, nn.Parameter]:
        full = self._stage.trainable == "full"
        return {name: x for name, x in self._base.items() if full or x.dtype != torch.float32}

    def parameters(self) -> dict[str, tuple[nn.Parameter, float]]:
        """New parameters at ``learning_rate``, adapters or weights at ``base_learning_rate``."""
        base = self._masters or self._base
        return {
            **{name: (parameter, self._stage.learning_rate) for name, parameter in self._new.items()},
            **{name: (parameter, self._stage.base_learning_rate) for name, parameter in base.items()},
        }

    def backward(self, batch: Tensor, share: float) -> dict[str, float]:
        """One pass over a batch (:class:`Rows`): the teacher without gradients, then the student."""
        rows = Rows.of(batch)
        wanted = counted(self._teacher_hidden(rows), rows) if self._stage.kl else None
        hidden = counted(rows.hidden(self._model), rows)
        losses = distillation_backward(
            hidden, self._head, wanted, self._teacher_head, targets(rows), self._weights, share
        )
        for name, master in self._masters.items():
            gradient = self._base[name].grad
            if gradient is not None:
                master.grad = gradient.float() if master.grad is None else master.grad + gradient.float()
                self._base[name].grad = None
        return losses

    def _teacher_hidden(self, rows: Rows) -> Tensor:
        own = self._teacher is self._model
        off: AbstractContextManager[None] = without_adapters(self._model) if own else nullcontext()
        with torch.no_grad(), off, teacher():
            return rows.hidden(self._teacher)

    def after_step(self) -> None:
        """Copy the masters into the model."""
        with torch.no_grad():
            for name, master in self._masters.items():
                self._base[name].copy_(master)

    def culprit(self) -> str:
        """The layer of the first gradient that is not finite."""
        return first_bad_gradient({**self._new, **self._base, **self._masters})

    def updates(self) -> dict[str, Tensor]:
        """New values of the model's parameters, by name: new parameters, and weights trained in full."""
        full = self._masters if self._stage.trainable == "full" else {}
        return {name: value.detach() for name, value in {**self._new, **full}.items()}

    def changes(self) -> dict[str, Tensor]:
        """What the adapters add to the model's weights, by name."""
        return weight_changes(self._model) if self._stage.trainable == "lora" else {}


def recompute_activations(model: PreTrainedModel) -> None:
    """Keep only the layers' inputs for the backward pass.

    transformers does so only for layers in training mode; that mode is set on the layers alone and their own
    dropout switched off, so that the computation stays the same.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
            if isinstance(getattr(module, "dropout", None), float):
                setattr(module, "dropout", 0.0)  # noqa: B010 (typed as a submodule)
