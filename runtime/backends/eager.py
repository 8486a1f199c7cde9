"""The step model in eager torch: the reference backend, and the one that needs no export."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lineahead.errors import BackendError, CheckpointError, LineaheadError
from lineahead.plugins.softmax_attention.schema import CacheSettings, capacity
from lineahead.plugins.step_graph import LENGTH_IN
from lineahead.runtime.artifact import Artifact
from lineahead.runtime.caches import rows_needed, trimmed
from lineahead.runtime.session import Ints, RowState, Session, SessionInfo, StepInput, StepOutput, check
from lineahead.runtime.state import same_layout

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class EagerSession(Session):
    """A `StepModel` and the decoding state of a batch, on any torch device."""

    def __init__(self, model: Any, *, identity: Any, info: SessionInfo, names: Sequence[str]) -> None:
        """Take over a model; use :meth:`load` for an artifact.

        Args:
            model: a ``plugins.augmented_attention.huggingface.step_model.StepModel``.
            identity: gives the model's hash, for saved states.
            info: what is running.
            names: the carried inputs in the model's order, ``past.*`` and ``pending.*``.
        """
        self._model, self.identity, self.info = model, identity, info
        self._names = list(names)
        growing = growing_names(model)
        self._growing = [place for place, name in enumerate(self._names) if name in growing]
        self.reset(0)

    @classmethod
    def load(
        cls, artifact: Artifact, *, precision: str = "fp32", device: str = "cpu", threads: int = 0
    ) -> "EagerSession":
        """Load the checkpoint in the artifact folder.

        Raises:
            BackendError: when torch or transformers is not installed, or the precision is not torch's.
        """
        if precision not in DTYPES:
            raise BackendError(
                f"the eager backend has no precision {precision!r}",
                hint=f"Choose one of: {', '.join(DTYPES)}; int8 and int4 are ONNX Runtime's.",
            )
        try:
            import torch
            from safetensors import SafetensorError

            from lineahead.plugins.augmented_attention.huggingface.modeling import (
                LineaheadForCausalLM,
                layers_of,
            )
            from lineahead.plugins.augmented_attention.huggingface.seq2seq_step import Seq2SeqStepModel
            from lineahead.plugins.augmented_attention.huggingface.step_model import StepModel
        except ModuleNotFoundError as error:
            raise BackendError(
                f"the eager backend needs {error.name}",
                hint="Install torch and transformers, or use ONNX Runtime.",
            ) from error
        if threads:
            torch.set_num_threads(threads)
        try:
            loaded = LineaheadForCausalLM.from_pretrained(
                artifact.folder, dtype=getattr(torch, DTYPES[precision])
            )
        except LineaheadError:
            raise
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            line = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"{artifact.folder / 'model.safetensors'}: cannot load: {line}",
                hint="Copy the file again, or convert the checkpoint again.",
            ) from error
        kind = Seq2SeqStepModel if loaded.config.is_encoder_decoder else StepModel
        model = kind(loaded.to(device), layers_of(loaded.config))
        return cls(
            model,
            identity=artifact.identity,
            info=SessionInfo(
                backend="eager", precision=precision, implementation="eager", device=device, threads=threads
            ),
            names=carried_names(model),
        )

    @property
    def length(self) -> Ints:
        """Tokens committed, ``[B]``."""
        return self._length

    def reset(self, batch: int) -> None:
        """Start over with `batch` empty sequences."""
        self._length = np.zeros(batch, np.int64)
        self._carried = list(self._model.empty(batch))
        self._nodes = 0

    def step(self, inputs: StepInput) -> StepOutput:
        """Commit, then score the nodes; as :meth:`Session.step`."""
        import torch

        check(inputs, len(self._length), self._nodes)
        self._reserve(rows_needed(inputs, self._length))
        arrays = (inputs.input_ids, inputs.ancestors, inputs.output_index, inputs.accept_index)
        call = [self._tensor(array) for array in (*arrays, inputs.accept_count, self._length)]
        with torch.inference_mode(), _reported():
            logits, hidden, _, *carried = self._model(*call, *self._carried)
        self._carried, self._nodes = carried, inputs.input_ids.shape[1]
        self._length = self._length + inputs.accept_count
        return StepOutput(logits=logits.float().cpu().numpy(), hidden=hidden.float().cpu().numpy())

    def _reserve(self, rows: int) -> None:
        """Make room for `rows` tokens in the caches that grow."""
        import torch

        for place in self._growing:
            cache = self._carried[place]
            more = capacity(rows) - cache.shape[2]
            if more > 0:
                self._carried[place] = torch.nn.functional.pad(cache, (0, 0, 0, more))

    def _tensor(self, array: npt.NDArray[Any]) -> Any:
        import torch

        return torch.from_numpy(np.array(array)).to(self._device)

    @property
    def _device(self) -> Any:
        return self._model.model.device

    def read(self, sources: Mapping[int, Sequence[int]]) -> None:
        """Encode the sources of rows; as :meth:`Session.read`."""
        import torch

        if not self._model.extra_names:
            super().read(sources)
        width = max(len(source) for source in sources.values())
        ids = np.zeros((len(sources), width), np.int64)
        valid = np.zeros((len(sources), width), np.bool_)
        for place, source in enumerate(sources.values()):
            ids[place, : len(source)], valid[place, : len(source)] = source, True
        with _reported():
            summaries = self._model.read(self._tensor(ids), self._tensor(valid))
        rows = torch.tensor(list(sources), device=self._device)
        first = len(self._carried) - len(summaries)
        for place, summary in enumerate(summaries, first):
            self._carried[place] = self._carried[place].index_copy(0, rows, summary)

    def fork(self, rows: Sequence[int]) -> None:
        """Continue with `rows`; as :meth:`Session.fork`."""
        pick = np.asarray(rows, np.int64)
        fresh = pick < 0
        if not len(self._length):
            self.reset(len(rows))
            return
        index, empty = self._tensor(np.maximum(pick, 0)), self._tensor(fresh)
        self._carried = [tensor[index] for tensor in self._carried]
        for tensor in self._carried:
            tensor[empty] = 0
        self._length = np.where(fresh, 0, self._length[np.maximum(pick, 0)])

    def sibling(self) -> "EagerSession":
        """Another state of the same loaded model; as :meth:`Session.sibling`."""
        return EagerSession(self._model, identity=self.identity, info=self.info, names=self._names)

    def take(self, row: int) -> RowState:
        """A copy of one row, on the device; as :meth:`Session.take`."""
        length = int(self._length[row])
        copies = {name: tensor[row].clone() for name, tensor in zip(self._names, self._carried, strict=True)}
        copies |= {self._names[place]: copies[self._names[place]][:, :length] for place in self._growing}
        return RowState(
            length=length,
            state={name: one for name, one in copies.items() if not name.startswith("pending.")},
            pending={name: one for name, one in copies.items() if name.startswith("pending.")},
            nodes=self._nodes,
        )

    def place(self, row: int, saved: RowState) -> None:
        """Replace one row; as :meth:`Session.place`."""
        import torch

        self._reserve(saved.length)
        more = max(saved.nodes - self._nodes, 0)
        with torch.inference_mode():
            for place, name in enumerate(self._names):
                if more and name.startswith("pending."):
                    self._carried[place] = torch.nn.functional.pad(self._carried[place], (0, 0, 0, more))
                target, source = self._carried[place][row], saved.state.get(name, saved.pending.get(name))
                if source is None or source.shape != target.shape:
                    target.zero_()
                if source is not None:
                    target[tuple(map(slice, source.shape))] = source
        self._nodes += more
        self._length[row] = saved.length

    def read_state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Copies of the committed state; half precisions are widened, so that any backend can load them."""
        named = zip(self._names, self._carried, strict=True)
        state = {name: tensor.float().cpu().numpy() for name, tensor in named if name.startswith("past.")}
        growing = [self._names[place] for place in self._growing]
        return {LENGTH_IN: self._length.copy(), **trimmed(state, growing, self._length)}

    def write_state(self, tensors: dict[str, npt.NDArray[np.generic]]) -> None:
        """Replace the state; as :meth:`Session.write_state`."""
        length = tensors.get(LENGTH_IN, np.zeros(0, np.int64)).astype(np.int64)
        self.reset(len(length))
        rows = int(length.max(initial=0))
        wanted: dict[str, tuple[int, ...]] = {LENGTH_IN: self._length.shape}
        wanted |= {
            name: tuple(tensor.shape)
            for name, tensor in zip(self._names, self._carried, strict=True)
            if name.startswith("past.")
        }
        for name in (self._names[place] for place in self._growing):
            wanted[name] = (*wanted[name][:2], rows, wanted[name][3])
        found = {name: array.shape for name, array in tensors.items()}
        same_layout(found, wanted)
        self._length = length
        for place, name in enumerate(self._names):
            if name in tensors:
                self._carried[place] = self._tensor(tensors[name]).to(self._carried[place].dtype)


def growing_names(model: Any) -> set[str]:
    """Those of :func:`carried_names` that are caches with a row for every token."""
    return {
        f"past.{layer.index}.{port}"
        for layer in model.layers
        if isinstance(layer.settings, CacheSettings)
        for port in layer.settings.state_ports
    }


def carried_names(model: Any) -> list[str]:
    """Names of the tensors that a step model carries from call to call, in its order."""
    from lineahead.plugins.step_graph import layer_ports

    ports = [
        name for layer in model.layers for name in layer_ports(layer.settings, layer.index, "past", "pending")
    ]
    return ports + list(model.extra_names)


@contextlib.contextmanager
def _reported() -> Any:
    """Turn torch's errors into a BackendError."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        first = str(error).strip().splitlines()[0]
        raise BackendError(
            f"the step failed: {first}", hint="Run `lineahead verify` on the artifact."
        ) from error
