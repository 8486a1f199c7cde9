"""The TensorRT plugin library on a CPU: the adapter over emulated kernels, called as TensorRT calls it."""

import ctypes
import importlib.util
import os
import subprocess
from pathlib import Path

import numpy as np
import torch

from lineahead.plugins.augmented_attention import native, tensorrt
from lineahead.plugins.augmented_attention.schema import INPUTS, OUTPUTS

ADAPTER = native.SOURCES.parent / "tensorrt"
FUSIONS = native.SOURCES.parents[2] / "step_fusions" / "csrc" / "tensorrt"
HARNESS = Path(__file__).parent / "plugin_harness.cpp"
LEAN_VARIABLE, LEAN_LIBRARY = "TENSORRT_LEAN", "libnvinfer_lean.so"
DATA_TYPES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "bool": 4, "bfloat16": 7, "int64": 8}
FIELD_TYPES = {"float": 1, "float64": 2, "int": 5, "string": 6, "int64": 10}
MOST_DIMS = 8


def find_lean():
    """TensorRT's lean runtime: in the folder that TENSORRT_LEAN names, or pip's; None without one."""
    spec = importlib.util.find_spec("tensorrt_lean_libs")
    folders = [os.environ.get(LEAN_VARIABLE), *(spec.submodule_search_locations if spec else ())]
    found = [path for one in folders if one for path in sorted(Path(one).glob(f"{LEAN_LIBRARY}.*"))]
    return found[0] if found else None


def build(headers, emulated, folder):
    """The plugin library over the emulated kernels and the harness, for one TensorRT's headers."""
    unity = folder / "unity.cpp"
    sources = sorted([*ADAPTER.glob("*.cpp"), *FUSIONS.glob("*.cpp")])
    unity.write_text("".join(f'#include "{path}"\n' for path in sources))
    base = [native.find_compiler(), "-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden"]
    base += ["-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations", "-Wno-array-bounds"]
    folders = [one.parent / part for one in (ADAPTER, FUSIONS) for part in ("cuda", "tensorrt")]
    base += [f"-I{one}" for one in folders]
    base += ["-isystem", str(emulated.parent), "-isystem", str(headers.folder)]
    link = [f"-L{emulated.parent}", f"-l:{emulated.name}", f"-Wl,-rpath,{emulated.parent}"]
    library, harness = folder / "liblineahead_plugins.so", folder / "libharness.so"
    subprocess.run([*base, '-DLINEAHEAD_SOURCE_HASH="tested"', str(unity), "-o", library, *link], check=True)
    subprocess.run([*base, str(HARNESS), "-o", harness, "-ldl"], check=True)
    return library, harness


def numpy_field(kind, value):
    """A field's type code, its data and its length."""
    if isinstance(value, str):
        data = np.frombuffer(value.encode(), np.uint8) if value else np.zeros(1, np.uint8)
        return FIELD_TYPES["string"], data, len(value)
    dtype = {"int": np.int32, "int64": np.int64, "float": np.float32, "float64": np.float64}[kind]
    return FIELD_TYPES[kind], np.array([value], dtype), 1


class RefusedError(Exception):
    """The plugin said no."""


