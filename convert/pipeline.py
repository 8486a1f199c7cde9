"""The stages of a conversion as library calls: convert, fine-tune, draft. The command line calls these."""

import logging
import math
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn
from transformers import PreTrainedModel

from lineahead.convert import finetune as finetuning
from lineahead.convert.adapter import apply_adapter, read_adapter
from lineahead.convert.checkpoint import save_artifact
from lineahead.convert.drafts.train import train_draft
from lineahead.convert.finetune import Options
from lineahead.convert.pretrained import install_heads, pretrained_adapter
from lineahead.convert.replace import linearize
from lineahead.convert.source import load_source
from lineahead.convert.training.weights import new_parameters
from lineahead.errors import InputError
from lineahead.plugins.augmented_attention.huggingface.discover_roles import is_two_sided
from lineahead.plugins.augmented_attention.huggingface.layers import LinearLayer
from lineahead.plugins.augmented_attention.huggingface.modeling import is_hybrid
from lineahead.plugins.augmented_attention.huggingface.softmax_layers import (
    SoftmaxLayer,
    softmax_layers,
)
from lineahead.plugins.augmented_attention.methods import preset
from lineahead.plugins.augmented_attention.module import AugmentedAttention, CrossAttention
from lineahead.plugins.augmented_attention.schema import AttentionSettings, LayerShape, state_shapes
from lineahead.recipes.manifest import Base, Manifest, Model, read_manifest
from lineahead.recipes.manifest import SoftmaxLayer as KeptLayer
from lineahead.recipes.schema import Method, Recipe

__all__ = ["Options", "convert_checkpoint", "finetune", "method_settings", "train_draft"]
logger = logging.getLogger(__name__)
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length")
_FLOAT_BYTES = 4


def convert_checkpoint(
    source: str | Path,
    output: Path,
    recipe: Recipe,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    tokenizer: str | Path | None = None,
    adapter: Path | None = None,
) -> Manifest:
    """Replace a checkpoint's attention by the recipe's operator, untrained, and write an artifact folder.

    Args:
        source: a folder, a ``.gguf`` file, ``package:NAME`` or a Hub id.
        output: the artifact folder; an artifact that is there is replaced.
        recipe: its method and layers are used.
        revision: branch, tag or commit on the Hub.
        cache_dir: of the Hub.
        token: for private models.
        trust_remote_code: whether to run Python code that comes with the model.
        tokenizer: another tokenizer's reference.
        adapter: a trained conversion's file; its layers and settings replace the recipe's.

    Returns:
        The manifest.

    Raises:
        SettingsError: when the method is impossible (before anything is loaded), or has no form that this
            model needs.
        InputError: when the recipe converts some layers only of an encoder or encoder-decoder.
        LineaheadError: as ``load_source``, ``linearize`` and ``save_artifact`` say.
    """
    if recipe.pretrained is not None and adapter is None:
        adapter = pretrained_adapter(recipe.pretrained)
    trained = None if adapter is None else read_adapter(adapter)
    settings = method_settings(recipe.method) if trained is None else trained.layers[0].settings
    loaded = load_source(
        source,
        revision=revision,
        cache_dir=cache_dir,
        token=token,
        trust_remote_code=trust_remote_code,
        tokenizer=tokenizer,
    )
    if is_two_sided(loaded.model):
        _require_all_layers(loaded.model, recipe)
    wanted = None if recipe.layers == "all" else recipe.layers
    if trained is not None:
        wanted = tuple(layer.index for layer in trained.layers)
    kept = () if trained is not None else kept_layers(recipe)
    layers = linearize(loaded.model, settings, layers=wanted, keep=kept)
    manifest = _manifest(loaded.model, layers, settings, loaded.provenance, recipe)
    if trained is not None:
        apply_adapter(loaded.model, trained)
        manifest = manifest.model_copy(update={"training": trained.training, "base_weights": "trained"})
    save_artifact(loaded.model, loaded.tokenizer, output, layers=layers, manifest=manifest)
    return read_manifest(output) if recipe.pretrained is None else install_heads(recipe.pretrained, output)


def finetune(
    artifact: Path, recipe: Recipe, options: Options | None = None, *, teacher: str | Path | None = None
) -> Manifest:
    """Run the recipe's training stages on an artifact; see :func:`lineahead.convert.finetune.finetune`.

    Args:
        artifact: the artifact folder.
        recipe: with at least one stage.
        options: device, resumption, progress.
        teacher: the original checkpoint; where the manifest says when None. It is loaded only when the
            artifact's own pretrained weights have been trained.
    """
    return finetuning.finetune(
        artifact, recipe, options, load_teacher=lambda manifest: load_teacher(manifest, teacher)
    )


