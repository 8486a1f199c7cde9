"""A stand-in for the module that Triton gives to Python models, and a repository of a tiny artifact."""

import queue
import sys
import types

import numpy as np
import pytest

from lineahead.runtime.engine.options import EngineOptions
from lineahead.runtime.triton.repository import write_repository

OPTIONS = EngineOptions(
    slots=4, threads=1, chunk=16, prefill_budget=16, ignore_position_limit=True, max_tokens=100_000
)


class Tensor:
    def __init__(self, name, value):
        self.name, self.value = name, value

    def as_numpy(self):
        return self.value


class TritonError(Exception):
    INVALID_ARG, UNAVAILABLE, INTERNAL = "INVALID_ARG", "UNAVAILABLE", "INTERNAL"

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


class Response:
    def __init__(self, output_tensors=(), error=None):
        self.values = {one.name: one.value for one in output_tensors}
        self.error = error


class Sender:
    """Refuses what Triton refuses: responses after the last one."""

    def __init__(self):
        self.sent, self.ended, self.cancelled = queue.Queue(), False, False

    def send(self, response, flags=0):
        assert not self.ended, "a response after the final one"
        self.ended = flags == 1
        self.sent.put((response, flags))

    def is_cancelled(self):
        return self.cancelled

    def all(self):
        found = []
        while not found or found[-1][1] == 0:
            found.append(self.sent.get(timeout=60))
        return [response for response, _ in found]


class Request:
    def __init__(self, **values):
        self.values = {name: Tensor(name, np.array(value)) for name, value in values.items()}
        self.sender = Sender()

    def get_response_sender(self):
        return self.sender


@pytest.fixture
def request_of():
    return Request


@pytest.fixture(scope="session")
def repository(artifact, tmp_path_factory):
    found = tmp_path_factory.mktemp("triton") / "repository"
    write_repository(artifact, found, OPTIONS, name="tiny")
    return found


@pytest.fixture(scope="module")
def model(repository):
    """The model as Triton would start it."""
    import json

    module = types.ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse, module.TritonError = Tensor, Response, TritonError
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    module.get_input_tensor_by_name = lambda request, name: request.values.get(name)
    sys.modules[module.__name__] = module
    from lineahead.runtime.triton.model import TritonPythonModel

    found = TritonPythonModel()
    parameters = {name: {"string_value": str(value)} for name, value in OPTIONS.model_dump().items()}
    found.initialize(
        {
            "model_config": json.dumps({"parameters": parameters}),
            "model_repository": str(repository / "tiny"),
            "model_version": "1",
        }
    )
    yield found
    found.finalize()
    del sys.modules[module.__name__]
