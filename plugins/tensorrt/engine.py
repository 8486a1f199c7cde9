"""An engine behind the few calls that running it takes; a Protocol, so that tests need no TensorRT."""

import ctypes
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lineahead.errors import ArtifactError, BackendError
from lineahead.plugins.augmented_attention.schema import OP_TYPE
from lineahead.plugins.tensorrt.cuda import CudaDevice, Device
from lineahead.plugins.tensorrt.record import Machine

logger = logging.getLogger(__name__)
_LOADED: dict[str, Any] = {}
Shape = tuple[int, ...]
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "bool": 1, "int64": 8}


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One input or output.

    Attributes:
        name: of the graph's port.
        dtype: as NumPy names it, or ``bfloat16``.
        shape: -1 where the axis varies; of outputs, TensorRT 8.6 tells the sizes in the first profile.
        is_input: whether the caller fills it.
    """

    name: str
    dtype: str
    shape: Shape
    is_input: bool


class Engine(Protocol):
    """A deserialised engine on a device."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Inputs and outputs by name."""

    def prepare(
        self, profile: int, shapes: Mapping[str, Shape], addresses: Mapping[str, int]
    ) -> Callable[[], None]:
        """Fix a profile, the inputs' shapes and every buffer; returns what enqueues one run."""

    def profile_layers(
        self, enqueue: Callable[[], None], profile: int, shapes: Mapping[str, Shape]
    ) -> dict[str, float]:
        """Milliseconds of every layer in one run."""


def tensorrt_module() -> Any:
    """TensorRT's Python package.

    Raises:
        BackendError: when it is not installed.
    """
    try:
        import tensorrt
    except ModuleNotFoundError as error:
        raise BackendError(
            "TensorRT is not installed",
            hint='Run `pip install "lineahead[tensorrt]"` on the GPU machine; see docs/tensorrt.md.',
        ) from error
    except (ImportError, OSError) as error:
        raise BackendError(
            f"TensorRT cannot be loaded: {error}", hint="Put its libraries on LD_LIBRARY_PATH."
        ) from error
    return tensorrt


def trt_logger(trt: Any) -> Any:
    """A TensorRT logger that writes to Python's logging."""
    levels = {"VERBOSE": logging.DEBUG, "INFO": logging.DEBUG, "WARNING": logging.INFO}
    ranks = {getattr(trt.Logger, name): level for name, level in levels.items()}

    class Forward(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            logger.log(ranks.get(severity, logging.ERROR), "TensorRT: %s", text)

    return Forward()


def load_plugins(trt: Any, library: Path) -> None:
    """Put the plugins of `library` into TensorRT's registry.

    Raises:
        ArtifactError: when there is no such file, or it cannot be loaded here.
    """
    hint = "Build it with CMake from plugins/ against this TensorRT; see docs/tensorrt.md."
    if not library.is_file():
        raise ArtifactError(f"{library}: no plugin library", hint=hint)
    if str(library.resolve()) in _LOADED:
        return
    try:
        if int(trt.__version__.split(".")[0]) >= 10:
            handle: Any = trt.get_plugin_registry().load_library(str(library))
        else:
            handle = ctypes.CDLL(str(library.resolve()))
            find = ctypes.CDLL("libnvinfer.so.8").getPluginRegistry
            find.restype, handle.lineahead_register.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
            handle.lineahead_register(find())
    except (OSError, RuntimeError, AttributeError) as error:
        raise ArtifactError(f"{library}: cannot be loaded: {error}", hint=hint) from error
    if OP_TYPE not in {one.name for one in _creators(trt)}:
        raise ArtifactError(f"{library}: TensorRT {trt.__version__} does not take its plugins", hint=hint)
    _LOADED[str(library.resolve())] = handle


def _creators(trt: Any) -> Any:
    registry = trt.get_plugin_registry()
    return registry.all_creators if hasattr(registry, "all_creators") else registry.plugin_creator_list


def this_machine(trt: Any, device: CudaDevice) -> Machine:
    """What engines built here are bound to."""
    major, minor = device.capability
    return Machine(sm=f"sm_{major}{minor}", tensorrt=str(trt.__version__), card=device.name)


class TensorRTEngine:
    """A TensorRT engine; contexts are made once per profile and set of shapes, and share scratch memory."""

    def __init__(self, plan: Any, device: Device, *, trt: Any, log: Any) -> None:
        """Deserialise `plan` (bytes, or TensorRT's host memory).

        Raises:
            BackendError: when TensorRT refuses it.
        """
        self._trt, self._device = trt, device
        self._runtime = trt.Runtime(log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BackendError(
                "TensorRT cannot read the engine", hint="Build it again: `lineahead export tensorrt`."
            )
        self._scratch = device.allocate(self._engine.device_memory_size)
        self._contexts: dict[tuple[int, tuple[tuple[str, Shape], ...]], Any] = {}
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._tensors = {name: self._describe(name) for name in names}

    def _describe(self, name: str) -> Tensor:
        kinds = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT32": "int32", "BOOL": "bool"}
        dtype = str(self._engine.get_tensor_dtype(name)).rpartition(".")[2]
        return Tensor(
            name=name,
            dtype=kinds.get(dtype, dtype.lower()),
            shape=tuple(self._engine.get_tensor_shape(name)),
            is_input=self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT,
        )

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Inputs and outputs by name."""
        return self._tensors

    def largest_shapes(self, names: Sequence[str]) -> list[dict[str, Shape]]:
        """Largest shapes of inputs, one mapping a profile."""
        count, shape = self._engine.num_optimization_profiles, self._engine.get_tensor_profile_shape
        return [{name: tuple(shape(name, place)[2]) for name in names} for place in range(count)]

    def context(self, profile: int, shapes: Mapping[str, Shape]) -> Any:
        """The execution context for a profile and shapes."""
        key = (profile, tuple(sorted(shapes.items())))
        if key in self._contexts:
            return self._contexts[key]
        context = self._engine.create_execution_context_without_device_memory()
        if context is None:
            raise BackendError("TensorRT cannot make an execution context", hint="Free some GPU memory.")
        context.device_memory = self._scratch
        context.set_optimization_profile_async(profile, self._device.stream)
        self._device.synchronize()
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise BackendError(
                    f"{name} {shape} is outside optimisation profile {profile}",
                    hint="Build the engine with larger buckets: `lineahead export tensorrt --bucket`.",
                )
        self._contexts[key] = context
        return context

    def prepare(
        self, profile: int, shapes: Mapping[str, Shape], addresses: Mapping[str, int]
    ) -> Callable[[], None]:
        """Fix everything about a run; returns what enqueues it."""
        context, fixed = self.context(profile, shapes), dict(addresses)

        def enqueue() -> None:
            for name, address in fixed.items():
                context.set_tensor_address(name, address)
            if not context.execute_async_v3(self._device.stream):
                raise BackendError(
                    "TensorRT could not enqueue the step", hint="Run with -v for its messages."
                )

        return enqueue

    def profile_layers(
        self, enqueue: Callable[[], None], profile: int, shapes: Mapping[str, Shape]
    ) -> dict[str, float]:
        """Milliseconds of every layer in one run, by TensorRT's profiler."""
        trt, found = self._trt, {}

        class Collect(trt.IProfiler):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                found[layer_name] = ms

        context = self.context(profile, shapes)
        context.profiler = Collect()
        enqueue()
        self._device.synchronize()
        self._contexts.pop(
            (profile, tuple(sorted(shapes.items())))
        )  # one that is profiled cannot be captured
        return dict(found)
