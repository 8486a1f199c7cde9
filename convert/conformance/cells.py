"""The cells of the conformance table: forms, scenarios, and why some of them do not meet."""

from dataclasses import dataclass
from typing import Literal

from lineahead.recipes.kind import Kind

Form = Literal["reference", "training", "generate", "step", "onnxruntime"]
Status = Literal["ok", "failed", "refused", "absent"]

FORMS: dict[Form, str] = {
    "reference": "the training form in float64",
    "training": "training form: whole texts, no cache",
    "generate": "transformers' generate() and its cache",
    "step": "step graph in torch",
    "onnxruntime": "step graph in ONNX Runtime",
}
SCENARIOS = {
    "prefill": "a text in one call",
    "chunked prefill": "a text in several calls",
    "decode": "one token a call",
    "chain": "drafted chains, some tokens of which are rejected",
    "tree": "drafted trees, one path of which is accepted",
    "batch": "rows of different lengths and acceptance",
    "left padding": "rows padded on the left",
    "GQA": "fewer key heads than query heads",
    "encoder": "every token sees the whole text",
    "cross attention": "a decoder that reads an encoder's text",
}
BOUND, BOUND_FP64 = 1e-4, 1e-9

_WHOLE = "whole texts only"
_OWN_LENGTHS = "rows have lengths of their own: nothing is padded"
_CAUSAL = "the graph decodes: it is causal"
ABSENT: dict[tuple[Form, str], str] = {
    **{("reference", one): _WHOLE for one in ("chunked prefill", "decode", "chain", "tree")},
    **{("training", one): _WHOLE for one in ("chunked prefill", "decode", "chain", "tree")},
    ("reference", "left padding"): "texts are run one by one",
    ("reference", "batch"): "texts are run one by one",
    ("generate", "tree"): "transformers drafts chains",
    ("generate", "encoder"): "an encoder generates nothing",
    **{(form, "left padding"): _OWN_LENGTHS for form in ("step", "onnxruntime")},
    **{(form, "encoder"): _CAUSAL for form in ("step", "onnxruntime")},
}
_READS = "an encoder reads whole texts"
ABSENT_OF: dict[Kind, dict[str, str]] = {
    "decoder": {"encoder": "a decoder", "cross attention": "no encoder"},
    "encoder": {
        **dict.fromkeys(("prefill", "chunked prefill", "decode", "chain", "tree"), _READS),
        "cross attention": "no decoder",
    },
    "encoder-decoder": {"left padding": "every target begins with one token: nothing stands before it"},
}


def absence(kind: Kind, form: Form, scenario: str) -> str | None:
    """Why form and scenario do not meet for a kind of model; None when they do."""
    if kind == "encoder" and (form, "encoder") in ABSENT:
        return ABSENT[form, "encoder"]
    return ABSENT.get((form, scenario)) or ABSENT_OF[kind].get(scenario)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement.

    Attributes:
        family: transformers' model type.
        kind: what of it: ``decoder``, ``encoder`` or ``encoder-decoder``.
        preset: the method.
        form: which implementation.
        scenario: how it is called.
        status: ``ok``; ``failed``: it differs or breaks; ``refused``: the method or family cannot, and the
            package says so by name; ``absent``: form and scenario do not meet.
        error: largest difference of the logits (of an encoder: its hidden states), relative where they
            exceed one; None where not measured.
        reason: why it is not ok.
    """

    family: str
    kind: Kind
    preset: str
    form: Form
    scenario: str
    status: Status
    error: float | None = None
    reason: str = ""


def judged(error: float, form: Form) -> tuple[Status, str]:
    """Status and reason of a measured error."""
    bound = BOUND_FP64 if form == "reference" else BOUND
    if error <= bound:
        return "ok", ""
    return "failed", f"differs from the reference by {error:.1e}, more than {bound:.0e}"
