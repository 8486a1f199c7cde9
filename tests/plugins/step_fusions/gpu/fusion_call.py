"""Call the fused kernels' C functions through ctypes, on tensors of any device that the library can read."""

import ctypes

import torch

from lineahead.plugins.step_fusions.schema import (
    ACTIVATIONS,
    ADD_RMS_NORM,
    GATED_UNIT,
    RMS_NORM,
    ROTARY_HEADS,
    ROTARY_TABLE,
)

TYPES = (torch.float32, torch.float16, torch.bfloat16)
INT, FLOAT, POINTER = ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


def structure(name, integers, floats, pointers):
    fields = (
        [(one, INT) for one in integers]
        + [(one, FLOAT) for one in floats]
        + [(one, POINTER) for one in pointers]
    )
    return type(name, (ctypes.Structure,), {"_fields_": fields})


Norm = structure(
    "Norm", ("type", "rows", "width"), ("epsilon",), ("x", "residual", "weight", "normed", "total")
)
Rotary = structure(
    "Rotary",
    ("type", "batch", "nodes", "heads", "shared", "dim"),
    (),
    ("product", "cos", "sin", "query", "key", "value"),
)
Table = structure("Table", ("rows", "half"), (), ("positions", "frequencies", "cos", "sin"))
Gate = structure("Gate", ("type", "rows", "width", "activation"), (), ("product", "output"))


class FusedKernels:
    """A library with the kernels."""

    def __init__(self, library):
        self.library = ctypes.CDLL(str(library))

    def __call__(self, name, ports, out, fields, stream=None):
        """Fill `out` by operator `name`; raises what the library refuses."""
        first = next(iter(ports.values()))
        pointers = {port: x.data_ptr() for port, x in (ports | out).items()}
        call, function = self._call(name, first, fields)
        if name == ROTARY_TABLE.name:
            call.half = ports["frequencies"].numel()
        for port, address in pointers.items():
            setattr(call, port, address)
        message = ctypes.create_string_buffer(256)
        if function(ctypes.byref(call), ctypes.c_void_p(stream), message, len(message)):
            raise RuntimeError(message.value.decode())

    def _call(self, name, first, fields):
        if name == ROTARY_TABLE.name:
            return Table(rows=first.numel()), self.library.lineahead_rotary_table
        kind, width = TYPES.index(first.dtype), first.shape[-1]
        rows = first.numel() // width
        if name in (ADD_RMS_NORM.name, RMS_NORM.name):
            call = Norm(type=kind, rows=rows, width=width, epsilon=fields["epsilon"])
            return call, self.library.lineahead_rms_norm
        if name == GATED_UNIT.name:
            activation = ACTIVATIONS.index(fields["activation"])
            return Gate(
                type=kind, rows=rows, width=width // 2, activation=activation
            ), self.library.lineahead_gated_unit
        assert name == ROTARY_HEADS.name
        sizes = {"heads": fields["heads"], "shared": fields["kv_heads"], "dim": fields["head_dim"]}
        call = Rotary(type=kind, batch=first.shape[0], nodes=first.shape[1], **sizes)
        return call, self.library.lineahead_rotary_heads
