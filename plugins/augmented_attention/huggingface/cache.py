"""A transformers cache layer of constant size: the operator's state, and the last call's uncommitted rows."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lineahead.errors import InputError
from lineahead.plugins.augmented_attention.huggingface.fixed_layer import FixedSizeLayer
from lineahead.plugins.augmented_attention.huggingface.padding import Packing
from lineahead.plugins.augmented_attention.module import AugmentedAttention
from lineahead.plugins.augmented_attention.schema import PARAMETERS, PENDING, STATE, state_shapes
from lineahead.plugins.augmented_attention.step import step

CHUNK = 256  # nodes per step of a long prompt: bounds the T x T term and how far `crop` reaches back
UNDO = 256  # calls that can be undone while recording


@dataclass(frozen=True, kw_only=True)
class Held:
    """What one layer knows between two calls.

    Attributes:
        tensors: state and pending ports by name; the state covers `length` tokens.
        length: ``[B]`` int64.
        valid: ``[B, P]`` bool, which columns of the last call are tokens; dropping columns undoes them.
    """

    tensors: dict[str, Tensor]
    length: Tensor
    valid: Tensor

    def rows(self, pick: Callable[[Tensor], Tensor]) -> "Held":
        """The same with `pick` applied to every tensor's batch axis."""
        return Held(
            tensors={name: pick(x) if x.dim() > 1 else x for name, x in self.tensors.items()},
            length=pick(self.length),
            valid=pick(self.valid),
        )


