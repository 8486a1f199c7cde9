"""The tensors of the Triton model, written once for the configuration and for the code that reads them."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One input or output.

    Attributes:
        name: in requests.
        kind: Triton's data type.
        size: its one dimension; -1 for any.
    """

    name: str
    kind: str = "STRING"
    size: int = 1


# `text_input`, `text_output` and `stream` are called so by Triton's other language model backends too.
INPUTS = (
    Tensor(name="text_input"),
    Tensor(name="messages"),  # a chat as JSON, instead of text_input
    Tensor(name="stream", kind="BOOL"),
    Tensor(name="max_tokens", kind="INT32"),
    Tensor(name="temperature", kind="FP32"),
    Tensor(name="top_p", kind="FP32"),
    Tensor(name="top_k", kind="INT32"),
    Tensor(name="seed", kind="UINT64"),
    Tensor(name="stop", size=-1),
    Tensor(name="draft_nodes", kind="INT32"),
)
OUTPUTS = (
    Tensor(name="text_output"),
    Tensor(name="token_ids", kind="INT32", size=-1),
    Tensor(name="finish_reason"),  # empty until the last response
)
