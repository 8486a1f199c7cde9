"""What the application takes from ``serve run`` or a Serve config file."""

from pydantic import Field, model_validator

from lineahead.runtime.engine.options import EngineOptions


class RayArguments(EngineOptions):
    """The engine's options, and how many there are.

    Attributes:
        artifact: folder, at the same path on every node.
        name: the model's name in the API; the folder's when None.
        api_keys: one of them is needed for ``/v1``; none at all lets everybody in.
        replicas: a fixed number; 0 scales between the two below.
        min_replicas: at the least.
        max_replicas: at the most.
        cpus: of a replica, for Ray's placement; also its threads unless `threads` says otherwise.
        gpus: of a replica, for Ray's placement.
        drain: seconds that running requests get when a replica goes.
        prefix_characters: how much of a prompt's beginning decides where it goes.
    """

    artifact: str = Field(min_length=1)
    name: str | None = None
    api_keys: tuple[str, ...] = ()
    replicas: int = Field(0, ge=0)
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(4, ge=1)
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)
    drain: float = Field(30.0, ge=0)
    prefix_characters: int = Field(256, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> "RayArguments":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas={self.min_replicas} is above max_replicas={self.max_replicas}")
        return self
