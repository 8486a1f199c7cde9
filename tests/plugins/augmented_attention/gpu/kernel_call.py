"""Call the CUDA kernels' C function through ctypes, on tensors of any device that the library can read."""

import ctypes
from pathlib import Path

import torch

from lineahead.plugins.augmented_attention.schema import INPUTS, OUTPUTS, PATTERNS, SCOPES, AttentionSettings

LOCALS = ("none", "relu2", "softmax", "yoso")
MAPS = ("none", "identity", "hedgehog", "elu1", "relu", "performer", "rfa")
PROJECTED = ("hedgehog", "performer", "rfa")
NORMALIZERS = ("none", "denominator", "l2", "rms")
TYPES = (torch.float32, torch.float16, torch.bfloat16)
SETTINGS = (
    "local", "pattern", "map", "normalizer", "normalizes", "qk_norm", "local_norm", "window", "taps", "sinks",
)  # fmt: skip
SIZES = (
    "type", "index_bytes", "ancestor_bytes", "batch", "heads", "shared", "nodes", "dim", "value_dim",
    "features", "columns", "pending", "accepted", "alpha_step", "local_scale_step", "slice", "chain",
    "variant",
)  # fmt: skip
OUT_NAMES = ("output", "state_out", "norm_out", "window_key_out", "window_value_out", "pending_key_out")


def refuse(settings: AttentionSettings) -> None:
    """Raise when `Call` cannot say what `settings` mean."""
    known = {
        "local": LOCALS, "pattern": PATTERNS, "normalizer": NORMALIZERS, "feature_map": MAPS,
        "normalizes": SCOPES, "local_norm": (False, True), "causal": (True,),
    }  # fmt: skip
    for name, values in known.items():
        if getattr(settings, name) not in values:
            raise ValueError(f"the CUDA kernels have no {name} {getattr(settings, name)!r}")
    rest = {"qk_norm", "window", "conv_taps", "sinks", "eps", "feature_dim"}  # of any value
    if unread := set(settings.as_dict()) - set(known) - rest:
        raise ValueError(f"the CUDA kernels do not read {min(unread)}")


class Call(ctypes.Structure):
    """`Call` of csrc/cuda/call.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in SETTINGS),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("floor", ctypes.c_float),
        *((name, ctypes.c_int32) for name in SIZES),
        *((f"in_{name}", ctypes.c_void_p) for name in INPUTS),
        *((name, ctypes.c_void_p) for name in OUT_NAMES),
        ("tickets", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
    ]


class Kernels:
    """A built library; `step` has the ports of step.step."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.run = self.library.lineahead_augmented_attention
        self.run.argtypes = [ctypes.POINTER(Call), ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
        self.library.lineahead_call_size.restype = ctypes.c_size_t
        self.library.lineahead_ticket_count.restype = ctypes.c_size_t
        self.library.lineahead_workspace_size.restype = ctypes.c_size_t
        size = self.library.lineahead_call_size()
        assert size == ctypes.sizeof(Call), f"Call has {size} bytes, laid out here as {ctypes.sizeof(Call)}"
        self.tickets: dict[torch.device, torch.Tensor] = {}

    def prepare(
        self,
        ports,
        out,
        settings: AttentionSettings,
        scale: float,
        value_slice: int = 0,
        variant: int = 0,
        chain: bool = False,
    ) -> Call:
        """The `Call` for tensors `ports` (by INPUTS) and `out` (by OUTPUTS)."""
        refuse(settings)
        q, k, v = (ports[name] for name in ("query", "key", "value"))
        for name, port in (*ports.items(), *out.items()):
            assert port.is_contiguous(), name
        call = Call(
            local=LOCALS.index(settings.local), pattern=PATTERNS.index(settings.pattern),
            map=MAPS.index(settings.feature_map), normalizer=NORMALIZERS.index(settings.normalizer),
            normalizes=SCOPES.index(settings.normalizes), qk_norm=settings.qk_norm,
            local_norm=settings.local_norm, floor=settings.floor, window=settings.window,
            taps=settings.conv_taps, sinks=settings.sinks,
            eps=settings.eps, scale=scale, type=TYPES.index(q.dtype),
            index_bytes=ports["length"].element_size(), ancestor_bytes=ports["ancestors"].element_size(),
            batch=q.shape[0], heads=q.shape[1], shared=k.shape[1], nodes=q.shape[2], dim=q.shape[3],
            value_dim=v.shape[3], features=ports["state"].shape[2] if settings.has_state else 0,
            columns=ports["query_map"].shape[-1] if settings.feature_map in PROJECTED else 0,
            pending=ports["pending_key"].shape[2], accepted=ports["accept_index"].shape[1],
            alpha_step=1, local_scale_step=1, slice=value_slice, variant=variant, chain=chain,
            **{f"in_{name}": ports[name].data_ptr() for name in INPUTS},
            **{name: out[port].data_ptr() for name, port in zip(OUT_NAMES, OUTPUTS, strict=True)},
        )  # fmt: skip
        count = self.library.lineahead_ticket_count(ctypes.byref(call))
        tickets = self.tickets.get(q.device)
        if tickets is None or tickets.numel() < count:
            tickets = self.tickets[q.device] = torch.zeros(
                max(count, 1 << 16), dtype=torch.int32, device=q.device
            )
        call.tickets = tickets.data_ptr()
        size = self.library.lineahead_workspace_size(ctypes.byref(call))
        call.space = torch.full((size,), 255, dtype=torch.uint8, device=q.device)  # not-a-numbers
        call.workspace = call.space.data_ptr() if size else None
        return call

    def launch(self, call: Call, stream: int = 0) -> None:
        """Enqueue a prepared call."""
        message = ctypes.create_string_buffer(256)
        if self.run(ctypes.byref(call), stream, message, len(message)):
            raise RuntimeError(message.value.decode())

    def outputs(self, ports, *, in_place: bool):
        """Tensors for the outputs, by OUTPUTS: not-a-numbers, or the state itself."""
        q, k, v = (ports[name] for name in ("query", "key", "value"))
        shapes = {"output": (*q.shape[:3], v.shape[3]), "pending_key": k.shape}
        out = {}
        for name in OUTPUTS:
            if name in shapes:
                out[name] = q.new_full(shapes[name], torch.nan)
            else:
                out[name] = ports[name] if in_place else torch.full_like(ports[name], torch.nan)
        return out

    def step(self, ports, settings, scale, *, in_place=False, value_slice=0, variant=0, chain=False):
        """Outputs by name. With `in_place` the state tensors of `ports` are overwritten."""
        out = self.outputs(ports, in_place=in_place)
        stream = torch.cuda.current_stream().cuda_stream if ports["query"].is_cuda else 0
        self.launch(self.prepare(ports, out, settings, scale, value_slice, variant, chain), stream)
        return out
