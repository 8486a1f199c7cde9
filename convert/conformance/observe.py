"""What a form says about texts: the logits after each of their tokens, however they were fed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from lineahead.convert.conformance.oracle import Text, encoded
from lineahead.convert.onnx.rollout import Array, Backend, Case, Turn, random_tree, run
from lineahead.errors import ArchitectureError
from lineahead.plugins.augmented_attention.huggingface.fixed_layer import CACHE
from lineahead.plugins.augmented_attention.huggingface.positions import require_given_positions
from lineahead.plugins.augmented_attention.schema import AttentionSettings

WINDOW, TAPS, SINKS = 4, 3, 2
LENGTHS = (11, 7)
CHUNKS = (4, 1, 3, 2, 1)
START = 0  # an encoder-decoder's first token
FIRST_TOKEN = 3  # below it are the tiny models' special tokens


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a form gave: logits ``[V]`` after a text, or hidden states ``[N, C]`` of all of an encoder's text.

    Attributes:
        text: tokens of a decoder's text up to this one; empty for an encoder's hidden states.
        logits: see above.
        source: the encoder's text, if there is an encoder.
    """

    text: Text
    logits: NDArray[Any]
    source: Text = ()


def shrunk(settings: AttentionSettings) -> AttentionSettings:
    """The same method, so small that a dozen tokens cross several groups or windows."""
    return replace(
        settings,
        window=min(settings.window, WINDOW),
        conv_taps=min(settings.conv_taps, TAPS),
        sinks=min(settings.sinks, SINKS),
    )


def drawn_texts(vocabulary: int) -> list[Text]:
    """Two random texts of different lengths."""
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(FIRST_TOKEN, vocabulary, size=length).tolist()) for length in LENGTHS]


def _along(text: Text, logits: Tensor, source: Text = ()) -> Iterator[Seen]:
    """What is seen along a text: logits ``[len(text), V]`` of its last tokens."""
    first = len(text) - logits.shape[0]
    for i, row in enumerate(logits):
        yield Seen(text=text[: first + i + 1], logits=row.double().numpy(), source=source)


def _inputs(ids: Tensor, sources: Sequence[Text]) -> dict[str, Tensor]:
    """A causal model's arguments; with sources, one a row, an encoder-decoder's."""
    if not sources:
        return {"input_ids": ids}
    read, mask = padded(sources, left=False)
    return {"input_ids": read, "attention_mask": mask, "decoder_input_ids": ids}


@torch.no_grad()
def read(model: PreTrainedModel, texts: Sequence[Text], *, left: bool = False) -> list[Seen]:
    """An encoder's hidden states of texts side by side, padded where they are shorter."""
    ids, mask = padded(texts, left=left)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if left and takes_positions(model):
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    hidden = encoded(model, **inputs)
    return [
        Seen(text=(), logits=hidden[row][mask[row].bool()].double().numpy(), source=text)
        for row, text in enumerate(texts)
    ]


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether the model takes positions counted from 0, which ``generate()`` gives to padded rows."""
    try:
        require_given_positions(model)
    except ArchitectureError:
        return False
    return True


@torch.no_grad()
def whole(
    model: PreTrainedModel, texts: Sequence[Text], sources: Sequence[Text] = (), *, left: bool = False
) -> list[Seen]:
    """The training form: texts side by side, padded where they are shorter, and so their sources."""
    ids, mask = padded(texts, left=left)
    inputs = {**_inputs(ids, sources), "decoder_attention_mask" if sources else "attention_mask": mask}
    if left and takes_positions(model):
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)  # as generate() numbers padded rows
    logits = model(**inputs, use_cache=False).logits
    return [
        one
        for row, (text, source) in enumerate(_pairs(texts, sources))
        for one in _along(text, logits[row][mask[row].bool()], source)
    ]


def _pairs(texts: Sequence[Text], sources: Sequence[Text]) -> list[tuple[Text, Text]]:
    """Each text with its source, if there are sources."""
    return list(zip(texts, sources or [()] * len(texts), strict=True))


@torch.no_grad()
def cached(
    model: PreTrainedModel, texts: Sequence[Text], sizes: Sequence[int], sources: Sequence[Text] = ()
) -> list[Seen]:
    """Texts of one length fed in calls of `sizes` tokens, with the cache that the model makes."""
    cache, parts = None, []
    for part in torch.tensor(list(texts)).split(list(sizes), 1):
        result = model(**_inputs(part, sources), use_cache=True, **{CACHE: cache})
        cache = result[CACHE]
        parts.append(result.logits)
    rows = zip(_pairs(texts, sources), torch.cat(parts, 1), strict=True)
    return [one for (text, source), logits in rows for one in _along(text, logits, source)]


@torch.no_grad()
def cropped(model: PreTrainedModel, text: Text, source: Text = (), *, start: int) -> list[Seen]:
    """Chains of wrong tokens drafted along a text from `start`, and cropped from the cache."""
    wrong, sources = tuple(reversed(text)), [source] if source else []
    result = model(**_inputs(torch.tensor([text[:start]]), sources), use_cache=True)
    cache, seen, done = result[CACHE], list(_along(text[:start], result.logits[0], source)), start
    for accepted in (2, 0, 1, 3):
        drafted = text[done : done + accepted] + wrong[: 4 - accepted]
        inputs = _inputs(torch.tensor([drafted]), sources)
        logits = model(**inputs, use_cache=True, **{CACHE: cache}).logits[0]
        seen += _along(text[:done] + drafted, logits, source)
        cache.crop(accepted - len(drafted))
        done += accepted
    return seen


@torch.no_grad()
def generated(
    model: PreTrainedModel, texts: Sequence[Text], sources: Sequence[Text] = (), *, tokens: int = 5
) -> list[Seen]:
    """Greedy text by ``generate()``, rows padded on the left, and the logits that it was chosen from.

    Sources are padded on the right, and `texts` are then of one length.
    """
    ids, mask = padded(texts, left=True)
    model.generation_config = GenerationConfig(
        pad_token_id=0, decoder_start_token_id=START, do_sample=False, max_new_tokens=tokens
    )
    inputs = {"attention_mask": mask, **_inputs(ids, sources)}
    result = cast(Any, model).generate(
        **inputs, output_logits=True, return_dict_in_generate=True, use_cache=True
    )
    seen = []
    for row, (text, source) in enumerate(_pairs(texts, sources)):
        new = result.sequences[row, ids.shape[1] :].tolist()
        logits = torch.stack([one[row] for one in result.logits])
        seen += list(_along((*text, *new[: len(logits) - 1]), logits, source))
    return seen


def padded(texts: Sequence[Text], *, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and mask ``[B, N]`` of texts side by side."""
    width = max(len(text) for text in texts)
    ids, mask = torch.zeros(len(texts), width, dtype=torch.long), torch.zeros(len(texts), width).long()
    for row, text in enumerate(texts):
        place = slice(width - len(text), width) if left else slice(len(text))
        ids[row, place], mask[row, place] = torch.tensor(text), 1
    return ids, mask


