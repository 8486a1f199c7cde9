"""The model repository: what is in it, that Triton's own schema reads it, and that Triton itself runs it."""

import contextlib
import importlib.util
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from lineahead.errors import ArtifactError, InputError
from lineahead.runtime.generate import Generator
from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.triton.signature import INPUTS, OUTPUTS


def test_the_command_writes_what_decoding_reads_and_no_more(run, artifact, tmp_path):
    result = run("export", "triton", artifact, tmp_path, "--name", "m", "--slots", 3, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["model"] == "m"
    files = {str(path.relative_to(tmp_path / "m")) for path in (tmp_path / "m").rglob("*") if path.is_file()}
    assert {"config.pbtxt", "1/model.py", "1/artifact/config.json", "1/artifact/onnx/verifier.onnx"} <= files
    assert not [one for one in files if one.endswith(".safetensors")]
    assert 'key: "slots" value { string_value: "3" }' in (tmp_path / "m" / "config.pbtxt").read_text()
    Generator.load(tmp_path / "m" / "1" / "artifact", threads=1)


def test_writing_again_replaces_the_model_and_no_other(run, artifact, tmp_path):
    (tmp_path / "other").mkdir()
    for slots in (3, 5):
        assert run("export", "triton", artifact, tmp_path, "--name", "m", "--slots", slots).exit_code == 0
    assert 'key: "slots" value { string_value: "5" }' in (tmp_path / "m" / "config.pbtxt").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "other"]


@pytest.mark.parametrize(
    ("options", "kind", "word"),
    [
        (("--precision", "int4"), ArtifactError, "int4"),
        (("--backend", "tensorrt"), InputError, "tensorrt"),
        (("--name", "a/b"), InputError, "a/b"),
        (("--rebuild",), InputError, "rebuild"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_left(run, artifact, tmp_path, options, kind, word):
    result = run("export", "triton", artifact, tmp_path / "repository", *options)
    assert result.exit_code == kind.exit_code, result.output
    assert word in result.stderr.splitlines()[0]
    assert not (tmp_path / "repository").exists()


def test_tritons_schema_reads_the_configuration(repository):
    schema = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed"
    )
    from google.protobuf import text_format

    config = text_format.Parse((repository / "tiny" / "config.pbtxt").read_text(), schema.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "python", 0)
    assert config.model_transaction_policy.decoupled
    assert [one.name for one in config.input] == [one.name for one in INPUTS]
    assert all(one.optional and len(one.dims) == 1 for one in config.input)
    assert [one.name for one in config.output] == [one.name for one in OUTPUTS]
    assert config.parameters["slots"].string_value == "4"
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_CPU


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def backends(folder, home):
    """Triton's Python backend with the stub of this Python."""
    python = folder / "backends" / "python"
    shutil.copytree(home / "backends" / "python", python)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy2(home / "python_backend_stubs" / version / "triton_python_backend_stub", python)
    return python.parent


@pytest.fixture(scope="module")
def address(repository, tmp_path_factory):
    """Triton Inference Server itself, as the package nvidia-pytriton brings it."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None:
        pytest.skip("Triton Inference Server is not installed: pip install nvidia-pytriton")
    home = Path(spec.origin).parent / "tritonserver"
    folder = tmp_path_factory.mktemp("server")
    ports = {name: free_port() for name in ("http", "grpc", "metrics")}
    command = [
        str(home / "bin" / "tritonserver"), f"--model-repository={repository}",
        f"--backend-directory={backends(folder, home)}",
        "--http-address=127.0.0.1", "--grpc-address=127.0.0.1",
        *(f"--{name}-port={port}" for name, port in ports.items()),
    ]  # fmt: skip
    log = folder / "log"
    libraries = (sysconfig.get_config_var("LIBDIR"), str(home.parents[1] / "nvidia_pytriton.libs"))
    # The stub finds its packages beside the first `python3` on the PATH; PYTHONPATH does not reach it.
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
    }
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    url = f"http://127.0.0.1:{ports['http']}/v2"
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health/ready", timeout=5):
            break
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    yield f"127.0.0.1:{ports['grpc']}"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, log.read_text()


def infer(address, count=1, **values):
    """Responses of `count` equal requests, sent together: text, reason to end, or the error."""
    grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
    kinds = {one.name: one.kind.replace("STRING", "BYTES") for one in INPUTS}
    types = {"BYTES": np.object_, "BOOL": np.bool_, "INT32": np.int32, "FP32": np.float32}
    inputs = []
    for name, value in values.items():
        tensor = grpc.InferInput(name, [1], kinds[name])
        tensor.set_data_from_numpy(np.array([value], types[kinds[name]]))
        inputs.append(tensor)
    found, answers = queue.Queue(), [[] for _ in range(count)]
    with grpc.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: found.put((result, error)))
        for number in range(count):
            client.async_stream_infer(
                "tiny", inputs, request_id=str(number), enable_empty_final_response=True
            )
        ended = 0
        while ended < count:
            result, error = found.get(timeout=60)
            if error is not None:
                return str(error)
            response = result.get_response()
            ended += response.parameters["triton_final_response"].bool_param
            if result.as_numpy("text_output") is not None:
                texts = [result.as_numpy(name)[0].decode() for name in ("text_output", "finish_reason")]
                answers[int(response.id)].append(texts)
        client.stop_stream()
    return answers


@pytest.mark.slow
def test_triton_itself_serves_the_text_of_the_prompt_alone(address, artifact):
    generator = Generator.load(artifact, threads=1)
    events = generator.stream(["hello"], SamplingParams(max_tokens=12), ignore_position_limit=True)
    expected = "".join(event.text for event in events)
    asked = {"text_input": b"hello", "max_tokens": 12, "temperature": 0.0}
    assert infer(address, **asked) == [[[expected, "length"]]]
    for pieces in infer(address, count=9, stream=True, **asked):
        assert len(pieces) > 6
        assert "".join(text for text, _ in pieces) == expected
        assert [why for _, why in pieces] == [""] * (len(pieces) - 1) + ["length"]


@pytest.mark.slow
def test_triton_itself_passes_errors_on(address):
    assert "temperature" in infer(address, text_input=b"x", temperature=-1.0)
