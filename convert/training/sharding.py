"""FSDP: the blocks' weights spread over the processes; everything else stays whole on each.

Whole are what conversion added, adapters, embeddings, the last norm and the LM head: small, or used outside
of the model's own forward pass. Their gradients are averaged by the training loop, those of sharded weights
by FSDP. A sharded parameter is a ``DTensor``.

Source: Zhao et al., 2023, arXiv:2304.11277; torch.distributed.fsdp.fully_shard.
"""

import logging
import os

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from lineahead.convert.training.compiled import blocks_of
from lineahead.convert.training.weights import is_new
from lineahead.errors import TrainingError

logger = logging.getLogger(__name__)


def shard_blocks(model: PreTrainedModel, accelerator: Accelerator) -> bool:
    """Shard, in place, the blocks' weights, if accelerate was told to use FSDP; they move to its device.

    Args:
        model: a linear model, frozen, without adapters; what is not sharded stays where it is.
        accelerator: its FSDP plugin says whether blocks are freed after the forward pass.

    Returns:
        Whether it did.

    Raises:
        TrainingError: when the plugin asks for what is not supported.
    """
    plugin = _plugin(accelerator)
    if plugin is None:
        return False
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    policy = plugin.mixed_precision_policy or MixedPrecisionPolicy(reduce_dtype=torch.float32)
    blocks = [block for block, _ in blocks_of(model)]
    inside = {weight for block in blocks for name, weight in block.named_parameters() if not is_new(name)}
    whole = {weight for weight in model.parameters() if weight not in inside}
    for module in (*blocks, model.base_model):
        fully_shard(
            module,
            mesh=mesh,
            reshard_after_forward=bool(plugin.reshard_after_forward),
            mp_policy=policy,
            ignored_params=whole,
        )
        assert isinstance(module, FSDPModule)
        if accelerator.device.type == "cpu":  # gloo has no mean
            module.set_force_sum_reduction_for_comms(True)
    here = sum(x.to_local().numel() for x in model.parameters() if isinstance(x, DTensor))
    count = sum(weight.numel() for weight in inside)
    logger.info("%d blocks sharded: %d of their %d numbers are here", len(blocks), here, count)
    return True


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of it only."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; then all processes must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on `like`'s device, sharded as `like` is; all processes hold the same and must ask."""
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements)


def _plugin(accelerator: Accelerator) -> FullyShardedDataParallelPlugin | None:
    """What accelerate was told about FSDP; None when it was not, or for one process.

    accelerate keeps its plugin on GPUs alone.

    Raises:
        TrainingError: when it was told something that is not supported.
    """
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not asked or accelerator.num_processes == 1:
        return None
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise TrainingError("FSDP version 1 is not supported", hint="Launch with --fsdp_version 2.")
    plugin = getattr(accelerator.state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin()
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise TrainingError(
            "FSDP with weights on the CPU is not supported", hint="Launch with --fsdp_offload_params false."
        )
    return plugin
