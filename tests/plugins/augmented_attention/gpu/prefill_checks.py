"""The prefill kernels: their cases, a text read by them and the streaming kernel in turn, and their time."""

import dataclasses
import itertools
import time

import torch
from kernel_cases import SETTINGS, TOLERANCE, Size, check, make_case
from kernel_timing import CACHE_BYTES, LENGTH, SHAPES, copy_bandwidth, seconds_each

from lineahead.plugins.augmented_attention.schema import INPUTS, STATE
from lineahead.plugins.augmented_attention.step import step

STEP, PREFILL = 1, 3  # Variant of csrc/cuda/call.h
PRESETS = ("softmax-hedgehog", "augmented")
TYPES = (torch.float16, torch.bfloat16)
OFFSETS = (0, 1, 31, 62, 63, 64, 65, 127, 128)
NODES = (65, 128, 200, 512, 1, 64)
PENDING = (0, 1, 64, 70, 512, 200)
HEADS = ((4, 4), (4, 2), (6, 2))
EXTRAS = ((None, None), (4, 0), (0, 0), (8, 64), (3, 1), (1, 4))  # sinks, taps; None for the preset's own


def cases(small=False):
    """Settings, size and options of every call, each seed another combination of sizes."""
    for seed, (name, dtype, dim, nodes) in enumerate(
        itertools.product(PRESETS, TYPES, (64, 128), NODES[:2] if small else NODES)
    ):
        for extra in range(1 if small else 3):
            turn = seed + extra
            sinks, taps = EXTRAS[turn % len(EXTRAS)]
            settings = SETTINGS[name]
            if sinks is not None:
                settings = dataclasses.replace(settings, sinks=sinks, conv_taps=taps)
            heads, shared = HEADS[turn % 3]
            pending = PENDING[(turn + nodes) % (4 if small else 6)]
            size = Size(
                batch=3 if small else len(OFFSETS), heads=heads, kv_heads=shared, dim=dim, value_dim=dim,
                nodes=nodes, pending=pending, accepts=pending,
                length=(0, 63, 130) if small else OFFSETS,
            )  # fmt: skip
            options = {"in_place": turn % 2 == 0, "index": (torch.int64, torch.int32)[turn % 3 == 1]}
            yield settings, size, {"dtype": dtype, "seed": turn, **options}


def check_prefill(kernels, small: bool, device="cuda") -> int:
    """Every case against step.step in float64; returns how many failed."""
    failures, worst, count, started = 0, {}, 0, time.time()
    for settings, size, options in cases(small):
        count += 1
        options["chain"] = size.nodes > 64 or count % 2 == 0  # without it, the commit alone is theirs
        try:
            error = check(kernels, settings, size, device=device, variant=PREFILL, **options)
            key = settings.feature_map, options["dtype"]
            worst[key] = max(worst.get(key, 0), error)
        except (AssertionError, RuntimeError) as problem:
            failures += 1
            if failures <= 12:
                print(f"FAILED prefill {settings.feature_map} {size} {options}: {problem}", flush=True)
    print(f"prefill: {count} calls, {failures} failed, {time.time() - started:.0f} s; largest output errors:")
    for (name, dtype), error in worst.items():
        print(f"  {name:10s} {str(dtype)[6:]} {error:.1e} (limit {TOLERANCE[dtype]:.0e})", flush=True)
    return failures


def read_text(kernels, steps: int, device="cuda", nodes=256) -> int:
    """Calls of `nodes` and of a few nodes in turn, with random acceptance, against the same in float64.

    The kernels share a state, so each must leave it as the others expect it: after a long call the prefill
    kernels commit, or the general one does, and the streaming one attends.
    """
    failures = 0
    for name, dtype in itertools.product(PRESETS, TYPES):
        settings, size = SETTINGS[name], Size(dim=64, value_dim=64, nodes=nodes, pending=1, length=(0,))
        scale = 1.0 if settings.qk_norm else size.dim**-0.5
        mine = make_case(settings, size, dtype=dtype, device=device, chain=True)
        empty = (*STATE, "length", "accept_count", "pending_key", "pending_value")
        mine |= {key: torch.zeros_like(mine[key]) for key in empty}
        exact = {key: x.double() if x.is_floating_point() else x for key, x in mine.items()}
        generator, largest = torch.Generator().manual_seed(1), 0.0
        for i in range(steps):
            count = nodes if i % 2 == 0 else 5
            for key in ("query", "key", "value"):
                heads = size.heads if key == "query" else size.kv_heads
                fresh = torch.randn(size.batch, heads, count, size.dim, generator=generator)
                mine[key] = fresh.to(device, dtype)
                exact[key] = mine[key].double()
            rows = mine["pending_key"].shape[2]
            accepted = torch.randint(0, rows + 1, (size.batch,), generator=generator)
            accepted[0] = rows
            shared = {
                "ancestors": torch.ones(size.batch, count, count, dtype=torch.bool, device=device).tril(),
                "accept_index": torch.arange(rows, device=device).repeat(size.batch, 1),
                "accept_count": accepted.to(device) if i else mine["accept_count"],
            }  # fmt: skip
            mine, exact = mine | shared, exact | shared
            variant = STEP if i % 4 == 3 else 0
            options = {"variant": variant, "chain": count == nodes, "in_place": True}
            got = kernels.step(mine, settings, scale, **options)
            want = step(*(exact[key] for key in INPUTS), settings=settings, scale=scale)
            error = (got["output"] - want[0]).abs().max() / want[0].abs().max().clamp(min=1)
            largest = max(largest, error.item())
            mine |= {"pending_key": got["pending_key"], "pending_value": mine["value"]}
            pending = {"pending_key": got["pending_key"].double(), "pending_value": exact["value"]}
            exact |= dict(zip(STATE, want[1:5], strict=True)) | pending
            mine["length"] = exact["length"] = mine["length"] + shared["accept_count"]
        state = ((mine["state"] - exact["state"]).abs().max() / exact["state"].abs().max()).item()
        bad = not (state <= 1e-5 and largest <= TOLERANCE[dtype])
        failures += bad
        result = f"{mine['length'].tolist()} tokens: state {state:.1e}, output {largest:.1e}"
        print(f"  text {name} {str(dtype)[6:]}: {result}{'  FAILED' if bad else ''}", flush=True)
    return failures


