"""The step graph's ports: the contract between export and every runtime backend. Standard library only.

One graph serves prefill, chunked prefill, plain decoding, chain and tree verification. Axes: B
sequences, T nodes of this call, R rows whose logits are wanted, A accepted rows of the previous call, P
rows of the previous call. All are dynamic, A and P may be 0 (the first call). Nothing grows with the
context but the caches of layers that stay softmax over the whole text: ``past.{i}.key`` and ``.value`` of
capacity N (``plugins/softmax_attention/schema.py``), which the caller keeps at least ``max(past.length) +
A``.

Inputs::

    input_ids     [B, T] int64     tokens of the nodes
    ancestors     [B, T, T] bool   row i marks node i and its ancestors; a lower triangle is a chain
    output_index  [B, R] int64     nodes whose logits and hidden states are returned
    accept_index  [B, A] int64     accepted rows of the previous call, in path order
    accept_count  [B] int64        how many of them count
    past.length   [B] int64        tokens committed before this call
    past.{i}.*                     state of layer i after the previous call's commit
    pending.{i}.key, .value        the previous call's rows of layer i

Outputs::

    logits        [B, R, V] float32
    hidden_states [B, R, E]        input of the LM head
    present.*                      the state after this call's commit
    pending_out.{i}.key, .value    this call's rows

A node's position is ``past.length + accept_count + depth``, computed in the graph. To continue, feed
present.* as past.* and pending_out.* as pending.*. A growing cache may be one buffer, past and present.
"""

from collections.abc import Sequence
from typing import Protocol

CALL_INPUTS = ("input_ids", "ancestors", "output_index", "accept_index", "accept_count")
LENGTH_IN, LENGTH_OUT = "past.length", "present.length"
LOGITS, HIDDEN_STATES = "logits", "hidden_states"
WEIGHT = "weight."  # inputs of engines that hold no weights of their own
PENDING_PARTS = ("key", "value")


class LayerSettings(Protocol):
    """What a layer's settings say about its ports."""

    @property
    def state_ports(self) -> tuple[str, ...]:
        """Names of the state tensors that it has."""


def layer_ports(settings: LayerSettings, index: int, past: str, pending: str) -> list[str]:
    """Port names of layer `index`: its state tensors that exist, then its pending key and value."""
    names = [f"{past}.{index}.{name}" for name in settings.state_ports]
    return names + [f"{pending}.{index}.{name}" for name in PENDING_PARTS]


def input_names(settings: Sequence[LayerSettings]) -> list[str]:
    """All graph inputs in order, for the settings of every layer."""
    layers = [name for i, one in enumerate(settings) for name in layer_ports(one, i, "past", "pending")]
    return [*CALL_INPUTS, LENGTH_IN, *layers]


def output_names(settings: Sequence[LayerSettings]) -> list[str]:
    """All graph outputs in order, for the settings of every layer."""
    layers = [
        name for i, one in enumerate(settings) for name in layer_ports(one, i, "present", "pending_out")
    ]
    return [LOGITS, HIDDEN_STATES, LENGTH_OUT, *layers]
