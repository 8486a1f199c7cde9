"""GPT-J: rotary positions on part of each head, attention in a method of its own."""

from typing import Any

from lineahead.plugins.augmented_attention.huggingface.adapters.own_method import OwnMethodRouting


class GPTJRouting(OwnMethodRouting):
    """Mixed into ``GPTJAttention``."""

    scale_attn: float

    def _arguments(self) -> dict[str, Any]:
        return {"scaling": 1.0 / float(self.scale_attn)}
