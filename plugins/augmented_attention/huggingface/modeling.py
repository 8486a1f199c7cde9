"""Config and model classes of artifacts: dynamic subclasses of transformers' classes of the base model."""

import copy
import importlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import transformers
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lineahead.errors import ArchitectureError, ArtifactError, CheckpointError, InputError
from lineahead.plugins.augmented_attention.huggingface.adapters import adapt, is_adapted
from lineahead.plugins.augmented_attention.huggingface.attention import (
    Implementation,
    Softmax,
    find_state,
    in_softmax_mode,
)
from lineahead.plugins.augmented_attention.huggingface.cache import StateLayer
from lineahead.plugins.augmented_attention.huggingface.fixed_layer import CACHE
from lineahead.plugins.augmented_attention.huggingface.layers import ATTRIBUTE, LinearLayer, attach
from lineahead.plugins.augmented_attention.huggingface.routing import share_implementation

MODEL_TYPE = "lineahead"
VERSION = 1
CODE_FILE = "modeling_lineahead.py"
AUTO_CLASSES = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "Model": "AutoModel",
}


def auto_map(base_class: str) -> dict[str, str]:
    """What ``config.json`` says of the code that loads it, for a converted transformers class."""
    code = CODE_FILE[:-3]
    kind = next((AUTO_CLASSES[end] for end in AUTO_CLASSES if base_class.endswith(end)), None)
    if kind is None or base_class.endswith("LMHeadModel"):
        model = {"AutoModelForCausalLM": f"{code}.LineaheadForCausalLM"}
    else:
        model = {kind: f"{code}.LineaheadModel"}
    return {"AutoConfig": f"{code}.LineaheadConfig", **model}


class _LinearConfig:
    """What a base config class gains: the converted layers, and a model type that softmax code does not know.

    Attributes:
        base_model_type: model type of the original checkpoint.
        lineahead: ``{"version": 1, "base_class": ..., "hybrid": ..., "layers": [...]}``.
    """

    base_model_type: str
    lineahead: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As the base, with the reference to the code beside it."""
        own = getattr(self, "lineahead", {})  # transformers makes an empty config to compare with
        return {**super().to_dict(), "auto_map": auto_map(str(own.get("base_class")))}  # type: ignore[misc]


class _LinearModel:
    """What a base model class gains: the operators in its layers, and a cache of constant size."""

    config: Any
    softmax_class: type[PreTrainedModel]

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        route_attention(cast(PreTrainedModel, self))
        attach(cast(PreTrainedModel, self), layers_of(config))
        _route(cast(PreTrainedModel, self))

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """As the base, but missing or mismatched weights are an error.

        Raises:
            CheckpointError: naming the first such weight.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["ignore_mismatched_sizes"] = True  # reported below, by name
        model, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        bad = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
        if bad:
            raise CheckpointError(
                f"{path}: no usable weight {bad[0]!r} ({len(bad)} in all)",
                hint="Convert the checkpoint again.",
            )
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As the base, with the code that loads it."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_code(folder)
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]

    def adjust_generation_fn(self, *args: Any, **kwargs: Any) -> None:
        """As the base, but ``custom_generate`` of the repository runs only in calls that name it."""
        super().adjust_generation_fn(*args, **kwargs)  # type: ignore[misc]
        vars(self).pop("generate", None)

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """As the base, in every transformers for all parts of the model."""
        super().set_attn_implementation(*args, **kwargs)  # type: ignore[misc]
        share_implementation(cast(PreTrainedModel, self))

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # transformers would search the source file of this class for an attention layer

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return bool(cls.softmax_class._can_set_experts_implementation())

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        given = model_kwargs.get(CACHE) is not None
        if not in_softmax_mode() and generation_config.cache_implementation not in (None, "dynamic"):
            raise InputError(
                f"cache_implementation={generation_config.cache_implementation!r} holds no linear state",
                hint="Drop cache_implementation: the state already has a constant size.",
            )
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]
        states = model_kwargs.get(CACHE)
        if isinstance(states, Cache) and not given and not in_softmax_mode():
            install_states(
                states,
                layers_of(self.config),
                recording=bool(getattr(generation_config, "is_assistant", False)),
            )