def step_cases(vocabulary: int, prefix: Text = ()) -> dict[str, Case]:
    """The step graph's calls of each scenario, after `prefix` in one call."""
    rng = np.random.default_rng(1)

    def chain(nodes: int, accepted: int | None = None) -> Turn:
        return Turn(
            tokens=rng.integers(FIRST_TOKEN, vocabulary, size=(1, nodes)),
            ancestors=np.tril(np.ones((1, nodes, nodes), bool)),
            accepted=[list(range(nodes if accepted is None else accepted))],
        )

    def trees(nodes: int, batch: int, refuse: int | None = None) -> Turn:
        made = [random_tree(rng, nodes) for _ in range(batch)]
        paths = [paths[int(rng.integers(nodes))] for _, paths in made]
        if refuse is not None:
            paths[refuse] = []
        return Turn(
            tokens=rng.integers(FIRST_TOKEN, vocabulary, size=(batch, nodes)),
            ancestors=np.stack([tree for tree, _ in made]),
            accepted=paths,
        )

    turns = {
        "prefill": [chain(LENGTHS[0])],
        "chunked prefill": [chain(size) for size in CHUNKS],
        "decode": [chain(3), *(chain(1) for _ in range(6))],
        "chain": [chain(3), chain(4, 2), chain(4, 0), chain(4, 1), chain(4, 3), chain(1)],
        "tree": [chain(WINDOW - 1), trees(6, 1), trees(5, 1), chain(1)],
        "batch": [trees(5, 2), trees(5, 2, refuse=0), trees(4, 2, refuse=1), trees(1, 2)],
    }
    return {
        name: Case(name=name, turns=[*_before(prefix, len(one[0].tokens)), *one], all_rows=True)
        for name, one in turns.items()
    }


def _before(prefix: Text, batch: int) -> list[Turn]:
    nodes = len(prefix)
    chain = np.tril(np.ones((batch, nodes, nodes), bool))
    turn = Turn(tokens=np.array([prefix] * batch), ancestors=chain, accepted=[list(range(nodes))] * batch)
    return [turn] if prefix else []


def stepped(backend: Backend, case: Case, empty: Sequence[Array], sources: Sequence[Text] = ()) -> list[Seen]:
    """What a step graph gives for the nodes of every call, from a state in which `sources` were read."""
    seen = []
    texts: list[Text] = [()] * len(case.turns[0].tokens)
    for turn, outputs in zip(case.turns, run(backend, case, empty), strict=True):
        for row, text in enumerate(texts):
            tokens, tree = turn.tokens[row], turn.ancestors[row]
            for node in range(len(tokens)):
                path = sorted(np.flatnonzero(tree[node]), key=lambda one: int(tree[one].sum()))
                drafted = tuple(int(tokens[one]) for one in path)
                source = sources[row] if sources else ()
                seen.append(Seen(text=text + drafted, logits=outputs[0][row, node], source=source))
        texts = [
            text + tuple(int(turn.tokens[row, node]) for node in turn.accepted[row])
            for row, text in enumerate(texts)
        ]
    return seen
