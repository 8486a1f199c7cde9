"""What a recipe may say. Unknown keys and impossible combinations are refused; imports without torch.

A recipe names the operator's form, the data, the training stages, the draft heads, the exports and the
evaluation of one conversion. It is a YAML file; :func:`lineahead.recipes.load.load_recipe` reads it.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

Precision = Literal["fp32", "int8", "int4"]


class Part(BaseModel):
    """A section of a recipe: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Method(Part):
    """The operator's form: a preset's name and the settings that differ (None keeps the preset's value).

    Names and settings are those of ``plugins.augmented_attention``: ``methods`` lists the presets, ``schema``
    explains the settings. Both are checked when a conversion starts, before anything is loaded. Whether the
    operator is causal is not a choice: it follows from the model.
    """

    preset: str = "softmax-hedgehog"
    local: str | None = None
    pattern: str | None = None
    window: PositiveInt | None = None
    feature_map: str | None = None
    feature_dim: NonNegativeInt | None = None
    normalizer: str | None = None
    normalizes: str | None = None
    qk_norm: bool | None = None
    local_norm: bool | None = None
    conv_taps: NonNegativeInt | None = None
    eps: Annotated[float, Field(ge=1e-7)] | None = None
    sinks: NonNegativeInt | None = None

    def changes(self) -> dict[str, Any]:
        """The settings that differ from the preset's."""
        return self.model_dump(exclude={"preset"}, exclude_none=True)


class Samples(Part):
    """Text that the teacher writes itself, so that no corpus is needed.

    Attributes:
        tokens: how many to sample.
        sequence_length: length of each sample.
        batch_size: samples written at once.
        temperature: of the sampling.
        top_p: nucleus of the sampling.
        prompts: text files with one prompt per line, or JSON lines with ``turns``, ``prompt`` or ``text``;
            without any, samples start from the beginning-of-text token or, for a chat model, from an empty
            user turn.
    """

    tokens: PositiveInt = 131072
    sequence_length: PositiveInt = 512
    batch_size: PositiveInt = 32
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    prompts: tuple[str, ...] = ()


class Dataset(Part):
    """A Hugging Face dataset, streamed.

    Attributes:
        name: its Hub id.
        config: its configuration name.
        split: its split.
        field: the column that holds the text.
    """

    name: str
    config: str | None = None
    split: str = "train"
    field: str = "text"


