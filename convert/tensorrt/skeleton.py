"""The engine's graph of an architecture, its weights left out: a few MB, whatever the model's size.

``python -m lineahead.convert.tensorrt.skeleton CONFIG.json GRAPH.onnx --preset softmax-hedgehog``; then
``convert/tensorrt/synthetic.py`` gives it random weights on the machine that builds the engine.
"""

import json
from pathlib import Path

import click
import onnx_ir as ir
import torch
from transformers import AutoConfig, AutoModelForCausalLM, initialization

from lineahead.convert.onnx.graph import trace
from lineahead.convert.replace import linearize
from lineahead.convert.tensorrt.fuse import fused_text
from lineahead.convert.tensorrt.graph import lower_for_engine
from lineahead.convert.tensorrt.lower import without_bodies
from lineahead.convert.tensorrt.outside import take_out
from lineahead.plugins.augmented_attention.huggingface.step_model import StepModel
from lineahead.plugins.augmented_attention.methods import preset as method
from lineahead.recipes.files import replacing

SMALLEST = 1 << 10
FRESH = 64 << 20
ALIGNMENT = 1 << 12


def skeleton(
    config: dict[str, object], preset: str, precision: str, *, chain: bool = False, fused: bool = False
) -> ir.Model:
    """The lowered graph of a linearized model that was never initialised.

    Its weights are zero. Large ones are memory that nothing wrote, so that a model larger than the machine is
    no obstacle; :func:`hollow` takes them out.

    Args:
        config: of the softmax model, as in its ``config.json``.
        preset: of the operator.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        chain: as in :func:`graph.engine_graph`.
        fused: likewise.

    Raises:
        ArchitectureError: when the architecture cannot be converted.
    """
    given = dict(config)
    wanted = AutoConfig.for_model(str(given.pop("model_type")), **given)
    with initialization.no_init_weights():
        model = AutoModelForCausalLM.from_config(wanted)
    for one in model.parameters():
        if one.nbytes < FRESH:  # the allocator may give out memory that held something before
            torch.nn.init.zeros_(one)
    layers = linearize(model, method(preset))
    graph = trace(StepModel(model, layers))
    lower_for_engine(graph, precision, chain=chain, fused=fused)
    return graph


def hollow(model: ir.Model, location: str) -> int:
    """Point large weights to places in a file that does not exist, in place.

    Args:
        model: any graph.
        location: name of that file, beside the graph's.

    Returns:
        bytes that the file will have.
    """
    offset = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < SMALLEST or not tensor.dtype.is_floating_point():
            continue
        shape = ir.Shape(tensor.numpy().shape)
        value.const_value = ir.ExternalTensor(
            location, offset, tensor.nbytes, tensor.dtype, shape=shape, name=str(value.name)
        )
        offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return offset


@click.command()
@click.argument("config", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("graph", type=click.Path(path_type=Path))
@click.option("--preset", default="softmax-hedgehog", show_default=True)
@click.option("--precision", type=click.Choice(("fp32", "fp16", "bf16")), default="fp16")
@click.option("--chain", is_flag=True, help="Only for prompts: every call's nodes follow one another.")
@click.option("--outside", is_flag=True, help="Large weights as inputs, which are given at run time.")
@click.option("--fuse/--no-fuse", "fused", default=False, help="Use the library's fused operators.")
def main(
    config: Path, graph: Path, preset: str, precision: str, chain: bool, outside: bool, fused: bool
) -> None:
    """Write GRAPH, the lowered step graph of the model that CONFIG describes, without its weights."""
    made = skeleton(json.loads(config.read_text()), preset, precision, chain=chain, fused=fused)
    without_bodies(made)
    if outside:
        print(f"{len(take_out(made.graph))} weights are inputs")
    size = hollow(made, f"{graph.name}.data")
    with replacing(graph) as temporary:
        ir.save(made, temporary)
    if fused:
        print(fused_text(made.graph))
    print(f"{graph}: {graph.stat().st_size / 1e6:.1f} MB, {size / 1e6:.0f} MB of weights left out")


if __name__ == "__main__":
    main()
