"""What a server allows."""

from dataclasses import dataclass

from lineahead.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Limits and names.

    Attributes:
        name: of the model, in the API.
        api_keys: one of them is needed for ``/v1``; none at all lets everybody in.
        max_body_bytes: of a request.
        body_timeout_s: in which a request's body must have come.
        max_tokens: most tokens that a choice may have, and the default of chats.
        max_choices: most choices of a request, over all its prompts.
        private_prefixes: share cached states within an API key only.
    """

    name: str
    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 1 << 20
    body_timeout_s: float = 30.0
    max_tokens: int = 2048
    max_choices: int = 16
    private_prefixes: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            InputError: naming the setting.
        """
        for name in ("max_body_bytes", "body_timeout_s", "max_tokens", "max_choices"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name}={getattr(self, name)} is out of range", hint="Use more than 0.")
        if not all(self.api_keys):
            raise InputError("an API key is empty", hint="Give keys of at least one character.")
