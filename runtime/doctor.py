"""What this installation can do; each problem comes with its cure.

Needs neither torch nor transformers: their versions are read from package metadata.
"""

import ctypes
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Literal

from lineahead.errors import BackendError
from lineahead.plugins import library
from lineahead.plugins.augmented_attention import native

Status = Literal["ok", "note", "problem"]

FLAVOURS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-training",
    "onnxruntime-openvino",
    "onnxruntime-directml",
)
PACKAGES = ("lineahead", "torch", "transformers", "tokenizers", "onnx", "onnxscript", "numpy", "safetensors")
TENSORRT_PACKAGES = (
    "tensorrt",
    "tensorrt-cu13",
    "tensorrt-cu12",
    "tensorrt-lean-cu13",
    "tensorrt-cu13-bindings",
)
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE: all are hidden, by CUDA_VISIBLE_DEVICES for one
NO_NUMBER_PROVIDERS = {"AzureExecutionProvider"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what was looked at.
        status: ``ok``; ``note`` when something optional is absent; ``problem`` when something will fail.
        detail: what was found.
        cure: the command or step that mends it, None when nothing needs mending.
    """

    check: str
    status: Status
    detail: str
    cure: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        """Plain dictionary for JSON."""
        return asdict(self)


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, None when it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def examine_environment() -> list[Finding]:
    """Look at everything on this machine that decoding or exporting depends on."""
    return [
        _system(),
        *(_package(name) for name in PACKAGES),
        *_onnxruntime(),
        _native_kernel(),
        _compiler(),
        _cuda_driver(),
        _cuda_compiler(),
        _tensorrt(),
        _plugin_library(),
    ]


def _system() -> Finding:
    return Finding(
        check="system",
        status="ok",
        detail=f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
    )


def _package(name: str) -> Finding:
    version = installed(name)
    if version is None:
        cure = "pip install lineahead" if name != "lineahead" else "pip install -e ."
        return Finding(check=name, status="note", detail="not installed", cure=cure)
    return Finding(check=name, status="ok", detail=version)


def _onnxruntime() -> list[Finding]:
    have = {name: version for name in FLAVOURS if (version := installed(name)) is not None}
    if not have:
        cure = 'pip install "lineahead[cpu]" (or "lineahead[gpu]")'
        return [Finding(check="onnxruntime", status="problem", detail="no ONNX Runtime installed", cure=cure)]
    names = " ".join(have)
    if len(have) > 1:
        return [
            Finding(
                check="onnxruntime",
                status="problem",
                detail=f"{' and '.join(have)} are installed together and overwrite each other's files",
                cure=f'pip uninstall -y {names} && pip install "lineahead[gpu]" (or "lineahead[cpu]")',
            )
        ]
    name, version = next(iter(have.items()))
    try:
        import onnxruntime

        providers = [one for one in onnxruntime.get_available_providers() if one not in NO_NUMBER_PROVIDERS]
    except (ImportError, AttributeError) as error:
        cure = f"pip install --force-reinstall --no-deps {name}=={version}"
        return [
            Finding(check=name, status="problem", detail=f"{version} does not import: {error}", cure=cure)
        ]
    return [
        Finding(check=name, status="ok", detail=version),
        Finding(check="providers built in", status="ok", detail=", ".join(providers)),
    ]


def _native_kernel() -> Finding:
    """The optional CPU kernel of the operator; without it the graph's own function body runs."""
    status = native.status()
    if status.path is not None:
        return Finding(check="native CPU kernel", status="ok", detail=status.path.name)
    if status.reason is not None:
        cure = "Install a C++ compiler." if status.compiler is None else None
        return Finding(check="native CPU kernel", status="note", detail=status.reason, cure=cure)
    return Finding(check="native CPU kernel", status="ok", detail="compiled on first use")


def _compiler() -> Finding:
    path = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if path is None:
        cure = "apt install g++ (or your system's C++ compiler)"
        return Finding(check="C++ compiler", status="note", detail="none found", cure=cure)
    return Finding(check="C++ compiler", status="ok", detail=path)


def cuda_devices() -> int:
    """Number of CUDA devices, asked of the driver itself; -1 without a driver.

    Raises:
        OSError: the driver is there but does not work; the message has its error code.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return -1
    count = ctypes.c_int(0)
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code == NO_DEVICE:
        return 0
    if code != 0:
        raise OSError(f"cuInit failed with code {code}")
    return count.value


def _cuda_driver() -> Finding:
    try:
        count = cuda_devices()
    except OSError as error:
        cure = "Check the driver with nvidia-smi; in a container, start it with --gpus all."
        return Finding(check="CUDA driver", status="problem", detail=str(error), cure=cure)
    if count < 0:
        return Finding(check="CUDA driver", status="note", detail="no libcuda.so.1: CPU only")
    return Finding(check="CUDA driver", status="ok", detail=f"{count} device(s)")


def _cuda_compiler() -> Finding:
    path = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if path is None:
        return Finding(check="CUDA compiler", status="note", detail="no nvcc: no plugin build")
    return Finding(check="CUDA compiler", status="ok", detail=path)


def _plugin_library() -> Finding:
    """The operator as a TensorRT plugin: what is built for the headers that are found."""
    check = "TensorRT plugin"
    try:
        headers = library.find_headers()
        path = library.cached(headers)
        if not path.is_file():
            detail = f"not built for TensorRT {headers.version}"
            return Finding(check=check, status="note", detail=detail, cure="lineahead plugin build")
        found = library.describe(path)
    except BackendError as error:
        return Finding(check=check, status="note", detail=str(error), cure=error.hint)
    built = found["build"]
    name = f"{found['name']} {found['version']}, sources {built['source_hash'][:12]}"
    return Finding(check=check, status="ok", detail=f"{name}, TensorRT {built['tensorrt']}: {path}")


def _tensorrt() -> Finding:
    have = [f"{name} {version}" for name in TENSORRT_PACKAGES if (version := installed(name)) is not None]
    if not have:
        cure = 'pip install "lineahead[tensorrt]"'
        return Finding(check="TensorRT", status="note", detail="not installed", cure=cure)
    return Finding(check="TensorRT", status="ok", detail=", ".join(have))
