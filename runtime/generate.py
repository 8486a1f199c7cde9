"""Prompt in, text out: an artifact folder, a backend and a drafter behind one object."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lineahead.errors import BackendError, InputError
from lineahead.plugins.augmented_attention.native import Implementation
from lineahead.runtime.acceptance import Acceptance, lossless
from lineahead.runtime.artifact import Artifact, read_artifact
from lineahead.runtime.backends.ort_library import Provider
from lineahead.runtime.drafters import Drafter, LookupDrafter, NoDrafter
from lineahead.runtime.drafters.combined import CombinedDrafter
from lineahead.runtime.drafters.in_step import InStepDrafter
from lineahead.runtime.drafters.medusa import MedusaDrafter, Shape
from lineahead.runtime.drafters.model import ModelDrafter
from lineahead.runtime.drafters.recurrent import RecurrentDrafter
from lineahead.runtime.governor import Governor
from lineahead.runtime.row import Finish, Row
from lineahead.runtime.sampling import SamplingParams, stream
from lineahead.runtime.session import Session
from lineahead.runtime.speculate import Decoder, Event
from lineahead.runtime.statistics import Statistics
from lineahead.runtime.tokenizer import TextStream, Tokenizer

Prompt = str | Sequence[int]
DRAFTERS = ("none", "lookup", "medusa", "recurrent", "auto", "model")
BACKENDS = ("onnxruntime", "eager", "tensorrt")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The result for one prompt.

    Attributes:
        prompt_tokens: number of tokens of the prompt.
        tokens: generated tokens, an end-of-sequence token included.
        text: their text, cut at a stop string.
        finish: ``eos``, ``stop``, ``length`` or ``context``.
    """

    prompt_tokens: int
    tokens: tuple[int, ...]
    text: str
    finish: Finish


