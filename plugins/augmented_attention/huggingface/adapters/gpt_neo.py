"""GPT-Neo: learned positions, unscaled scores, and a window that every second layer keeps in a buffer."""

from typing import Any

from lineahead.plugins.augmented_attention.huggingface.adapters.own_method import OwnMethodRouting


class GPTNeoRouting(OwnMethodRouting):
    """Mixed into ``GPTNeoSelfAttention``."""

    layer_id: int
    attention_type: str

    @property
    def layer_idx(self) -> int:
        """What every other family calls it."""
        return self.layer_id

    def _arguments(self) -> dict[str, Any]:
        local = {"local_window": self.config.window_size} if self.attention_type == "local" else {}
        return {"scaling": 1.0, **local}
