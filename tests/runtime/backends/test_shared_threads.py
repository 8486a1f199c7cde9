"""One pool of threads for all graphs of a process: the same results, in a process of its own."""

import json
import subprocess
import sys

PROGRAM = """
import json, sys
import numpy as np, onnx
from pathlib import Path
from onnx import TensorProto, helper
from lineahead.runtime.backends.ort_library import open_graph, share_threads

share_threads(2)
share_threads(2)
port = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2])
graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "g", [port("x")], [port("y")])
path = Path(sys.argv[1])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
sessions = [open_graph(path, provider="cpu", threads=2) for _ in range(2)]
print(json.dumps([one.run(None, {"x": np.eye(2, dtype=np.float32) * 3})[0].tolist() for one in sessions]))
"""


def test_sessions_share_a_pool(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "g.onnx")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[[9.0, 0.0], [0.0, 9.0]]] * 2
    assert "ignored" not in done.stderr  # ONNX Runtime warns of numbers of threads beside the pool's
