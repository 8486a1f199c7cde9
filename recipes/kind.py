"""What an artifact's model is, read from its ``config.json``, and the refusal of what that kind cannot do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lineahead.errors import ArtifactError
from lineahead.recipes.json_file import read_object

Kind = Literal["decoder", "encoder", "encoder-decoder"]


def kind_of(config: Mapping[str, Any]) -> Kind:
    """The kind of a converted model, from its config as a dictionary."""
    if config.get("is_encoder_decoder"):
        return "encoder-decoder"
    own = config.get("lineahead")
    layers = own.get("layers") if isinstance(own, Mapping) else None
    first = layers[0] if isinstance(layers, list) and layers else None
    return "encoder" if isinstance(first, Mapping) and first.get("role") == "encoder" else "decoder"


def require_decoder(folder: Path, what: str) -> None:
    """Refuse an artifact that is an encoder or an encoder-decoder.

    Args:
        folder: the artifact.
        what: what is asked of it, for the message.

    Raises:
        ArtifactError: when it is not a decoder, or has no readable ``config.json``.
    """
    again = "Make an artifact with `lineahead convert`."
    kind = kind_of(read_object(folder / "config.json", error=ArtifactError, hint=again))
    if kind != "decoder":
        raise ArtifactError(
            f"{folder} is an {kind}: {what} works on decoders only",
            hint="See docs/two-sided.md for what encoders and encoder-decoders can do.",
        )
