"""Which entry of transformers' attention table the parts of a model ask."""

from transformers import PreTrainedModel


def share_implementation(model: PreTrainedModel) -> None:
    """Let parts whose config is a copy of the model's, as in T5, ask for the same attention as the model.

    transformers before 5.20 leaves such copies as they are when the model's attention is chosen.

    Args:
        model: changed in place.
    """
    config = model.config
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and isinstance(config, type(part.config)):
            part.config._attn_implementation_internal = config._attn_implementation
