"""The model and tokenizer that a cell starts from: a checkpoint, or random weights of a small config."""

from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lineahead.convert.source import load_source
from lineahead.convert.study.material import made_tokenizer
from lineahead.errors import ArchitectureError, RecipeError, SettingsError
from lineahead.plugins.gated_attention_unit.config import FlashConfig
from lineahead.recipes.study.schema import LabelTask, StudyModel, Task, TextTask


def starting_point(
    name: str, wanted: StudyModel, purpose: Task, *, labels: int, seed: int, folder: Path
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model before it is converted, in evaluation mode on the CPU, float32 where it is random.

    Args:
        name: what the study calls the model.
        wanted: the model.
        purpose: what it is to do.
        labels: classes of a classification; 0 for a language model.
        seed: of random weights.
        folder: where made tokenizers are kept.

    Returns:
        The model and its tokenizer.

    Raises:
        RecipeError: when the config is impossible.
        ArchitectureError: when the architecture has no such head.
        LineaheadError: as ``load_source`` says.
    """
    torch.manual_seed(seed)
    if wanted.base is None:
        tokenizer = made_tokenizer(purpose, wanted.vocabulary, folder)
        return random_model(name, wanted, tokenizer, labels), tokenizer
    if isinstance(purpose, TextTask):
        loaded = load_source(wanted.base)
        return loaded.model, loaded.tokenizer
    return _classifier(wanted.base, purpose, labels)


def random_model(
    name: str, wanted: StudyModel, tokenizer: PreTrainedTokenizerBase, labels: int
) -> PreTrainedModel:
    """A model of the study's config with random weights.

    Raises:
        RecipeError: when the config is impossible.
        ArchitectureError: when the architecture has no such head.
    """
    kind = wanted.architecture
    if kind == FlashConfig.model_type:
        from lineahead.plugins.gated_attention_unit import modeling  # noqa: F401 (registers the model)
    if kind is None or kind not in CONFIG_MAPPING:
        raise RecipeError(f"models.{name}: transformers has no architecture {kind!r}", hint="Check its name.")
    given: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
        **({"num_labels": labels} if labels else {}),
        **wanted.config,
    }
    if not CONFIG_MAPPING[kind]().is_encoder_decoder:
        del given["decoder_start_token_id"]
    made = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
    try:
        model = cast(Any, made).from_config(CONFIG_MAPPING[kind](**given), dtype=torch.float32)
    except (TypeError, ZeroDivisionError, SettingsError) as error:
        raise RecipeError(f"models.{name}: {error}", hint="Correct its config.") from error
    except ValueError as error:
        raise ArchitectureError(
            f"models.{name}: {str(error).splitlines()[0]}",
            hint="Choose another architecture, or correct its config.",
        ) from error
    return cast(PreTrainedModel, model.eval())


def _classifier(base: str, task: LabelTask, labels: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint's body under a new classification head."""
    loaded = load_source(base)
    config, tokenizer = loaded.model.config, loaded.tokenizer
    config.num_labels = labels
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    config.pad_token_id = tokenizer.pad_token_id
    try:
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ArchitectureError(
            f"{base}: {str(error).splitlines()[0]}", hint="Choose a model that can classify."
        ) from error
    body = model.base_model.load_state_dict(loaded.model.base_model.state_dict(), strict=False)
    missing = [name for name in body.missing_keys if not name.startswith("pooler.")]  # part of the new head
    if missing or body.unexpected_keys:
        raise ArchitectureError(
            f"{base}: no weight for {(missing or body.unexpected_keys)[0]!r} of a classifier",
            hint="Choose a checkpoint of the whole model.",
        )
    return model.eval(), tokenizer
