"""Makes the shared checks importable by name, and hands out the shipped forms."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def load(name: str, file: str):
    """Import a file beside this one under `name` (test folders are not packages)."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER / file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


load("operator_oracle", "oracle.py")
cases = load("operator_cases", "cases.py")
load("operator_checks", "checks.py")
load("operator_two_sided", "two_sided.py")
load("operator_kernel_call", "gpu/kernel_call.py")
load("operator_kernel_build", "gpu/emulated_build.py")
load("operator_kernel_cases", "gpu/kernel_cases.py")
load("operator_plugin_call", "gpu/plugin_call.py")
if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime"):
    load("native_model", "native_model.py")


@pytest.fixture(scope="session")
def forms():
    """The shipped forms of the operator."""
    names = [field.name for field in dataclasses.fields(cases.Forms)]
    package = "lineahead.plugins.augmented_attention"
    return cases.Forms(**{name: importlib.import_module(f"{package}.{name}") for name in names})


@pytest.fixture(scope="session")
def library():
    """The compiled native kernel."""
    from lineahead.plugins.augmented_attention import native

    path = native.library()
    if path is None:
        pytest.skip(native.status().reason)
    return path


@pytest.fixture(scope="session")
def kernels(emulated):
    """The CUDA kernels compiled for the CPU."""
    from operator_kernel_call import Kernels

    return Kernels(emulated())
