"""Bodies of requests. A field that is not here is refused by name: nothing is ignored."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("not valid Unicode (a lone surrogate)") from error
    return text


Text = Annotated[StrictStr, AfterValidator(_encodable)]
Number = Annotated[float, Field(strict=True)]
Tokens = Annotated[list[Annotated[StrictInt, Field(ge=0, lt=1 << 31)]], Field(min_length=1)]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]


class Body(BaseModel):
    """Unknown fields, infinities and numbers in strings are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class StreamOptions(Body):
    """Of a streamed answer."""

    include_usage: StrictBool = Field(False, description="Send the token counts in a last chunk.")


class JsonSchema(Body):
    """A named schema."""

    name: Text = Field(max_length=64)
    description: Text | None = None
    json_schema: dict[str, Any] = Field(alias="schema", description="A JSON schema.")
    strict: StrictBool | None = Field(None, description="The schema is always followed.")


class PlainFormat(Body):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Body):
    """JSON of one schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[PlainFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class Sampling(Body):
    """What both kinds of completion share."""

    model: Text = Field(description="As `/v1/models` lists it.")
    temperature: Number = Field(1.0, ge=0, le=2, description="0 decodes greedily.")
    top_p: Number = Field(1.0, gt=0, le=1)
    top_k: StrictInt = Field(0, ge=0, le=1 << 20, description="Keep the k best tokens; 0 keeps all.")
    n: StrictInt = Field(1, ge=1, le=128, description="Choices.")
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=1 << 63)] | None = Field(
        None, description="Of the random stream; a seed gives the same text whatever else is going on."
    )
    logit_bias: dict[Text, Annotated[float, Field(strict=True, ge=-100, le=100)]] | None = Field(
        None, description="By token number.", max_length=1024
    )
    stream: StrictBool | None = Field(None, description="Send the answer as it is made.")
    stream_options: StreamOptions | None = None
    user: Annotated[Text, Field(max_length=256)] | None = Field(
        None, description="Who asks; users of one key are served fairly among themselves."
    )
    timeout_s: Annotated[float, Field(strict=True, gt=0, le=86400)] | None = Field(
        None, description="Extension: seconds after which the request is cut."
    )
    draft_nodes: Annotated[StrictInt, Field(ge=0, le=1024)] | None = Field(
        None, description="Extension: most tokens proposed per step; 0 decodes plainly."
    )
    speculation_trace: StrictBool | None = Field(
        None, description="Extension: chunks say which tokens had been proposed, and which were rejected."
    )

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class TextPart(Body):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
    name: Text | None = None

    def as_template(self) -> dict[str, str]:
        """As chat templates take it."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        named = {} if self.name is None else {"name": self.name}
        return {"role": self.role, "content": text, **named}


class ChatRequest(Sampling):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None

    @property
    def limit(self) -> int | None:
        """Most tokens of a choice."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """How many of the best tokens to report."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Sampling):
    """``POST /v1/completions``."""

    prompt: (
        Text
        | Tokens
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[Tokens], Field(min_length=1)]
    )
    max_tokens: StrictInt = Field(16, ge=1)
    logprobs: Annotated[StrictInt, Field(ge=0, le=5)] | None = None

    @property
    def limit(self) -> int | None:
        """Most tokens of a choice."""
        return self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """How many of the best tokens to report."""
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """One per prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[one for one in self.prompt if isinstance(one, int)]]
        return [one for one in self.prompt if not isinstance(one, int)]
