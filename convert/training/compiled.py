"""torch.compile for training: the parts of a layer that are the same in every step, one graph for all."""

import logging
from collections.abc import Iterator

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from lineahead.plugins.augmented_attention.huggingface.layers import ATTRIBUTE
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of

logger = logging.getLogger(__name__)


def compile_parts(model: PreTrainedModel) -> int:
    """Compile, in place, the operators and what stands beside them: norms, feed-forward, adapters.

    Attention itself stays eager: transformers routes it through a table, and the modes of training (teacher,
    transfer) change what it calls from one pass to the next. Layers of one shape share one graph. Values
    differ from the eager ones by rounding alone.

    Args:
        model: a linear model, with its adapters if it gets any.

    Returns:
        The number of modules whose forward is compiled.
    """
    torch._dynamo.reset()
    count = 0
    for block, name in blocks_of(model):
        attention = block.get_submodule(name)
        beside = [module for module in block.children() if module is not attention and _computes(module)]
        inside = [module for module in attention.modules() if isinstance(module, LoraLayer)]
        operator = [module for key, module in attention.named_children() if key == ATTRIBUTE]
        for module in (*operator, *beside, *inside):
            module.forward = torch.compile(module.forward, dynamic=False)
            count += 1
    logger.info("%s: %d modules compiled", type(model).__name__, count)
    return count


def release_parts(model: PreTrainedModel) -> None:
    """Undo :func:`compile_parts`: other shapes would be compiled again."""
    for module in model.modules():
        if "forward" in vars(module):
            del module.forward


def blocks_of(model: PreTrainedModel) -> Iterator[tuple[nn.Module, str]]:
    """Every block that has a converted layer or is the like of one, and what it calls its attention."""
    seen: set[nn.Module] = set()
    for layer in layers_of(model.config):
        path, _, name = layer.name.rpartition(".")
        own = model.get_submodule(path)
        for block in model.get_submodule(path.rpartition(".")[0]).children():
            if block not in seen and type(block) is type(own):
                seen.add(block)
                yield block, name


def _computes(module: nn.Module) -> bool:
    operators = any(ATTRIBUTE in one._modules for one in module.modules())
    return not operators and any(True for _ in module.parameters())
