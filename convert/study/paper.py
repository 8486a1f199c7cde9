"""The paper's figures, to print beside ours where a cell corresponds.

Source: You et al., 2024, arXiv:2406.07368, tables 1 to 3, 12, 14, 15 and 16. Its models are pretrained and
larger, and its training longer: compare the order of the methods, not the figures.
"""

from collections.abc import Mapping
from dataclasses import dataclass

LOCAL_GLOBAL, LOCAL_CONV = "flash-local + global", "flash-local + conv"
ANY = "*"


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """Figures of one of the paper's models on one text or task.

    Attributes:
        family: ``bert``, ``gpt2``, ``t5``, ``llama`` or ``flash``.
        figure: text or task as a study names it; :data:`ANY` where the paper has none of ours.
        source: model, text and tables.
        plain: by method.
        augmented: by method.
    """

    family: str
    figure: str
    source: str
    plain: Mapping[str, float]
    augmented: Mapping[str, float]


ANCHORS = (
    Anchor(
        family="gpt2",
        figure="wikitext2",
        source="GPT-2, perplexity on WikiText-2 (table 12)",
        plain={"flash-local": 56.80, LOCAL_GLOBAL: 42.81, LOCAL_CONV: 51.09},
        augmented={"flash-local": 39.26},
    ),
    Anchor(
        family="gpt2",
        figure="ptb",
        source="GPT-2, perplexity on PTB (table 12)",
        plain={"flash-local": 69.32, LOCAL_GLOBAL: 57.72, LOCAL_CONV: 84.24},
        augmented={"flash-local": 46.85},
    ),
    Anchor(
        family="llama",
        figure=ANY,
        source="LLaMA-2-7B, perplexity on PG-19 at 4K (table 15), another text",
        plain={"flash-local": 21.61, LOCAL_GLOBAL: 15.04, LOCAL_CONV: 14.94},
        augmented={"flash-local": 13.47},
    ),
    Anchor(
        family="flash",
        figure=ANY,
        source="FLASH, perplexity on Wiki40B at 1K (table 15), another text",
        plain={
            "local": 16.65,
            "local + global": 16.14,
            "global": 35.25,
            "quadratic": 15.40,
            "augmented": 15.16,
        },
        augmented={},
    ),
    Anchor(
        family="bert",
        figure="sst2",
        source="BERT, accuracy on SST-2 (table 1)",
        plain={
            "softmax": 93.58,
            "flash-local": 91.63,
            "flash-global": 76.72,
            "linformer": 81.54,
            "performer": 80.16,
            "transnormer": 81.88,
            "yoso": 91.51,
            "relu": 81.77,
        },
        augmented={},
    ),
    Anchor(
        family="gpt2",
        figure="sst2",
        source="GPT-2, accuracy on SST-2 (tables 2, 14 and 16)",
        plain={
            "softmax": 91.28,
            "flash-local": 83.60,
            "flash-global": 50.92,
            "linformer": 79.47,
            "performer": 86.93,
            "transnormer": 82.11,
            "yoso": 88.42,
            "relu": 86.47,
            "rfa": 83.37,
            LOCAL_GLOBAL: 83.72,
        },
        augmented={"flash-local": 84.72, "rfa": 91.28, "performer": 91.51, "linformer": 92.43},
    ),
    Anchor(
        family="t5",
        figure="sst2",
        source="T5, accuracy on SST-2 (tables 3 and 14)",
        plain={
            "softmax": 93.81,
            "flash-local": 77.87,
            "flash-global": 80.62,
            "linformer": 51.15,
            "performer": 82.57,
            "transnormer": 79.36,
            "yoso": 78.33,
            "relu": 85.79,
            LOCAL_GLOBAL: 78.10,
        },
        augmented={"flash-local": 82.00},
    ),
)


def anchor(family: str | None, figure: str) -> Anchor | None:
    """The paper's figures for a model family and a text or task, if it has any."""
    return next((one for one in ANCHORS if one.family == family and one.figure in (figure, ANY)), None)
