"""What a study may say: models, tasks, and which methods are compared on them. Imports without torch."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from lineahead.recipes.schema import ClassifyStage, Data, DistillStage, Method, Part, TransferStage

SOFTMAX, ALL = "softmax", "all"


class StudyModel(Part):
    """A checkpoint, or a small model with random weights and a tokenizer made from the task's text.

    Attributes:
        base: folder, GGUF file, ``package:NAME`` or Hub id of a checkpoint.
        architecture: transformers' model type of a model made from scratch, instead of `base`.
        config: its config's arguments.
        vocabulary: tokens of its byte-level BPE tokenizer, which is trained on the task's training text.
        family: the paper's model that its results are printed beside: ``bert``, ``gpt2``, ``t5``, ``llama``,
            ``flash``.
    """

    base: str | None = None
    architecture: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    vocabulary: PositiveInt = 4096
    family: Literal["bert", "gpt2", "t5", "llama", "flash"] | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> "StudyModel":
        if (self.base is None) == (self.architecture is None):
            raise ValueError("give either base or architecture")
        if self.base is not None and self.config:
            raise ValueError("config belongs to architecture, not to base")
        return self


class TextTask(Part):
    """Next-token prediction; the figure is the perplexity of held-out files.

    Attributes:
        data: training text.
        files: text files to judge by, by the name that the tables give them.
        context: tokens per window.
        longer: further windows to judge by; their figures are called ``NAME at TOKENS``.
        tokens: how many tokens of each file are read.
    """

    kind: Literal["perplexity"]
    data: Data
    files: Annotated[dict[str, str], Field(min_length=1)]
    context: PositiveInt = 512
    longer: tuple[PositiveInt, ...] = ()
    tokens: PositiveInt = 65536

    @model_validator(mode="after")
    def _text_of_its_own(self) -> "TextTask":
        if self.data.source not in ("files", "dataset"):
            raise ValueError("data names no files and no dataset")
        return self

    @property
    def figures(self) -> tuple[str, ...]:
        """What the perplexities are called: of every text, at every window."""
        windows = ("", *(f" at {size}" for size in self.longer))
        return tuple(f"{name}{window}" for name in self.files for window in windows)


class LabelTask(Part):
    """Classification of texts; the figure is the accuracy in percent on the test file.

    Attributes:
        train: file of ``text<TAB>label`` lines.
        test: likewise.
    """

    kind: Literal["accuracy"]
    train: str
    test: str


Task = Annotated[TextTask | LabelTask, Field(discriminator="kind")]


StudyStage = Annotated[TransferStage | DistillStage | ClassifyStage, Field(discriminator="kind")]


class NamedMethod(Method):
    """A method of a comparison; a bare name stands for ``softmax``, a preset, or ``all`` presets.

    Attributes:
        name: what the tables call it; with the settings that differ from its preset's, it is another method.
    """

    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Any) -> Any:
        return {"name": data, "preset": data} if isinstance(data, str) else data

    @property
    def is_bare(self) -> bool:
        """Whether it is a name and nothing else."""
        return self.name == self.preset and not self.changes()

    def changes(self) -> dict[str, Any]:
        """The settings that differ from the preset's."""
        return {key: value for key, value in super().changes().items() if key != "name"}


class Comparison(Part):
    """One model on one task: methods trained with the same data, seed and budget.

    Attributes:
        model: a key of `Study.models`.
        task: a key of `Study.tasks`.
        methods: ``softmax``, presets, ``all`` presets, or settings with a name. Of ``NAME`` and
            ``augmented-NAME`` both are meant when both are presets.
        settings: settings that differ from every method's own; its preset stays as it is.
        variants: instead of methods, a model with a linear attention of its own in several forms: by the name
            that the tables give them, what differs in the model's config.
        stages: the training. Softmax attention runs them too, except on a checkpoint's perplexity, where it
            is the original model.
        seeds: one cell for each.
    """

    model: str
    task: str
    methods: tuple[NamedMethod, ...] = (
        NamedMethod(name=SOFTMAX, preset=SOFTMAX),
        NamedMethod(name=ALL, preset=ALL),
    )
    settings: Method = Method()
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    stages: Annotated[tuple[StudyStage, ...], Field(min_length=1)]
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)

    @model_validator(mode="after")
    def _possible(self) -> "Comparison":
        if self.settings.preset != Method().preset:
            raise ValueError("settings name a preset: list it under methods")
        if self.variants and self.methods != type(self).model_fields["methods"].default:
            raise ValueError("give either methods or variants")
        adapted = [isinstance(stage, DistillStage) and stage.trainable == "lora" for stage in self.stages]
        if any(adapted[:-1]):
            raise ValueError("only the last stage can train adapters")
        if len(self.stages) > 1 and any(isinstance(stage, ClassifyStage) for stage in self.stages):
            raise ValueError("a classification is one stage")
        return self


class Study(Part):
    """A grid of comparisons.

    Attributes:
        name: the study's name.
        description: what it is for, how long it takes and on what.
        precision: of the weights while training; ``auto`` takes bfloat16 where that is fast.
        products: of the operators' products and the adapters, as in a recipe.
        compile: whether training compiles what it can, as in a recipe; part of no cell's identity.
        checkpoint_seconds: how often a cell saves its progress.
        models: by name.
        tasks: by name.
        grid: the comparisons.
    """

    name: str = "unnamed"
    description: str = ""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    products: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    checkpoint_seconds: PositiveFloat = 60.0
    models: dict[str, StudyModel]
    tasks: dict[str, Task]
    grid: Annotated[tuple[Comparison, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_exist(self) -> "Study":
        for row in self.grid:
            for what, name, known in (("model", row.model, self.models), ("task", row.task, self.tasks)):
                if name not in known:
                    raise ValueError(f"grid: no {what} {name!r}; there are: {', '.join(known)}")
            if row.variants and self.models[row.model].base is not None:
                raise ValueError(f"grid: model {row.model!r} is a checkpoint: it has no variants")
            self._check_stages(row)
            labelled = isinstance(self.tasks[row.task], LabelTask)
            if any(isinstance(stage, ClassifyStage) != labelled for stage in row.stages):
                wanted = "classify" if labelled else "transfer or distill"
                raise ValueError(f"grid: the stages on task {row.task!r} must be of kind {wanted}")
        return self

    def _check_stages(self, row: Comparison) -> None:
        scratch = self.models[row.model].base is None
        for stage in row.stages:
            taught = isinstance(stage, TransferStage) or (isinstance(stage, DistillStage) and stage.kl > 0)
            if scratch and taught:
                raise ValueError(
                    f"grid: model {row.model!r} is made from scratch and has no teacher: kl must be 0"
                )