class Data(Part):
    """Where the training text comes from: files, a dataset, or the teacher itself. At most one of them.

    A recipe may leave it open; then fine-tuning asks for it.

    Attributes:
        files: paths or glob patterns of ``.txt``, ``.jsonl`` and their ``.gz`` forms, relative to the
            working directory.
        dataset: a Hugging Face dataset.
        samples: the teacher's own text.
        packing: ``joined``: documents follow each other and a row may hold parts of two, which see each
            other; ``documents``: a row's documents know nothing of each other, and each begins at a
            multiple of the window, padding before it.
    """

    files: tuple[str, ...] = ()
    dataset: Dataset | None = None
    samples: Samples | None = None
    packing: Literal["joined", "documents"] = "joined"

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        given = [name for name in ("files", "dataset", "samples") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other")
        if self.samples is not None and self.packing == "documents":
            raise ValueError(
                "samples are cut at their length and cannot be told apart: packing must be joined"
            )
        return self

    @property
    def source(self) -> str | None:
        """Which of the three is given."""
        return next((name for name in ("files", "dataset", "samples") if getattr(self, name)), None)


class Lora(Part):
    """Low-rank adapters, merged into the weights at the end.

    Attributes:
        r: rank.
        alpha: scale; the update is multiplied by ``alpha / r``.
        dropout: on the adapters' input.
        targets: ``attention`` for the projections of every converted layer, ``all-linear``, or module names.
    """

    r: PositiveInt = 8
    alpha: PositiveFloat = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["attention", "all-linear"] | tuple[str, ...] = "attention"


class _Stage(Part):
    """What every training stage has.

    Attributes:
        tokens: length of the stage in tokens; or give `steps`.
        steps: length of the stage in optimiser steps.
        sequence_length: tokens per packed sequence.
        batch_size: sequences per forward pass and device.
        grad_accumulation: forward passes per optimiser step.
        learning_rate: peak rate of the parameters that conversion added.
        schedule: shape of the rate after warm-up.
        warmup: fraction of the steps during which the rate rises.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm; 0 for no clipping.
        seed: of the data order and dropout; the recipe's when None.
    """

    tokens: PositiveInt | None = None
    steps: PositiveInt | None = None
    sequence_length: PositiveInt = 1024
    batch_size: PositiveInt = 1
    grad_accumulation: PositiveInt = 1
    learning_rate: PositiveFloat = 1e-2
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: NonNegativeFloat = 1.0
    seed: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _one_length(self) -> "_Stage":
        if (self.tokens is None) == (self.steps is None):
            raise ValueError("give either tokens or steps")
        return self


class TransferStage(_Stage):
    """Attention transfer: the base frozen, each layer's new parameters learn its softmax output.

    Source: Zhang et al., 2024 (LoLCATs), arXiv:2410.10254, section 3.1.
    """

    kind: Literal["transfer"]


class DistillStage(_Stage):
    """Training of the whole student against the teacher's distribution and the text.

    Attributes:
        trainable: ``new`` parameters only, ``lora``: those and adapters, ``full``: all weights.
        base_learning_rate: peak rate of the adapters or of the pretrained weights.
        lora: the adapters.
        kl: weight of KL(teacher, student).
        ce: weight of the cross entropy with the text.
        temperature: both distributions' temperature in the KL term.
        gradient_checkpointing: recompute activations in the backward pass.
    """

    kind: Literal["distill"]
    trainable: Literal["new", "lora", "full"] = "lora"
    learning_rate: PositiveFloat = 1e-3
    base_learning_rate: PositiveFloat = 1e-4
    lora: Lora = Lora()
    kl: NonNegativeFloat = 1.0
    ce: NonNegativeFloat = 0.0
    temperature: PositiveFloat = 1.0
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _some_loss(self) -> "DistillStage":
        if self.kl == 0 and self.ce == 0:
            raise ValueError("kl and ce are both 0: nothing to minimise")
        if self.trainable != "lora" and self.lora != Lora():
            raise ValueError(f"lora is given but trainable is {self.trainable!r}")
        return self


Stage = Annotated[TransferStage | DistillStage, Field(discriminator="kind")]


class ClassifyStage(_Stage):
    """Training of a sequence classifier on labelled texts: all weights, cross entropy.

    Attributes:
        epochs: passes over the training texts; `steps` replaces it.
        base_learning_rate: peak rate of the pretrained weights and the classification head.
        precision: of the products, by autocast; ``auto`` as in a recipe.

    Source: You et al., 2024, arXiv:2406.07368, appendix (GLUE: 3 epochs, 2e-5, batches of 32, 256 tokens).
    """

    kind: Literal["classify"] = "classify"
    epochs: PositiveFloat = 3.0
    sequence_length: PositiveInt = 256
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 1e-3
    base_learning_rate: PositiveFloat = 2e-5
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    @model_validator(mode="after")
    def _one_length(self) -> "ClassifyStage":
        if self.tokens is not None:
            raise ValueError("a classification stage is given in epochs or steps, not tokens")
        return self


class Draft(Part):
    """A draft: Medusa heads, or a recurrent block.

    Medusa's head k predicts the token k + 2 places ahead from the hidden state alone; the recurrent draft
    goes ahead step by step, each step with the token before it.

    Attributes:
        kind: ``medusa`` or ``recurrent``.
        heads: K; for a recurrent draft the steps that it is trained to go ahead.
        width: inner width of a recurrent block; 0 for 8/3 of the hidden size.
        blocks: how many of them.
        vocabulary: how many of the most frequent tokens the heads can propose; 0 for all.
        top: candidates per head that the draft graph returns.
        samples: the converted model's own text, on which the heads are trained.
        epochs: passes over it.
        batch_size: positions per optimiser step.
        learning_rate: peak rate, cosine to zero.
        warmup: fraction of the steps during which the rate rises.
        held_out: fraction of the sequences on which accuracy is measured.
        seed: the recipe's when None.

    Source: Cai et al., 2024, arXiv:2401.10774, sections 2.1 and 3.1; Zhang et al., 2024, arXiv:2403.09919.
    """

    kind: Literal["medusa", "recurrent"] = "medusa"
    heads: PositiveInt = 4
    width: NonNegativeInt = 0
    blocks: PositiveInt = 1
    vocabulary: NonNegativeInt = 8192
    top: PositiveInt = 8
    samples: Samples = Samples(tokens=65536, sequence_length=256)
    epochs: PositiveInt = 4
    batch_size: PositiveInt = 512
    learning_rate: PositiveFloat = 1e-3
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    seed: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _top_fits(self) -> "Draft":
        if self.vocabulary and self.top > self.vocabulary:
            raise ValueError(f"top={self.top} is more than the draft vocabulary of {self.vocabulary}")
        return self


class Export(Part):
    """Which ONNX graphs to write.

    Attributes:
        precisions: of the verifier's weights.
        opset: ONNX operator set.
    """

    precisions: tuple[Precision, ...] = ("fp32", "int8", "int4")
    opset: Annotated[int, Field(ge=21, le=25)] = 23


class Eval(Part):
    """How to measure perplexity.

    Attributes:
        files: text files.
        context: context lengths in tokens.
        tokens: how many tokens of each file are read.
    """

    files: tuple[str, ...] = ()
    context: tuple[PositiveInt, ...] = (1024,)
    tokens: PositiveInt = 16384


class Recipe(Part):
    """Everything that is decided before a conversion starts.

    Attributes:
        name: the recipe's name.
        description: one line.
        method: the operator's form.
        pretrained: name of trained parts that come with the package; they replace `method`.
        layers: indices of the attention layers to convert, or ``all``.
        keep_softmax: of those, the ones that stay as they are after all: indices, ``none``, ``local``: the
            layers with a window of their own in a model that also has layers without one, whose cache is
            bounded already (Gemma 3), or ``all``: the original model, for export, whose linear twin drafts.
        precision: of the frozen weights while training; ``auto`` takes bfloat16 where the hardware
            multiplies it fast.
        products: ``bf16``: where weights are bfloat16, products inside the operators have operands of
            bfloat16 (their sums float32) and adapters are bfloat16 with float32 masters; ``fp32``: neither;
            ``auto`` is ``fp32``.
        compile: whether training compiles what it can (torch.compile): half a minute or more at the start of
            every stage, then faster steps.
        seed: of everything random.
        checkpoint_seconds: how often training saves its progress.
        data: the training text.
        stages: the training stages, in order.
        draft: the draft heads; None for none.
        export: the ONNX graphs.
        eval: the perplexity measurement.
    """

    name: str = "unnamed"
    description: str = ""
    method: Method = Method()
    pretrained: str | None = None
    layers: Literal["all"] | tuple[NonNegativeInt, ...] = "all"
    keep_softmax: Literal["local", "none", "all"] | tuple[NonNegativeInt, ...] = "local"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    products: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    seed: NonNegativeInt = 0
    checkpoint_seconds: PositiveFloat = 120.0
    data: Data = Data()
    stages: tuple[Stage, ...] = ()
    draft: Draft | None = None
    export: Export = Export()
    eval: Eval = Eval()

    @model_validator(mode="after")
    def _layers_differ(self) -> "Recipe":
        if self.layers != "all" and len(set(self.layers)) != len(self.layers):
            raise ValueError("layers names a layer twice")
        return self