def install_states(cache: Cache, layers: Sequence[LinearLayer], *, recording: bool = False) -> None:
    """Replace the decoder's converted layers in an empty cache; cross attention finds its own."""
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    for layer in layers:
        if layer.role != "decoder" or layer.index >= len(cache.layers):
            continue
        state = StateLayer()
        if recording:
            state.activate_past_recording()
        cache.layers[layer.index] = state


def layers_of(config: Any) -> list[LinearLayer]:
    """The converted layers that a config lists.

    Raises:
        ArtifactError: when it was written by a newer version.
    """
    saved = config.lineahead
    if saved.get("version") != VERSION:
        raise ArtifactError(
            f"config.json: lineahead version {saved.get('version')} is not {VERSION}",
            hint="Update lineahead.",
        )
    return [LinearLayer.from_dict(layer) for layer in saved["layers"]]


def route_attention(model: PreTrainedModel) -> None:
    """Make the attention of families with an adapter ask transformers' table; their results stay the same."""
    adapt(model, _subclass)


def is_hybrid(config: Any) -> bool:
    """Whether a converted model's config says that attention layers remain that are not converted."""
    return bool(config.lineahead["hybrid"])


def become_linear(model: PreTrainedModel, layers: Sequence[LinearLayer], *, hybrid: bool) -> None:
    """Turn a loaded softmax model into its linear subclass, in place, with fresh operators.

    Args:
        model: the model.
        layers: what to convert.
        hybrid: whether attention layers remain that are not converted.
    """
    base, config = type(model), _own_config(model)
    base_type = config.model_type
    attach(model, list(layers))
    for layer in layers:
        module = model.get_submodule(layer.name)
        module.get_submodule(ATTRIBUTE).to(device=next(module.parameters()).device)
    config.__class__ = linear_config_class(type(config))
    config.base_model_type = base_type
    vars(config).pop("model_type", None)  # configs read from a file have their own, which hides the class's
    config.lineahead = {
        "version": VERSION,
        "base_class": base.__name__,
        "hybrid": hybrid,
        "layers": [layer.as_dict() for layer in layers],
    }
    model.__class__ = linear_model_class(base)
    _route(model)


def _own_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Give the model a copy of its config, which others may share, and return the copy."""
    shared = model.config
    memo: dict[int, Any] = {}
    copied = copy.deepcopy(shared, memo)
    for module in model.modules():
        held = getattr(module, "config", None)
        if isinstance(held, PreTrainedConfig) and id(held) in memo:
            module.config = memo[id(held)]
    return copied


def _route(model: PreTrainedModel) -> None:
    """Point transformers' attention table at us, and let the converted layers find their cache."""
    config = model.config
    if not config.is_encoder_decoder:  # there it would be a copy
        config = config.get_text_config(decoder=True)
    base = cast(Any, type(model)).softmax_class
    if not (base._can_set_attn_implementation() or is_adapted(model)):
        raise ArchitectureError(
            f"transformers {transformers.__version__} computes attention in {base.__name__} itself",
            hint="Update transformers, which routes more models with every version.",
        )
    softmax: Softmax = "eager" if config._attn_implementation == "eager" else "sdpa"
    implementation = Implementation(softmax=softmax, hybrid=is_hybrid(model.config))
    model.set_attn_implementation(implementation.register())
    if config._attn_implementation != implementation.name:
        raise ArchitectureError(
            f"{type(model).__name__} kept {config._attn_implementation} attention",
            hint="See `lineahead architectures` for what is supported.",
        )
    for layer in layers_of(model.config):
        model.get_submodule(layer.name).register_forward_pre_hook(find_state, with_kwargs=True)


