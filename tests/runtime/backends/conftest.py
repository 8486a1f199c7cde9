"""A GPU and an engine that are neither: host memory behind addresses, and ONNX Runtime behind an engine."""

import ctypes
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from lineahead.convert.tensorrt.draft_graph import draft_graph
from lineahead.convert.tensorrt.graph import engine_graph, save_for_check
from lineahead.plugins.tensorrt.engine import BYTES, Tensor
from lineahead.plugins.tensorrt.record import Bucket
from lineahead.runtime.artifact import read_artifact
from lineahead.runtime.backends.tensorrt import TensorRTSession
from lineahead.runtime.backends.trt_drafts import ServedDraft
from lineahead.runtime.backends.trt_steps import Served
from lineahead.runtime.generate import Generator
from lineahead.runtime.tokenizer import Tokenizer

SESSION_BUCKETS = tuple(
    Bucket(batch=batch, nodes=nodes, results=min(nodes, 64)) for batch in (1, 4) for nodes in (1, 8, 40)
)
DRAFT_BUCKETS = tuple(Bucket(batch=batch, nodes=1, results=1) for batch in (1, 4))


class FakeDevice:
    """Host memory; recording collects work instead of doing it, as a CUDA graph does."""

    stream = 0

    def __init__(self):
        self.blocks, self.recording, self.launches = {}, None, 0

    def _do(self, work):
        work() if self.recording is None else self.recording.append(work)

    def allocate(self, size):
        block = np.zeros(max(size, 1), np.uint8)
        self.blocks[block.ctypes.data] = block
        return block.ctypes.data

    def free(self, address):
        del self.blocks[address]

    def pinned(self, size):
        block = np.zeros(max(size, 1), np.uint8)
        self.blocks[block.ctypes.data] = block
        return block

    def bytes_at(self, address, size):
        """The memory of an address; it must lie in one allocation."""
        start = max(one for one in self.blocks if one <= address)
        assert address + size <= start + self.blocks[start].nbytes, "outside its allocation"
        return self.blocks[start][address - start : address - start + size]

    def _move(self, target, source, size):
        self._do(lambda: ctypes.memmove(target, source, size))

    def upload(self, address, array):
        self.bytes_at(address, array.nbytes)
        self._move(address, array.ctypes.data, array.nbytes)

    def fetch(self, array, address):
        self.bytes_at(address, array.nbytes)
        self._move(array.ctypes.data, address, array.nbytes)

    def download(self, array, address):
        assert self.recording is None, "waiting inside a graph"
        self.fetch(array, address)

    def copy(self, target, source, size):
        self.bytes_at(target, size), self.bytes_at(source, size)
        self._move(target, source, size)

    def zero(self, address, size):
        self.bytes_at(address, size)
        self._do(lambda: ctypes.memset(address, 0, size))

    def synchronize(self):
        assert self.recording is None, "waiting inside a graph"

    def milliseconds(self, work):
        """A thousandth of a second for every launch and every piece of work."""
        before = self.launches
        work()
        return 1.0 + self.launches - before

    def capture(self, work):
        self.recording = []
        work()
        recorded, self.recording = self.recording, None

        def launch():
            self.launches += 1
            for one in recorded:
                one()

        return launch


class FakeEngine:
    """A lowered graph with its function bodies in ONNX Runtime, reading and writing a device's memory."""

    def __init__(self, graph, device):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(graph))
        self.device, self.tensors = device, {}
        kinds = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int32)": "int32"}
        for group, is_input in ((self.session.get_inputs(), True), (self.session.get_outputs(), False)):
            for one in group:
                shape = tuple(axis if isinstance(axis, int) else -1 for axis in one.shape)
                self.tensors[one.name] = Tensor(
                    name=one.name, dtype=kinds[one.type], shape=shape, is_input=is_input
                )

    def _view(self, name, shape, address):
        kind = self.tensors[name].dtype
        raw = self.device.bytes_at(address, int(np.prod(shape)) * BYTES[kind])
        return raw.view(np.dtype(kind)).reshape(shape)

    def prepare(self, profile, shapes, addresses):
        assert set(addresses) == set(self.tensors), "every tensor needs a buffer"

        def run():
            feeds = {name: self._view(name, shape, addresses[name]).copy() for name, shape in shapes.items()}
            names = [name for name, one in self.tensors.items() if not one.is_input]
            for name, array in zip(names, self.session.run(names, feeds), strict=True):
                self._view(name, array.shape, addresses[name])[...] = array

        return lambda: self.device._do(run)

    def profile_layers(self, enqueue, profile, shapes):
        enqueue()
        return {"node_augmented_attention": 2.0, "node_linear": 3.0}


