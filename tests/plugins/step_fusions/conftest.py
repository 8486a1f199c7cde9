"""Makes the fused operators' shared checks importable by name, and those of the kernels' emulation."""

import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def load(name: str, file: str):
    """Import a file under `name` (test folders are not packages)."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER / file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


load("operator_kernel_build", "../augmented_attention/gpu/emulated_build.py")
load("operator_plugin_call", "../augmented_attention/gpu/plugin_call.py")
load("fusion_cases", "gpu/fusion_cases.py")
load("fusion_call", "gpu/fusion_call.py")
load("fusion_plugin", "fusion_plugin.py")
