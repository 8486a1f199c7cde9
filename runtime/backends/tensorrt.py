"""The step graph as a TensorRT engine: state stays on the GPU, a step is one graph launch, no torch."""

import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lineahead.errors import BackendError, InputError
from lineahead.plugins.step_graph import HIDDEN_STATES, LENGTH_IN, LOGITS
from lineahead.plugins.tensorrt.call import Sizes, choose
from lineahead.plugins.tensorrt.choice import Choice
from lineahead.plugins.tensorrt.cuda import Device
from lineahead.plugins.tensorrt.loading import open_draft, open_engines
from lineahead.plugins.tensorrt.record import Bucket, EngineRecord
from lineahead.runtime.artifact import Artifact
from lineahead.runtime.backends.trt_drafts import Drafting, ServedDraft
from lineahead.runtime.backends.trt_memory import Memory, carried_tensors
from lineahead.runtime.backends.trt_steps import Array, DeviceOutput, Draft, Results, Served, Step
from lineahead.runtime.session import (
    HeldRow,
    Hidden,
    Ints,
    RowState,
    Session,
    SessionInfo,
    StepInput,
    StepOutput,
    check,
)
from lineahead.runtime.state import same_layout

logger = logging.getLogger(__name__)


class TensorRTSession(Session):
    """A verifier engine and the decoding state of a batch.

    The batch is padded to an engine's bucket, and so are a call's nodes. State is updated in place; only the
    call's inputs go to the device and only the best tokens come back, unless logits are asked for.
    """

    def __init__(
        self,
        engines: Sequence[Served],
        device: Device,
        *,
        identity: Callable[[], str],
        choice: Choice | None = None,
        draft: ServedDraft | None = None,
        info: SessionInfo | None = None,
    ) -> None:
        """Take over engines of one model; use :meth:`load` for an artifact.

        Args:
            engines: the first verifies trees; another may read prompts faster.
            device: where they run.
            identity: gives the model's hash, for saved states.
            choice: chooses tokens on the device; without it every step's logits are fetched.
            draft: drafts within steps; without it :meth:`draft_step` is refused.
            info: what is running.
        """
        self._engines, self._device, self._choice, self._served = list(engines), device, choice, draft
        tensors = engines[0].engine.tensors
        self._carried = carried_tensors(tensors)
        self._widths = tensors[LOGITS].shape[-1], tensors[HIDDEN_STATES].shape[-1]
        self._batches = sorted({bucket.batch for one in engines for bucket in one.buckets})
        self.most_rows = self._batches[-1]
        self._most_nodes = max(bucket.nodes for one in engines for bucket in one.buckets)
        self._memories: dict[int, Memory] = {}
        self._results: dict[tuple[int, int], Results] = {}
        self._draftings: dict[int, Drafting] = {}
        self._steps: dict[tuple[Sizes, int, int, bool], Step] = {}
        self._top_wanted = False
        self._last: DeviceOutput | None = None
        self.identity = identity
        self.info = info or SessionInfo(backend="tensorrt", implementation="plugin", device="cuda")
        self.drafts = draft is not None
        self._length: Ints = np.zeros(0, np.int64)
        self._nodes = 0
        self._memory = self._held(1)

    @classmethod
    def load(cls, artifact: Artifact, *, precision: str = "fp16", rebuild: bool = False) -> "TensorRTSession":
        """Open the engine that was built for this GPU and TensorRT.

        Args:
            artifact: the folder.
            precision: ``fp32``, ``fp16`` or ``bf16``.
            rebuild: build the engine when there is none that fits, with ``lineahead export tensorrt``.

        Raises:
            ArtifactError: when there is none, or it was built for another GPU, TensorRT or plugin.
            BackendError: when TensorRT, cuda-python or a GPU is missing.
        """
        again = partial(export_engine, artifact.folder, precision) if rebuild else None
        opened = open_engines(artifact.folder, precision, rebuild=again)
        info = SessionInfo(
            backend="tensorrt",
            precision=precision,
            implementation="plugin",
            device=f"{opened[0].record.card}, TensorRT {opened[0].record.tensorrt}",
        )
        logger.info("%s: %s", opened[0].path, info)
        engines = [
            Served(engine=one.engine, buckets=one.record.buckets, chain=one.chain, weights=one.weights)
            for one in opened
        ]
        found = open_draft(artifact.folder, precision, opened[0])
        draft = None
        if found is not None:
            draft = ServedDraft(
                engine=found.engine, buckets=found.record.buckets, kernels=found.kernels, names=found.names
            )
            draft.require(opened[0].engine.tensors[HIDDEN_STATES].shape[-1], found.path)
        return cls(
            engines,
            opened[0].device,
            identity=artifact.identity,
            choice=opened[0].choice,
            draft=draft,
            info=info,
        )

    @property
    def length(self) -> Ints:
        """Tokens committed, ``[B]``."""
        return self._length

    def _held(self, batch: int) -> Memory:
        """The memory of the smallest bucket for `batch` sequences, made once."""
        fitting = [size for size in self._batches if size >= batch]
        if not fitting:
            raise InputError(
                f"{batch} sequences at once; the engine was built for {self._batches[-1]}",
                hint="Decode fewer together, or build a larger bucket: `lineahead export tensorrt --bucket`.",
            )
        if fitting[0] not in self._memories:
            made = Memory(self._device, self._carried, batch=fitting[0], most_nodes=self._most_nodes)
            self._memories[fitting[0]] = made
        return self._memories[fitting[0]]

    @property
    def chunk(self) -> int:  # type: ignore[override]
        """Nodes of the largest call of as many rows as there are."""
        batch = self._memory.batch
        return max(one.nodes for served in self._engines for one in served.buckets if one.batch == batch)

    def reset(self, batch: int) -> None:
        """Start over with `batch` empty sequences."""
        self._memory = self._held(max(batch, 1))
        self._memory.clear()
        self._length, self._nodes = np.zeros(batch, np.int64), 0

    @property
    def most_drafted(self) -> int:
        """Longest chain that a step can draft for the rows there are; 0 without a draft engine for them."""
        if self._served is None or self._served.profile(self._memory.batch) is None:
            return 0
        fitting = [one for one in self._engines[0].buckets if one.batch == self._memory.batch]
        return max((min(one.nodes, one.results) for one in fitting), default=1) - 1

    def step(self, inputs: StepInput) -> StepOutput:
        """Commit, then score the nodes; as :meth:`Session.step`."""
        return self._run(inputs, None)[1]

    def draft_step(
        self, inputs: StepInput, hidden: Sequence[Hidden | None], count: int
    ) -> tuple[Ints, StepOutput]:
        """Draft, commit, score, in one launch; as :meth:`Session.draft_step`."""
        if not 0 < count <= self.most_drafted or len(hidden) != len(self._length):
            raise InputError(
                f"a draft of {count} tokens for {len(hidden)} sequences; the engines can draft "
                f"{self.most_drafted} for {len(self._length)}",
                hint="Build a draft engine and larger buckets: `lineahead export tensorrt`.",
            )
        work = self._drafting()
        work.begin([self._source(one) for one in hidden])
        step, output = self._run(inputs, Draft(work=work, count=count))
        return step.ids[: len(hidden), 1 : count + 1].astype(np.int64), output

    def _source(self, hidden: Hidden | None) -> int | npt.NDArray[np.float32] | None:
        """Where a draft finds a hidden state: its address if it is a result of the last call."""
        if isinstance(hidden, HeldRow) and isinstance(hidden.output, DeviceOutput):
            if hidden.output is self._last:
                return hidden.output.hidden_address(hidden.row, hidden.result)
            return np.asarray(hidden)
        return None if hidden is None else np.asarray(hidden, np.float32)

    def _drafting(self) -> Drafting:
        """The draft's buffers for the padded batch, made once."""
        batch = self._memory.batch
        if batch not in self._draftings:
            assert self._served is not None
            profile = self._served.profile(batch)
            assert profile is not None
            self._draftings[batch] = Drafting(self._device, self._served, batch=batch, profile=profile)
        return self._draftings[batch]

    def _run(self, inputs: StepInput, draft: Draft | None) -> tuple[Step, DeviceOutput]:
        """One call, padded to a bucket that has room for what is drafted."""
        check(inputs, len(self._length), self._nodes)
        batch, nodes = inputs.input_ids.shape
        count = inputs.output_index.shape[1]
        largest, smallest = int(inputs.input_ids.max(initial=0)), int(inputs.input_ids.min(initial=0))
        if smallest < 0 or largest >= self._widths[0]:
            raise BackendError(
                f"the step failed: token {largest if smallest >= 0 else smallest} is outside the vocabulary "
                f"of {self._widths[0]}",
                hint="Use the tokenizer of this artifact.",
            )
        room = nodes if draft is None else max(nodes, draft.count + 1)
        step = self._step(self._sizes(room, count, inputs), draft)
        self._top_wanted = False
        if self._last is not None:
            self._last.expire()
        call: dict[str, Array] = {
            "input_ids": inputs.input_ids,
            "ancestors": inputs.ancestors,
            "output_index": inputs.output_index,
            "accept_index": inputs.accept_index,
            "accept_count": inputs.accept_count,
            LENGTH_IN: self._length,
        }
        step.run(call)
        memory = self._memory
        memory.side, memory.nodes, self._nodes = 1 - memory.side, step.sizes.nodes, nodes
        self._length = self._length + inputs.accept_count
        self._last = DeviceOutput(
            self._device,
            step.results,
            batch=batch,
            count=count,
            chosen=self._choice is not None,
            ask=partial(self._top_keys, step),
        )
        return step, self._last

    def _top_keys(self, step: Step) -> npt.NDArray[np.uint64] | None:
        """The best tokens of a step; the next one chooses them in its graph."""
        self._top_wanted = True
        return step.top_keys()

    def _sizes(self, nodes: int, results: int, inputs: StepInput) -> Sizes:
        """What a call is padded to, and which engine takes it: the first that can."""
        batch = self._memory.batch
        chains = nodes > 1 and any(one.chain for one in self._engines) and is_chain(inputs)
        able = [i for i, one in enumerate(self._engines) if chains or not one.chain]
        own = {i: [one for one in self._engines[i].buckets if one.batch == batch] for i in able}
        least = min(one.nodes for buckets in own.values() for one in buckets)
        place = next((i for i in able if fits(own[i], nodes, results)), able[0])
        bucket = own[place][choose(own[place], batch, nodes, results)]
        return Sizes(
            engine=place,
            profile=self._engines[place].buckets.index(bucket),
            batch=batch,
            nodes=bucket.nodes,
            results=1 if results == 1 else bucket.results,
            pending=self._memory.nodes or least,
        )

    def _step(self, sizes: Sizes, draft: Draft | None) -> Step:
        top = self._top_wanted and self._choice is not None
        key = sizes, self._memory.side, 0 if draft is None else draft.count, top
        if key not in self._steps:
            place = sizes.batch, sizes.results
            if place not in self._results:
                self._results[place] = Results(self._device, *place, self._widths)
            self._steps[key] = Step(
                self._device,
                self._engines[sizes.engine].engine,
                self._memory,
                self._results[place],
                sizes=sizes,
                side=self._memory.side,
                choice=self._choice,
                draft=draft,
                top=top,
                weights=self._engines[sizes.engine].weights,
            )
        return self._steps[key]

    def fork(self, rows: Sequence[int]) -> None:
        """Continue with `rows`; as :meth:`Session.fork`. Copies on the device."""
        if list(rows) == list(range(len(self._length))):
            return
        pick = np.asarray(rows, np.int64)
        memory = self._held(max(len(rows), 1))
        if not len(self._length):
            self.reset(len(rows))
            return
        memory.take(self._memory, rows)
        self._memory = memory
        self._length = np.where(pick < 0, 0, self._length[np.maximum(pick, 0)])

    def sibling(self) -> "TensorRTSession":
        """Another state of the same engines; as :meth:`Session.sibling`."""
        return TensorRTSession(
            self._engines,
            self._device,
            identity=self.identity,
            choice=self._choice,
            draft=self._served,
            info=self.info,
        )

    def take(self, row: int) -> RowState:
        """A copy of one row on the host, bytes of the engine's types; as :meth:`Session.take`."""
        tensors = self._memory.read_row(row)
        return RowState(
            length=int(self._length[row]),
            state={name: one for name, one in tensors.items() if not name.startswith("pending.")},
            pending={name: one for name, one in tensors.items() if name.startswith("pending.")},
            nodes=self._memory.nodes,
        )

    def place(self, row: int, saved: RowState) -> None:
        """Replace one row; as :meth:`Session.place`."""
        self._memory.write_row(row, {**saved.state, **saved.pending}, saved.nodes)
        self._nodes = max(self._nodes, saved.nodes)
        self._length[row] = saved.length

    def read_state(self) -> dict[str, Array]:
        """Copies of the committed state; half precisions are widened, so that any backend can load them."""
        return {LENGTH_IN: self._length.copy(), **self._memory.read(len(self._length))}

    def write_state(self, tensors: dict[str, Array]) -> None:
        """Replace the state; as :meth:`Session.write_state`."""
        length = tensors.get(LENGTH_IN, np.zeros(0, np.int64)).astype(np.int64)
        batch = len(length)
        wanted: dict[str, tuple[int, ...]] = {LENGTH_IN: (batch,)}
        wanted |= {one.past: one.sized(batch, 0) for one in self._carried if not one.is_pending}
        found = {name: array.shape for name, array in tensors.items()}
        same_layout(found, wanted)
        self.reset(batch)
        self._memory.write(tensors)
        self._length = length