class FakeChoice:
    """What ``best_tokens.cu`` and ``top_tokens.cu`` compute; counts how often the best are chosen."""

    tops = 0

    def enqueue(self, logits, keys, rows, width, device):
        self._choose(logits, keys, rows, width, 1, device)

    def enqueue_top(self, logits, keys, rows, width, count, device):
        self.tops += 1
        self._choose(logits, keys, rows, width, count, device)

    def _choose(self, logits, keys, rows, width, count, device):
        def run():
            scores = device.bytes_at(logits, rows * width * 4).view(np.float32).reshape(rows, width)
            bits = np.where(np.isnan(scores), np.uint32(0x7FFFFFFF), (scores + np.float32(0)).view(np.uint32))
            order = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000)).astype(np.uint64)
            place = np.arange(width, dtype=np.uint32)
            every = np.sort((order << np.uint64(32)) | (~place).astype(np.uint64), axis=1)[:, ::-1]
            found = device.bytes_at(keys, rows * count * 8).view(np.uint64).reshape(rows, count)
            found[...] = every[:, :count]

        device._do(run)


class FakeDraftKernels:
    """What ``step_fusions/csrc/cuda/draft.cu`` computes."""

    def begin(self, sources, ids, hidden, tokens, *, rows, width, nodes, device):
        def view(address, count, kind):
            return device.bytes_at(address, count * np.dtype(kind).itemsize).view(kind)

        def run():
            to = view(hidden, rows * width, np.float32).reshape(rows, width)
            for row, source in enumerate(view(sources, rows, np.uint64).tolist()):
                to[row] = view(source, width, np.float32) if source else 0
            view(tokens, rows, np.int32)[:] = view(ids, rows * nodes, np.int32).reshape(rows, nodes)[:, 0]

        device._do(run)

    def choose(self, scores, names, ids, tokens, *, rows, width, nodes, place, device):
        def run():
            found = device.bytes_at(scores, rows * width * 4).view(np.float32).reshape(rows, width)
            chosen = device.bytes_at(names, width * 4).view(np.int32)[found.argmax(1)]
            device.bytes_at(tokens, rows * 4).view(np.int32)[:] = chosen
            device.bytes_at(ids, rows * nodes * 4).view(np.int32).reshape(rows, nodes)[:, place] = chosen

        device._do(run)


@pytest.fixture(scope="session")
def tensorrt_fakes():
    """The fakes' classes."""
    return SimpleNamespace(
        Device=FakeDevice, Engine=FakeEngine, Choice=FakeChoice, DraftKernels=FakeDraftKernels
    )


@pytest.fixture(scope="session")
def drafting(artifact, tmp_path_factory):
    """The tiny artifact with a random recurrent draft."""
    import torch

    from lineahead.convert.drafts.recurrent import RecurrentConfig, RecurrentDraft, save_recurrent
    from lineahead.convert.onnx.recurrent_draft import export_recurrent

    folder = tmp_path_factory.mktemp("drafting") / "tiny"
    shutil.copytree(artifact, folder)
    torch.manual_seed(0)
    config = RecurrentConfig(hidden_size=32, width=48, blocks=1, depth=3, vocabulary=200, top=4)
    draft = RecurrentDraft(config, torch.arange(2, 202))
    torch.nn.init.normal_(draft.fuse_token, std=0.2)
    torch.nn.init.normal_(draft.down, std=0.2)
    save_recurrent(draft, folder)
    export_recurrent(folder, folder / "onnx" / "draft.onnx", opset=23)
    return folder


@pytest.fixture(scope="session")
def drafting_sessions(drafting, tensorrt_fakes, tmp_path_factory):
    """TensorRT sessions with a draft, by precision, on fakes."""
    found, folder, kept = read_artifact(drafting), tmp_path_factory.mktemp("lowered"), {}

    def open_(precision="fp32", *, drafts=DRAFT_BUCKETS):
        if (precision, drafts) not in kept:
            device = tensorrt_fakes.Device()
            paths = {kind: folder / f"{kind}_{precision}.onnx" for kind in ("verifier", "draft")}
            save_for_check(engine_graph(found.graph("fp32"), precision), paths["verifier"])
            model, draft = draft_graph(found.draft_graph(), precision)
            save_for_check(model, paths["draft"])
            engines = {kind: tensorrt_fakes.Engine(path, device) for kind, path in paths.items()}
            kept[precision, drafts] = TensorRTSession(
                [Served(engine=engines["verifier"], buckets=SESSION_BUCKETS)],
                device,
                identity=found.identity,
                choice=tensorrt_fakes.Choice(),
                draft=ServedDraft(
                    engine=engines["draft"],
                    buckets=drafts,
                    kernels=tensorrt_fakes.DraftKernels(),
                    names=draft.names,
                ),
            )
        return kept[precision, drafts]

    return open_


@pytest.fixture
def generator(drafting, drafting_sessions):
    """Of such a session in float32."""
    found = read_artifact(drafting)
    return Generator(found, drafting_sessions().sibling(), Tokenizer(found.folder))
