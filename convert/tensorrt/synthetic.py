"""An engine with random weights, for its speed: a graph's structure travels without its weights.

``python -m lineahead.convert.tensorrt.synthetic GRAPH.onnx ENGINE --library FILE --bucket 1x1 --bucket 1x16``
"""

import contextlib
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from lineahead.convert.tensorrt.build import BuildRequest, build
from lineahead.convert.tensorrt.export import parse_bucket
from lineahead.errors import ArtifactError
from lineahead.plugins.tensorrt.engine import load_plugins, tensorrt_module, trt_logger
from lineahead.recipes.files import replacing

DEVIATION = 0.02
POOL = 1 << 24
SIZES = {1: np.float32, 10: np.float16}  # ONNX element types


def fill_weights(graph: Path, *, seed: int = 0, equal: bool = False) -> int:
    """Write the file of external weights that `graph` names, normal numbers of deviation 0.02.

    Integers and whatever else stands in the graph itself stay. Values repeat after 16 million numbers,
    from another place for each weight unless they are to be `equal`: TensorRT keeps equal ones once, so that
    an engine is built sooner, but a model whose matrices are smaller than the GPU's cache would stay in it.

    Args:
        graph: ONNX file whose external data is missing or may be replaced.
        seed: of the numbers.
        equal: give weights of one shape the same numbers.

    Returns:
        bytes of weights.

    Raises:
        ArtifactError: when a weight of another type than float32 and float16 is external.
    """
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    random = np.random.default_rng(seed)
    pool = random.normal(0, DEVIATION, POOL)
    pools: dict[int, Any] = {kind: pool.astype(dtype) for kind, dtype in SIZES.items()}
    total, parts = 0, {}
    with contextlib.ExitStack() as stack:
        for tensor in model.graph.initializer:
            entries = {one.key: one.value for one in tensor.external_data}
            if not entries:
                continue
            if tensor.data_type not in pools:
                raise ArtifactError(
                    f"{graph}: {tensor.name} is external and no float", hint="Export it again."
                )
            name = entries["location"]
            if name not in parts:
                part = stack.enter_context(replacing(graph.parent / name))
                parts[name] = stack.enter_context(part.open("wb"))
            shift = 0 if equal else int(random.integers(POOL))
            numbers = np.roll(pools[tensor.data_type], shift)
            count = int(np.prod(tensor.dims))
            parts[name].seek(int(entries.get("offset", 0)))
            for start in range(0, count, POOL):
                parts[name].write(numbers[: min(POOL, count - start)].data)
            total += count * numbers.itemsize
    return total


@click.command()
@click.argument("graph", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--library", type=click.Path(path_type=Path), required=True, help="liblineahead_plugins.so.")
@click.option("--bucket", "buckets", multiple=True, required=True, metavar="BATCHxNODES")
@click.option("--precision", type=click.Choice(("fp32", "fp16", "bf16")), default="fp16")
@click.option("--optimization-level", type=click.IntRange(0, 5), default=3)
@click.option("--cublas", is_flag=True, help="Let TensorRT 8.6 use cuBLAS.")
@click.option("--equal", is_flag=True, help="The same weights in every layer: built sooner.")
def main(
    graph: Path,
    engine: Path,
    library: Path,
    buckets: tuple[str, ...],
    precision: str,
    optimization_level: int,
    cublas: bool,
    equal: bool,
) -> None:
    """Give GRAPH, lowered by the exporter, random weights and build ENGINE from it; nothing is checked."""
    trt = tensorrt_module()
    load_plugins(trt, library)
    started = time.perf_counter()
    total = fill_weights(graph, equal=equal)
    print(f"{total / 1e6:.0f} MB of weights in {time.perf_counter() - started:.1f} s", flush=True)
    sizes = tuple(map(parse_bucket, buckets))
    nodes = [one.nodes for one in sizes]
    request = BuildRequest(
        graph=graph,
        precision=precision,
        buckets=sizes,
        rows=(min(nodes), max(nodes)),
        cache=engine.with_name("timing.cache"),
        optimization_level=optimization_level,
        cublas=cublas,
        detailed=True,
    )
    started = time.perf_counter()
    plan = build(trt, trt_logger(trt), request, lambda text: print(text, flush=True))
    with replacing(engine) as temporary:
        temporary.write_bytes(plan)
    print(
        f"{engine}: {engine.stat().st_size / 1e6:.0f} MB in {time.perf_counter() - started:.1f} s", flush=True
    )


if __name__ == "__main__":
    main()
