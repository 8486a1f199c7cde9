"""The part of the conformance suite that fits one artifact: its own weights, its own graphs, no training."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from lineahead.convert.checkpoint import load_model, read_config
from lineahead.convert.conformance.cells import FORMS, Cell, Form
from lineahead.convert.conformance.measure import Subject, measure
from lineahead.convert.conformance.observe import FIRST_TOKEN, WINDOW
from lineahead.convert.conformance.oracle import Text
from lineahead.errors import ArchitectureError, ArtifactError, SettingsError
from lineahead.plugins.augmented_attention.huggingface.layers import LinearLayer
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
from lineahead.plugins.augmented_attention.methods import PRESETS
from lineahead.plugins.augmented_attention.roles import Role, role_settings
from lineahead.plugins.augmented_attention.schema import AttentionSettings
from lineahead.recipes.kind import kind_of

GRAPH = Path("onnx") / "verifier.onnx"
OWN = "its own settings"


def measure_artifact(
    folder: Path, *, forms: Sequence[Form] = (), trust_remote_code: bool = False
) -> list[Cell]:
    """Compare the forms of a linear model with the per-token reference in float64.

    The ONNX Runtime form is the folder's exported float32 graph; without one, a graph traced here.

    Args:
        folder: an artifact folder, whoever made it.
        forms: forms; all when empty.
        trust_remote_code: run the training form and ``generate()`` by the Python code in the folder.

    Raises:
        ArtifactError: when the folder is not an artifact, no layer of it is converted, or its code makes
            something else.
        ArchitectureError: when it is an encoder-decoder without a language model's head.
        CheckpointError: when its weights are damaged.
    """
    config = read_config(folder)
    model = load_model(folder, dtype=torch.float32)
    converted, kind = layers_of(model.config), kind_of(config)
    if not converted:
        raise ArtifactError(
            f"{folder}: no layer is converted, so no form of the operator runs",
            hint="Compare its text with the checkpoint's: `lineahead verify --original`.",
        )
    first = converted[0]
    if kind == "encoder-decoder" and model.get_output_embeddings() is None:
        raise ArchitectureError(
            f"{type(model).__name__} says no logits of tokens, which is what is compared",
            hint="Run it on a language model of this family.",
        )
    subject = Subject(
        family=str(config.get("base_model_type")),
        kind=kind,
        preset=_name(first),
        forms=tuple(forms or FORMS),
    )
    own = _own_code(folder) if trust_remote_code else None
    graph = folder / GRAPH
    return measure(
        model,
        subject,
        graph=graph if graph.is_file() else None,
        own=own,
        prefix=_prefix(model, first.settings),
    )


def _prefix(model: PreTrainedModel, settings: AttentionSettings) -> Text:
    """A text that ends just before the first group or window does, so that what follows crosses it."""
    vocabulary = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    rng = np.random.default_rng(2)
    return tuple(rng.integers(FIRST_TOKEN, vocabulary, size=max(0, settings.window - WINDOW)).tolist())


def _own_code(folder: Path) -> PreTrainedModel:
    names = read_config(folder).get("auto_map", {})
    auto = next((name for name in names if name.startswith("AutoModel")), "AutoModelForCausalLM")
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    if not hasattr(model.config, "lineahead"):
        raise ArtifactError(
            f"{folder}: its code makes a {type(model).__name__}", hint="Run it without that code."
        )
    return cast(PreTrainedModel, model.eval())


def _name(layer: LinearLayer) -> str:
    """The preset with this layer's settings, or what they are called when none has them."""
    return next((name for name, one in PRESETS.items() if layer.settings in _forms(one, layer.role)), OWN)


def _forms(settings: AttentionSettings, role: Role) -> list[AttentionSettings]:
    try:
        return [role_settings(settings, role, position_bias=biased) for biased in (False, True)]
    except SettingsError:  # a method without this role is not the layer's
        return []