class StateLayer(FixedSizeLayer):
    """Cache layer of one converted attention layer.

    `update` stores nothing; the attention function calls :meth:`attend`, which commits the last call's rows
    and keeps this call's rows pending. Rolling back (`crop`) therefore means forgetting pending rows. While
    recording (`activate_past_recording`, for assistants that step many times between two crops) earlier calls
    can be undone too.
    """

    is_croppable = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.columns = 0
        self.record_past = False
        self._held: Held | None = None
        self._undo: deque[tuple[int, Held]] = deque(maxlen=UNDO)

    def attend(
        self,
        operator: AugmentedAttention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        valid: Tensor | None,
    ) -> Tensor:
        """Commit the previous call's rows, attend from these, keep them pending.

        Args:
            operator: the layer's parameters.
            query: ``[B, H, T, D]``, after RoPE.
            key: ``[B, Hkv, T, D]``.
            value: ``[B, Hkv, T, Dv]``.
            scaling: the attention layer's multiplier of ``q . k``.
            valid: ``[B, T]`` bool, False at padding; None without padding.

        Returns:
            ``[B, H, T, Dv]``, zero at padding.
        """
        held = self._held if self._held is not None else _empty(operator, key, value)
        if self.record_past:
            self._undo.append((self.columns, held))
        outputs = []
        for start, stop in _chunks(query.shape[2]):
            part = None if valid is None else valid[:, start:stop]
            q, k, v = (x[:, :, start:stop] for x in (query, key, value))
            output, held = _advance(operator, held, q, k, v, operator.scale(scaling), part)
            outputs.append(output)
        self._held, self.is_initialized = held, True
        self.keys, self.values = (held.tensors[name] for name in PENDING)  # some models count them
        self.columns += query.shape[2]
        return torch.cat(outputs, 2) if len(outputs) > 1 else outputs[0]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Hand the new rows on unchanged: nothing grows."""
        return key_states, value_states

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the state is made by the first :meth:`attend`."""

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` columns.

        A positive number is how many to keep, as transformers before 5.17 asks.

        Raises:
            InputError: when they were committed already.
        """
        if tokens_to_remove > 0:
            tokens_to_remove = min(0, tokens_to_remove - self.columns)
        target = self.columns + tokens_to_remove
        while self._held is not None and target < self.columns - self._held.valid.shape[1]:
            if not self._undo:
                left = self._held.valid.shape[1]
                raise InputError(
                    f"crop({tokens_to_remove}): only the last {left} tokens are uncommitted",
                    hint="Call activate_past_recording() on the cache before the calls that may be undone.",
                )
            self.columns, self._held = self._undo.pop()
        if self._held is not None:
            kept = self._held.valid.shape[1] - (self.columns - target)
            self._held = replace(self._held, valid=self._held.valid[:, :kept])
            self.columns = target
        self._undo.clear()

    def activate_past_recording(self) -> None:
        """Allow `crop` to undo whole calls, until the next `crop`."""
        self.record_past = True

    def get_seq_length(self) -> int:
        """Columns seen, padding included, as transformers counts them."""
        return self.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Width and offset of the attention mask."""
        return self.columns + query_length, 0

    def reset(self) -> None:
        """Forget everything."""
        self.columns, self._held, self.is_initialized = 0, None, False
        self._undo.clear()

    @property
    def nbytes(self) -> int:
        """Bytes held now; bounded whatever the context."""
        held = [one for one in (self._held, *(before for _, before in self._undo)) if one is not None]
        tensors = {id(x): x for one in held for x in (*one.tensors.values(), one.length, one.valid)}
        return sum(x.numel() * x.element_size() for x in tensors.values())

    def offload(self) -> None:
        """Nothing to do: the state is small."""

    def prefetch(self) -> None:
        """Nothing to do: the state is never offloaded."""

    def _rows(self, pick: Callable[[Tensor], Tensor]) -> None:
        if self._held is not None:
            self._held = self._held.rows(pick)
        self._undo = deque(((columns, held.rows(pick)) for columns, held in self._undo), maxlen=UNDO)


def _empty(operator: AugmentedAttention, key: Tensor, value: Tensor) -> Held:
    """State before the first token."""
    batch, wide = key.shape[0], torch.promote_types(key.dtype, torch.float32)
    dtypes = {"state": wide, "norm": wide, "window_key": key.dtype, "window_value": value.dtype}
    shapes = state_shapes(operator.settings, operator.shape, operator.features, batch)
    tensors = {name: key.new_zeros(shapes.get(name, (1,)), dtype=dtypes[name]) for name in STATE}
    for name, x in zip(PENDING, (key, value), strict=True):
        tensors[name] = x.new_zeros((batch, x.shape[1], 0, x.shape[3]))
    return Held(
        tensors=tensors,
        length=torch.zeros(batch, dtype=torch.long, device=key.device),
        valid=torch.zeros(batch, 0, dtype=torch.bool, device=key.device),
    )


def _advance(
    operator: AugmentedAttention,
    held: Held,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    valid: Tensor | None,
) -> tuple[Tensor, Held]:
    """One step over a chain; shapes as in :meth:`StateLayer.attend`."""
    batch, nodes = query.shape[0], query.shape[2]
    packing = None
    if valid is None:
        valid = torch.ones(batch, nodes, dtype=torch.bool, device=query.device)
    else:
        packing = Packing.of(valid)
        query, key, value = packing.pack(query), packing.pack(key), packing.pack(value)
    chain = torch.ones(nodes, nodes, dtype=torch.bool, device=query.device).tril().expand(batch, -1, -1)
    rows, count = torch.arange(held.tensors[PENDING[0]].shape[2], device=query.device), held.valid.sum(1)
    inputs: dict[str, Any] = {
        "query": query,
        "key": key,
        "value": value,
        "ancestors": chain,
        "length": held.length,
        "accept_index": rows.expand(batch, -1),
        "accept_count": count,
        **held.tensors,
        **dict(zip(PARAMETERS, operator.operands(query), strict=True)),
    }
    output, *state, pending_key = step(**inputs, settings=operator.settings, scale=scale)
    after = Held(
        tensors=dict(zip((*STATE, *PENDING), (*state, pending_key, value), strict=True)),
        length=held.length + count,
        valid=valid,
    )
    return (output if packing is None else packing.unpack(output)), after


def _chunks(length: int) -> Iterator[tuple[int, int]]:
    """Bounds of a prompt's steps; the last one holds ``min(length, CHUNK)`` rows, for rollback."""
    start, stop = 0, (length - 1) % CHUNK + 1
    while start < length:
        yield start, stop
        start, stop = stop, stop + CHUNK
