"""The plugin library over emulated kernels, for each TensorRT whose headers are found."""

import os
from pathlib import Path

import pytest

from lineahead.errors import BackendError
from lineahead.plugins import library as plugin_library
from lineahead.plugins.augmented_attention import native


def found_headers():
    """Headers by the plugin interface that they have, of the folders in TENSORRT_ROOT or the usual ones."""
    roots = [Path(one) for one in os.environ.get("TENSORRT_ROOT", "").split(os.pathsep) if one]
    found = (plugin_library.find_headers(root) for root in roots or [None])
    return {"v3" if headers.major >= 10 else "v2": headers for headers in found}


@pytest.fixture(scope="session")
def emulated(made_once):
    """Builds the CUDA kernels for the CPU, all of them, when first asked for the library."""
    from operator_kernel_build import EMULATED_LIBRARY, build_emulated

    def make(folder):
        folder.mkdir()
        build_emulated(folder)

    def built():
        if native.find_compiler() is None:
            pytest.skip("no C++ compiler")
        return made_once("emulated", make) / EMULATED_LIBRARY

    return built


@pytest.fixture(scope="module", params=["v2", "v3"])
def built_plugins(request, emulated, tmp_path_factory):
    """Opens what was built as a kind of `PluginLibrary`, through the lean runtime if there is one."""
    from operator_plugin_call import build, find_lean

    if native.find_compiler() is None:
        pytest.skip("no C++ compiler")
    try:
        headers = found_headers()
    except BackendError as error:
        pytest.skip(str(error))
    if request.param not in headers:
        needed = "10 or later" if request.param == "v3" else "8.6"
        only = next(iter(headers.values())).version
        pytest.skip(f"no {plugin_library.HEADER} of TensorRT {needed}: only {only} was found")
    built = build(headers[request.param], emulated(), tmp_path_factory.mktemp(request.param))
    lean, libraries = find_lean() if request.param == "v3" else None, []

    def opened(kind):
        libraries.append(kind(*built, lean=lean))
        return libraries[-1]

    yield opened
    for library in libraries:
        library.c.close_library()
