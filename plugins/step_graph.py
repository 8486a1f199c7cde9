"""The step graph's ports: the contract between export and every runtime backend. Standard library only.

One graph serves prefill, chunked prefill, plain decoding, chain and tree verification. Axes: B
sequences, T nodes of this call, R rows whose logits are wanted, A accepted rows of the previous call, P
rows of the previous call. All are dynamic, A and P may be 0 (the first call); nothing grows with the
context.

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
present.* as past.* and pending_out.* as pending.*.
"""

from lineahead.plugins.augmented_attention.schema import AttentionSettings

CALL_INPUTS = ("input_ids", "ancestors", "output_index", "accept_index", "accept_count")
LENGTH_IN, LENGTH_OUT = "past.length", "present.length"
LOGITS, HIDDEN_STATES = "logits", "hidden_states"
PENDING_PARTS = ("key", "value")


def layer_ports(settings: AttentionSettings, index: int, past: str, pending: str) -> list[str]:
    """Port names of layer `index`: its state tensors that exist, then its pending key and value."""
    names = [f"{past}.{index}.{name}" for name in settings.state_ports]
    return names + [f"{pending}.{index}.{name}" for name in PENDING_PARTS]


def input_names(settings: list[AttentionSettings]) -> list[str]:
    """All graph inputs in order, for one `AttentionSettings` per layer."""
    layers = [name for i, one in enumerate(settings) for name in layer_ports(one, i, "past", "pending")]
    return [*CALL_INPUTS, LENGTH_IN, *layers]


def output_names(settings: list[AttentionSettings]) -> list[str]:
    """All graph outputs in order, for one `AttentionSettings` per layer."""
    layers = [
        name for i, one in enumerate(settings) for name in layer_ports(one, i, "present", "pending_out")
    ]
    return [LOGITS, HIDDEN_STATES, LENGTH_OUT, *layers]