class Generator:
    """A loaded model. Not safe for use from several threads at once.

    Attributes:
        artifact: the folder's facts.
        session: the backend.
        tokenizer: of the model.
        drafter: what proposes by default.
        statistics: of the last run.
    """

    def __init__(
        self, artifact: Artifact, session: Session, tokenizer: Tokenizer, drafter: Drafter | None = None
    ) -> None:
        """Put the parts together; :meth:`load` makes them."""
        self.artifact, self.session, self.tokenizer = artifact, session, tokenizer
        self.drafter: Drafter = drafter or NoDrafter()
        self.statistics = Statistics()
        self._governors: dict[tuple[str, int], Governor] = {}

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        backend: str = "onnxruntime",
        precision: str = "fp32",
        drafter: str = "none",
        draft_nodes: int = 8,
        provider: Provider = "cpu",
        threads: int = 0,
        implementation: Implementation | None = None,
        rebuild: bool = False,
    ) -> "Generator":
        """Open an artifact folder.

        Args:
            folder: as written by ``lineahead convert`` and ``lineahead export``.
            backend: ``onnxruntime``, ``eager`` or ``tensorrt``.
            precision: ``fp32``, ``int8`` or ``int4`` on ONNX Runtime; else ``fp32``, ``fp16`` or ``bf16``.
            drafter: one of DRAFTERS; ``auto`` is lookup with the artifact's own draft, or with a draft model.
            draft_nodes: most nodes proposed per step.
            provider: ``cpu`` or ``cuda``.
            threads: threads of the backend; 0 lets it choose.
            implementation: of the operator on ONNX Runtime: ``auto``, ``native``, ``function``,
                or None for what the environment says.
            rebuild: build the TensorRT engine from the ONNX graph when none fits this machine.

        Raises:
            ArtifactError: when a file is missing.
            BackendError: when the backend is not usable here.
        """
        artifact = read_artifact(Path(folder))
        tokenizer = Tokenizer(artifact.folder)
        session = open_session(
            artifact,
            backend=backend,
            precision=precision,
            provider=provider,
            threads=threads,
            implementation=implementation,
            rebuild=rebuild,
        )
        made = open_drafter(artifact, drafter, nodes=draft_nodes, provider=provider, session=session)
        return cls(artifact, session, tokenizer, made)

    def encode(self, prompt: Prompt) -> list[int]:
        """Tokens of a prompt, checked.

        Raises:
            InputError: when it has no tokens, or tokens that the model does not know.
        """
        tokens = (
            self.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        )
        if not tokens:
            raise InputError("the prompt has no tokens", hint="Give at least one token; a BOS token will do.")
        wrong = next((token for token in tokens if not 0 <= token < self.artifact.vocab_size), None)
        if wrong is not None:
            raise InputError(
                f"token {wrong} is outside the vocabulary of {self.artifact.vocab_size}",
                hint="Use the tokenizer of this artifact.",
            )
        return tokens

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Tokens of a conversation, ready to pass as a prompt."""
        return self.encode(self.tokenizer.chat(messages))

    def rows(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        ignore_position_limit: bool = False,
    ) -> list[Row]:
        """Requests for a :class:`Decoder`, numbered from 0; an encoder-decoder's prompts are its sources.

        Parameters shared by all prompts give each prompt a random stream of its own under the one seed;
        parameters of its own give a prompt the stream of its own seed, whatever its place.

        Raises:
            InputError: when a prompt is empty or longer than the position table covers.
        """
        shared = isinstance(params, SamplingParams)
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise InputError(
                f"{len(prompts)} prompts, {len(each)} parameters", hint="Give one for all, or one each."
            )
        limit = self.position_limit(ignore=ignore_position_limit)
        rows = []
        for request, (prompt, one) in enumerate(zip(prompts, each, strict=True)):
            read = self.encode(prompt)
            tokens = list(self.artifact.start) or read
            if limit is not None and len(read) >= limit:
                raise InputError(
                    f"prompt {request} has {len(read)} tokens, the model's positions end at {limit}",
                    hint="Shorten it, or pass --ignore-position-limit (quality may suffer).",
                )
            row = Row(
                request=request,
                tokens=tokens,
                prompt=len(tokens),
                params=one,
                random=stream(one, request if shared else 0),
                eos=self.artifact.eos,
                limit=limit,
                text=TextStream(self.tokenizer, tokens, one.stop),
                source=read if self.artifact.reads_sources else (),
            )
            rows.append(row)
        return rows

    def position_limit(self, *, ignore: bool = False) -> int | None:
        """Longest text allowed, in tokens; None for any.

        Args:
            ignore: lift the limit of rotary positions, which compute beyond what they were trained for.

        Raises:
            InputError: when asked to ignore the end of a position table.
        """
        if ignore and self.artifact.learned_positions:
            raise InputError(
                f"the position table has {self.artifact.position_limit} rows and ends there",
                hint="Only models with rotary or no positions can go beyond it.",
            )
        return None if ignore else self.artifact.position_limit

    def stream(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),  # noqa: B008 (frozen)
        *,
        drafter: Drafter | None = None,
        acceptance: Acceptance = lossless,
        governed: bool = False,
        ignore_position_limit: bool = False,
    ) -> Iterator[Event]:
        """Decode prompts together, yielding what each step adds to each of them; ends when all have ended.

        Args:
            prompts: texts or token lists.
            params: one for all, or one each.
            drafter: instead of the generator's own.
            acceptance: anything but the default may change the distribution.
            governed: let a governor choose the draft length.
            ignore_position_limit: go on past the length that the model's positions were made for.

        Raises:
            InputError: as :meth:`rows`.
            BackendError: when the backend fails.
        """
        rows = self.rows(prompts, params, ignore_position_limit=ignore_position_limit)
        used = drafter or self.drafter
        governor = self._governor(used) if governed else None
        decoder = Decoder(self.session, used, acceptance=acceptance, governor=governor)
        self.statistics = decoder.statistics
        decoder.admit(rows)
        try:
            yield from decoder.run()
        finally:
            used.forget([row.request for row in rows])

    def _governor(self, drafter: Drafter) -> Governor:
        """What has been learnt about this kind of drafter so far."""
        return self._governors.setdefault((drafter.name, drafter.max_nodes), Governor(drafter.max_nodes))

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),  # noqa: B008 (frozen)
        **options: Any,
    ) -> list[Generation]:
        """Decode prompts together; arguments as :meth:`stream`."""
        encoded = [self.encode(prompt) for prompt in prompts]
        tokens: list[list[int]] = [[] for _ in prompts]
        text = ["" for _ in prompts]
        finish: list[Finish] = ["length" for _ in prompts]
        for event in self.stream(encoded, params, **options):
            tokens[event.request].extend(event.tokens)
            text[event.request] += event.text
            finish[event.request] = event.finish or finish[event.request]
        return [
            Generation(prompt_tokens=len(encoded[i]), tokens=tuple(tokens[i]), text=text[i], finish=finish[i])
            for i in range(len(prompts))
        ]


def open_session(
    artifact: Artifact,
    *,
    backend: str = "onnxruntime",
    precision: str = "fp32",
    provider: Provider = "cpu",
    threads: int = 0,
    implementation: Implementation | None = None,
    rebuild: bool = False,
) -> Session:
    """The backend by name; a new backend is one file in ``backends/`` and one branch here.

    Raises:
        BackendError: when there is no such backend, or it is not usable here.
        ArtifactError: when its graph or weights are missing.
    """
    if artifact.reads_sources and backend != "eager":
        raise BackendError(
            f"{artifact.folder} is an encoder-decoder: the {backend} backend does not run it",
            hint="Use --backend eager.",
        )
    if backend == "onnxruntime":
        from lineahead.runtime.backends.onnxruntime import OnnxRuntimeSession

        return OnnxRuntimeSession(
            artifact.graph(precision),
            identity=artifact.identity,
            precision=precision,
            provider=provider,
            threads=threads,
            implementation=implementation,
        )
    if backend == "eager":
        from lineahead.runtime.backends.eager import EagerSession

        return EagerSession.load(artifact, precision=precision, device=provider, threads=threads)
    if backend == "tensorrt":
        from lineahead.runtime.backends.tensorrt import TensorRTSession

        return TensorRTSession.load(artifact, precision=precision, rebuild=rebuild)
    raise BackendError(f"unknown backend {backend!r}", hint=f"Choose one of: {', '.join(BACKENDS)}.")


def open_drafter(
    artifact: Artifact,
    name: str,
    *,
    nodes: int = 8,
    shape: Shape = "adaptive",
    provider: Provider = "cpu",
    threads: int = 0,
    model: Path | None = None,
    precision: str = "int4",
    session: Session | None = None,
) -> Drafter:
    """The drafter by name; a new drafter is one file in ``drafters/`` and one branch here.

    Args:
        artifact: the model that verifies.
        name: one of DRAFTERS.
        nodes: most nodes proposed per step.
        shape: of trained heads' proposals.
        provider: ``cpu`` or ``cuda``.
        threads: of a draft model.
        model: artifact folder of the draft model; for ``model`` the same artifact when None, for ``auto`` the
            trained draft instead.
        precision: of the draft model's graph.
        session: that verifies; where it drafts in its own steps, its draft is used.

    Raises:
        InputError: when there is no such drafter, or the draft model has another vocabulary or tokenizer.
        ArtifactError: when its graph is missing.
    """
    if name == "none":
        return NoDrafter()
    if name == "lookup":
        return LookupDrafter(max_nodes=nodes)
    if name == "auto":
        lookup, kind = LookupDrafter(max_nodes=nodes), artifact.draft_kind
        if model is not None:
            return CombinedDrafter(lookup, _second(artifact, model, nodes, precision, provider, threads))
        if kind is None:
            return lookup
        return CombinedDrafter(lookup, _trained(artifact, kind, nodes, shape, provider, session))
    if name == "model":
        return _second(artifact, model, nodes, precision, provider, threads)
    if name in ("medusa", "recurrent"):
        return _trained(artifact, name, nodes, shape, provider, session)
    raise InputError(f"unknown drafter {name!r}", hint=f"Choose one of: {', '.join(DRAFTERS)}.")


def _second(
    artifact: Artifact, model: Path | None, nodes: int, precision: str, provider: Provider, threads: int
) -> ModelDrafter:
    """A second model, or the same one in another precision, as the draft."""
    other = artifact if model is None else _companion(artifact, model)
    session = open_session(other, precision=precision, provider=provider, threads=threads)
    return ModelDrafter(session, max_nodes=nodes)


def _companion(artifact: Artifact, folder: Path) -> Artifact:
    """A draft model's artifact, which must number tokens as the verifier does."""
    other, hint = read_artifact(folder), "Take a draft model with the same tokenizer."
    if other.vocab_size != artifact.vocab_size:
        raise InputError(
            f"{other.folder} has {other.vocab_size} tokens, {artifact.folder} has {artifact.vocab_size}",
            hint=hint,
        )
    if not Tokenizer(other.folder).spells_as(Tokenizer(artifact.folder)):
        raise InputError(f"{other.folder} and {artifact.folder} number their tokens differently", hint=hint)
    return other


def _trained(
    artifact: Artifact, kind: str, nodes: int, shape: Shape, provider: Provider, session: Session | None
) -> Drafter:
    """The draft in the artifact, which must be of that kind."""
    graph = artifact.draft_graph()
    if artifact.draft_kind != kind:
        raise InputError(
            f"{artifact.folder}: its draft is {artifact.draft_kind!r}, not {kind!r}",
            hint=f"Use --speculate {artifact.draft_kind} or auto, or train another: lineahead draft.",
        )
    if kind == "recurrent" and session is not None and session.drafts:
        return InStepDrafter(max_nodes=nodes)
    if kind == "recurrent":
        from lineahead.runtime.backends.ort_recurrent import OnnxRuntimeRecurrent

        stepper = OnnxRuntimeRecurrent(graph, provider=provider)
        return RecurrentDrafter(stepper, max_nodes=nodes, branches=1 if shape == "chain" else 4)
    from lineahead.runtime.backends.ort_heads import OnnxRuntimeHeads

    return MedusaDrafter(OnnxRuntimeHeads(graph, provider=provider), max_nodes=nodes, shape=shape)