def operations(settings, size) -> float:
    """Multiplications and additions of a call in the chunked form, masked halves left out."""
    rows, dim, hedge = size.batch * size.heads * size.nodes, size.dim, settings.feature_map == "hedgehog"
    features = 2 * dim if hedge else dim
    maps = 2 * dim * dim + dim * dim if hedge else 0  # queries, keys twice: in this call and in the next
    near, far = 64 * dim if hedge else 32 * dim, 32 * features if hedge else 0
    values = (64 + 32 if hedge else 32) * dim
    return 2.0 * rows * (maps + near + far + values + 3 * features * dim)  # phi(q) S, and two folds


def moved_bytes(settings, size) -> int:
    """Bytes of 16-bit rows and of the state that a call must move."""
    rows, dim = size.nodes * size.dim * 2, size.dim
    state = 4 * size.kv_heads * (2 * dim + 2 if settings.has_norm else dim) * dim * 2
    return size.batch * (2 * size.heads * rows + 5 * size.kv_heads * rows + state)


def time_chain(kernels, settings, size, dtype, variant: int) -> float:
    """Seconds of a call that commits as many rows as it has nodes, in a CUDA graph over several layers."""
    scale = 1.0 if settings.qk_norm else size.dim**-0.5
    first = make_case(settings, size, dtype=dtype, device="cuda", chain=True)
    first["accept_index"] = torch.arange(size.pending, device="cuda").repeat(size.batch, 1)
    first["accept_count"] = torch.full_like(first["accept_count"], size.pending)
    first = {name: x.nan_to_num(0) if x.is_floating_point() else x for name, x in first.items()}
    layers, calls = int(min(max(CACHE_BYTES // moved_bytes(settings, size), 2), 16)), []
    for _ in range(layers):
        ports = {name: x.clone() for name, x in first.items()}
        out = kernels.outputs(ports, in_place=True)
        calls.append((kernels.prepare(ports, out, settings, scale, 0, variant, chain=True), ports, out))
    return seconds_each(kernels, calls, 10)


def time_prefill(kernels) -> dict:
    """Print and return a table: the prefill kernels, and calls of 64 nodes in the general one."""
    bandwidth, rows = copy_bandwidth(), []
    print(
        f"\ncopy bandwidth {bandwidth / 1e12:.2f} TB/s; context {LENGTH}, every row accepted, state in place"
    )
    heading = ("batch", "T", "kernel", "us", "us/token", "Mtoken/s", "floor us", "TFLOP/s", "32K x 32 ms")
    print(f"{'shape':16s}{'type':>10s}" + "".join(f"{word:>12s}" for word in heading))
    for (name, (kind, heads)), dtype in itertools.product(SHAPES.items(), TYPES):
        for batch, nodes, variant in (
            *((1, n, PREFILL) for n in (64, 128, 512, 2048)), (4, 512, PREFILL), (1, 64, STEP), (4, 64, STEP),
        ):  # fmt: skip
            if dtype is torch.bfloat16 and nodes not in (64, 512):
                continue
            size = Size(
                batch=batch, nodes=nodes, pending=nodes, accepts=nodes, length=(LENGTH // 64 * 64,), **heads
            )
            seconds = time_chain(kernels, SETTINGS[kind], size, dtype, variant)
            floor = moved_bytes(SETTINGS[kind], size) / bandwidth
            each = seconds / (batch * nodes)
            row = {
                "shape": name, "dtype": str(dtype)[6:], "batch": batch, "nodes": nodes,
                "kernel": "prefill" if variant == PREFILL else "general",
                "seconds": seconds, "floor_seconds": floor,
                "flops_per_second": operations(SETTINGS[kind], size) / seconds,
            }  # fmt: skip
            rows.append(row)
            print(
                f"{name:16s}{row['dtype']:>10s}{batch:12d}{nodes:12d}{row['kernel']:>12s}"
                f"{seconds * 1e6:12.1f}{each * 1e6:12.3f}{1e-6 / each:12.2f}{floor * 1e6:12.1f}"
                f"{row['flops_per_second'] / 1e12:12.1f}{each * 32768 * 32 * 1e3:12.0f}",
                flush=True,
            )
    return {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda,
        "copy_bytes_per_second": bandwidth, "calls": rows,
    }  # fmt: skip