def linear_config_class(base: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """The subclass of a config class that describes a converted model."""
    return cast(type[PreTrainedConfig], _subclass(_LinearConfig, base, model_type=MODEL_TYPE))


def linear_model_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The subclass of a model class whose listed layers are linear."""
    return cast(
        type[PreTrainedModel],
        _subclass(
            _LinearModel,
            base,
            config_class=linear_config_class(cast(type[PreTrainedConfig], base.config_class)),
            softmax_class=base,
            _keep_in_fp32_modules_strict={ATTRIBUTE, *(base._keep_in_fp32_modules_strict or ())},
            _auto_class=None,
        ),
    )


_MADE: dict[tuple[type, type], type] = {}


def _subclass(mixin: type, base: type, **attributes: Any) -> type:
    """``class Lineahead<Base>(mixin, base)``, an attribute of this module, so that it pickles."""
    if (mixin, base) in _MADE:
        return _MADE[mixin, base]
    name = f"Lineahead{base.__name__}"
    made = type(name, (mixin, base), {"__module__": __name__, "__doc__": mixin.__doc__, **attributes})
    setattr(sys.modules[__name__], name, made)
    _MADE[mixin, base] = made
    return made


# Before 5.14 the second load of a process asks the found class for its config class; registering it for the
# first load compares names, so it may not have one until then.
READS_CONFIG_CLASS = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 14)


class LineaheadConfig(PreTrainedConfig):
    """What ``AutoConfig`` finds in an artifact: makes the linear config of the base model type."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The linear config that `config_dict` describes.

        Raises:
            ArtifactError: when the base model type is missing or unknown to this transformers.
        """
        base = str(config_dict.get("base_model_type"))
        if base not in CONFIG_MAPPING or "lineahead" not in config_dict:
            raise ArtifactError(
                f"config.json: transformers {transformers.__version__} has no base_model_type {base!r}",
                hint="Update transformers, or convert the checkpoint again.",
            )
        return linear_config_class(CONFIG_MAPPING[base]).from_dict(config_dict, **kwargs)


class LineaheadForCausalLM:
    """What ``AutoModelForCausalLM`` finds in an artifact: makes the linear subclass of the base class."""

    config_class: type[PreTrainedConfig]

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Load an artifact's model; arguments as in transformers."""
        config = kwargs.pop("config", None)
        if config is None:
            config = LineaheadConfig.from_pretrained(path)
        cls._note(config)
        return cls.resolve(config).from_pretrained(path, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        cls._note(config)
        return cls.resolve(config)._from_config(config, **kwargs)

    @classmethod
    def _note(cls, config: Any) -> None:
        if READS_CONFIG_CLASS:
            cls.config_class = type(config)

    @staticmethod
    def resolve(config: Any) -> Any:
        """The model class for a linear config.

        Raises:
            ArtifactError: when a newer version wrote it, or this transformers has no such base class.
        """
        layers_of(config)
        name = str(config.lineahead.get("base_class"))
        base = getattr(transformers, name, None)
        if base is None:
            raise ArtifactError(
                f"config.json: transformers {transformers.__version__} has no {name}",
                hint="Update transformers.",
            )
        return linear_model_class(base)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Nothing to do: saving writes the code itself."""


class LineaheadModel(LineaheadForCausalLM):
    """What the other auto classes find in an artifact: encoders, classifiers and encoder-decoders."""


def write_code(folder: Path) -> None:
    """Write ``modeling_lineahead.py``: a copy of this file if it is the bundle, else a new bundle."""
    own = Path(__file__)
    if own.name == CODE_FILE:
        target = folder / CODE_FILE
        if not target.exists() or not own.samefile(target):
            shutil.copyfile(own, target)
    else:
        package = importlib.import_module("lineahead.plugins.augmented_attention.huggingface.bundle")
        package.write(folder)
