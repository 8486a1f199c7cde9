"""Which of transformers' classes a checkpoint is loaded as: by its head, for models that are no decoders."""

from typing import Any, cast

import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)

from lineahead.errors import ArchitectureError
from lineahead.plugins.augmented_attention.huggingface.modeling import AUTO_CLASSES

# Heads of pretraining: the language model in them is what is wanted, the rest of them is left out.
WHOLE_LANGUAGE_MODELS = ("ForPreTraining", "T5WithLMHeadModel")


def model_class(config: PreTrainedConfig) -> Any:
    """The class, or auto class, whose ``from_pretrained`` loads a checkpoint with this config.

    A decoder is a causal language model. An encoder or encoder-decoder is what its config says that it was
    saved as (``architectures``), so that a classifier stays one; without a word it is a language model.

    Args:
        config: the checkpoint's.

    Raises:
        ArchitectureError: when its head is of a kind that cannot be converted, or it is no model of text.
    """
    saved_as = str((config.architectures or [""])[0])
    if type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        default: Any = AutoModelForSeq2SeqLM
        two_sided = bool(config.is_encoder_decoder)
    else:
        known = type(config) in MODEL_FOR_MASKED_LM_MAPPING
        default, two_sided = AutoModelForMaskedLM, known and not getattr(config, "is_decoder", False)
    if not two_sided:
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ArchitectureError(
                f"model_type {config.model_type!r} is no causal, masked or seq2seq language model",
                hint="See `lineahead architectures`.",
            )
        return AutoModelForCausalLM
    if not saved_as or saved_as.endswith(WHOLE_LANGUAGE_MODELS):
        return default
    found = getattr(transformers, saved_as, None)
    heads = tuple(end for end in AUTO_CLASSES if end != "Model")
    plain = type(config).__name__.removesuffix("Config") + "Model"
    if found is None or not (saved_as.endswith(heads) or saved_as == plain):
        raise ArchitectureError(
            f"{saved_as}: this head cannot be converted",
            hint=f"Convert {plain} or a class that ends in {', '.join(heads)}.",
        )
    return cast(type[PreTrainedModel], found)