class PluginLibrary:
    """A library behind a harness; `step` has the signature of kernel_call.Kernels.step."""

    def __init__(self, library, harness, lean=None):
        self.path, self.lean = library, lean
        self.c = ctypes.CDLL(str(harness))
        for name in ("create", "reload", "attach", "from_bytes"):
            getattr(self.c, name).restype = ctypes.c_void_p
        self.c.take_messages.restype = self.c.field_name.restype = ctypes.c_char_p
        self.c.workspace_size.restype = ctypes.c_size_t
        names = (tensorrt.NAME.encode(), tensorrt.VERSION.encode())
        code = self.c.open_library(str(library).encode(), str(lean).encode() if lean else None, *names)
        assert code == 0, f"code {code}: {self.messages()}"
        self.major = self.c.tensorrt_version() // 100

    def messages(self):
        return self.c.take_messages().decode()

    def made(self, handle):
        if not handle:
            raise RefusedError(self.messages())
        return ctypes.c_void_p(handle)

    def create(self, fields, kinds=None):
        """A plugin from attributes; `kinds` overrides the C types of some."""
        kinds = {**self.kinds(), **(kinds or {})}
        given = {name: numpy_field(kinds.get(name, "int"), value) for name, value in fields.items()}
        count = len(given)
        names = (ctypes.c_char_p * count)(*(name.encode() for name in given))
        types = (ctypes.c_int * count)(*(one[0] for one in given.values()))
        data = (ctypes.c_void_p * count)(*(one[1].ctypes.data for one in given.values()))
        lengths = (ctypes.c_int * count)(*(one[2] for one in given.values()))
        return self.made(self.c.create(count, names, types, data, lengths))

    def kinds(self):
        """Types of the fields, by name."""
        return tensorrt.FIELDS

    def reload(self, plugin):
        return self.made(self.c.reload(plugin))

    def attach(self, plugin):
        return self.made(self.c.attach(plugin))

    def cast(self, ports):
        """Operands of types that this TensorRT knows."""
        if self.major >= 10:
            return dict(ports)
        whole = ("ancestors", "length", "accept_index", "accept_count")
        return {name: x.int() if name in whole else x for name, x in ports.items()}

    def described(self, ports):
        """Dimensions, ranks and types of the operands, in C."""
        dims = (ctypes.c_int64 * (len(INPUTS) * MOST_DIMS))()
        for i, name in enumerate(INPUTS):
            for axis, size in enumerate(ports[name].shape):
                dims[i * MOST_DIMS + axis] = size
        ranks = (ctypes.c_int * len(INPUTS))(*(ports[name].ndim for name in INPUTS))
        kinds = [DATA_TYPES[str(ports[name].dtype).removeprefix("torch.")] for name in INPUTS]
        return dims, ranks, (ctypes.c_int * len(INPUTS))(*kinds), len(INPUTS)

    def enqueue(self, plugin, ports, out, *, announced=True):
        """One call, with a workspace of exactly the size that was asked for, and rubbish in it."""
        ports = self.cast(ports)
        described = self.described(ports)
        if announced and self.c.announce(plugin, *described):
            raise RefusedError(self.messages())
        workspace = torch.full((self.c.workspace_size(plugin, *described) // 4,), torch.nan)
        inputs = (ctypes.c_void_p * len(INPUTS))(*(ports[name].data_ptr() for name in INPUTS))
        outputs = (ctypes.c_void_p * len(OUTPUTS))(*(out[name].data_ptr() for name in OUTPUTS))
        if self.c.enqueue(plugin, *described, inputs, outputs, ctypes.c_void_p(workspace.data_ptr())):
            raise RefusedError(self.messages())

    def aliases(self, plugin):
        """Outputs that share an input's buffer, by name."""
        pairs = {name: self.c.aliased_input(plugin, i) for i, name in enumerate(OUTPUTS)}
        return {name: INPUTS[i] for name, i in pairs.items() if i >= 0}

    def step(self, ports, settings, scale, *, in_place=False, value_slice=0, variant=0, chain=False):
        """Outputs by name, from a plugin that was serialized, read back and attached to a context."""
        del value_slice, variant
        first = self.create(tensorrt.attributes(settings, scale, chain=chain))
        second = self.reload(first)
        plugin = self.attach(second)
        q, k, v = (ports[name] for name in ("query", "key", "value"))
        shared = self.aliases(plugin) if in_place else {}
        shapes = {"output": (*q.shape[:3], v.shape[3]), "pending_key": k.shape}
        out = {}
        for name in OUTPUTS:
            like = q if name in shapes else ports[name]
            out[name] = (
                ports[name] if name in shared else like.new_full(shapes.get(name, like.shape), torch.nan)
            )
        self.enqueue(plugin, ports, out)
        for one in (first, second, plugin):
            self.c.destroy(one)
        return out
