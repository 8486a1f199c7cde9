"""torch.compile for training: the parts of every layer that are the same in each step, one graph for all layers."""

import logging

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from lineahead.plugins.augmented_attention.huggingface.layers import ATTRIBUTE
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of

logger = logging.getLogger(__name__)


def compile_parts(model: PreTrainedModel) -> int:
    """Compile, in place, the operators and what stands beside them in their blocks: norms, feed-forward, adapters.

    Attention itself stays eager: transformers routes it through a table, and the modes of training (teacher,
    transfer) change what it calls from one pass to the next. Layers of one shape share one graph. Values differ
    from the eager ones by rounding alone.

    Args:
        model: a linear model, with its adapters if it gets any.

    Returns:
        The number of modules whose forward is compiled.
    """
    torch._dynamo.reset()
    count = 0
    for layer in layers_of(model.config):
        attention = model.get_submodule(layer.name)
        block = model.get_submodule(layer.name.rpartition(".")[0])
        beside = [module for module in block.children() if module is not attention and _computes(module)]
        inside = [module for module in attention.modules() if isinstance(module, LoraLayer)]
        for module in (getattr(attention, ATTRIBUTE), *beside, *inside):
            module.forward = torch.compile(module.forward, dynamic=False)
            count += 1
    logger.info("%s: %d modules compiled", type(model).__name__, count)
    return count


def _computes(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) and not any(ATTRIBUTE in one._modules for one in module.modules())