def method_settings(method: Method) -> AttentionSettings:
    """The operator's settings that a recipe asks for; ``linearize`` makes them causal where they must be.

    Raises:
        SettingsError: naming the setting at fault.
    """
    return preset(method.preset, **method.changes())


def _require_all_layers(model: PreTrainedModel, recipe: Recipe) -> None:
    """Refuse a recipe that leaves softmax layers in an encoder or encoder-decoder: no artifact holds one."""
    if recipe.layers != "all" or isinstance(recipe.keep_softmax, tuple) or recipe.keep_softmax == "all":
        raise InputError(
            f"{type(model).__name__}: layers of encoders and encoder-decoders are converted all or none",
            hint="Leave out layers and keep_softmax; the library's linearize() can keep some.",
        )


def kept_layers(recipe: Recipe) -> tuple[int, ...] | Literal["local", "all"]:
    """Which layers a recipe leaves as they are; naming the layers to convert says it already."""
    if isinstance(recipe.keep_softmax, tuple) or recipe.keep_softmax == "all":
        return recipe.keep_softmax
    return "local" if recipe.keep_softmax == "local" and recipe.layers == "all" else ()


def load_teacher(manifest: Manifest, reference: str | Path | None = None) -> PreTrainedModel:
    """The original softmax model of an artifact.

    Args:
        manifest: the artifact's.
        reference: where to load it from; where the manifest says when None.
    """
    base = manifest.base
    given = reference is not None
    return load_source(
        base.reference if reference is None else reference,
        revision=None if given else base.revision,
        trust_remote_code=base.trust_remote_code,
    ).model


def _manifest(
    model: PreTrainedModel,
    layers: list[LinearLayer],
    settings: AttentionSettings,
    base: Base,
    recipe: Recipe,
) -> Manifest:
    config: Any = model.config.get_text_config(decoder=True)
    limits = [getattr(config, name) for name in _POSITIONS if getattr(config, name, None)]
    new = sum(parameter.numel() for parameter in new_parameters(model).values())
    converted = tuple(sorted({layer.index for layer in layers}))
    kept = [_kept(layer) for layer in softmax_layers(model, converted)] if is_hybrid(model.config) else []
    roles: dict[str, Any] = {layer.role: layer.settings.as_dict() for layer in layers}
    return Manifest(
        base=base,
        recipe=recipe.model_dump(mode="json"),
        model=Model(
            vocab_size=config.vocab_size,
            hidden_size=cast(nn.Embedding, model.get_input_embeddings()).embedding_dim,
            max_position=limits[0] if limits else None,
            layers=max(config.num_hidden_layers, len(converted)),
            linear_layers=converted,
            settings=roles.pop("decoder", settings.as_dict()) if layers else {},
            role_settings=roles,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            new_parameters=new,
            state_bytes=sum(map(layer_state_bytes, layers)) + sum(layer.state_bytes for layer in kept),
            softmax_layers=tuple(kept),
        ),
    )


def _kept(layer: SoftmaxLayer) -> KeptLayer:
    """What the manifest says of a layer that is not converted."""
    shape = layer.shape
    if isinstance(layer.settings, AttentionSettings):
        return KeptLayer(
            index=layer.index, window=layer.window, state_bytes=_bytes(layer.settings, shape, features=0)
        )
    return KeptLayer(index=layer.index, window=layer.window, bytes_per_token=cache_row_bytes(shape))


def cache_row_bytes(shape: LayerShape) -> int:
    """By how much the layer's KV cache grows with every token if it keeps softmax attention, in float32."""
    return _FLOAT_BYTES * shape.kv_heads * (shape.head_dim + shape.value_dim)


def layer_state_bytes(layer: LinearLayer) -> int:
    """What a decoder carries for the layer: its state, or the summary of a source; nothing in an encoder."""
    if layer.role == "encoder":
        return 0
    if layer.role == "cross":
        features = CrossAttention(layer.settings, layer.shape).features
        return _FLOAT_BYTES * layer.shape.kv_heads * features * (layer.shape.value_dim + 1)
    features = AugmentedAttention(layer.settings, layer.shape).features
    return _bytes(layer.settings, layer.shape, features=features)


def _bytes(settings: AttentionSettings, shape: LayerShape, *, features: int) -> int:
    shapes = state_shapes(settings, shape, features, 1)
    return _FLOAT_BYTES * sum(math.prod(one) for one in shapes.values())