def is_chain(inputs: StepInput) -> bool:
    """Whether every sequence's nodes follow one another; padding, a root of its own, may come after them."""
    mask = inputs.ancestors
    nodes = mask.shape[1]
    spare = mask.sum(2) == 1
    spare[:, 0] = False
    chain = mask == np.tri(nodes, dtype=np.bool_)
    after = np.maximum.accumulate(spare, 1) == spare
    return bool((chain.all(2) | spare).all() and after.all())


def fits(buckets: Sequence[Bucket], nodes: int, results: int) -> bool:
    """Whether one of the buckets is large enough."""
    return any(one.nodes >= nodes and one.results >= results for one in buckets)


def export_engine(folder: Path, precision: str, earlier: EngineRecord | None = None) -> None:
    """Build an engine with the command that users have for it: the runtime does not import what exports.

    Args:
        folder: the artifact.
        precision: of the engine.
        earlier: how it was built before: its buckets, and whether weights were outside.

    Raises:
        BackendError: when the command fails.
    """
    command = [
        sys.executable,
        "-m",
        "lineahead.cli",
        "export",
        "tensorrt",
        str(folder),
        "--precision",
        precision,
    ]
    if earlier is not None:
        command += [word for one in earlier.buckets for word in ("--bucket", f"{one.batch}x{one.nodes}")]
        command += ["--outside"] if earlier.weights else []
    if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
        raise BackendError(
            f"{folder}: the engine could not be built",
            hint=f"Run `lineahead export tensorrt {folder} --precision {precision}` and see what it says.",
        )
