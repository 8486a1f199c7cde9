"""Exact speculative decoding in plain transformers: ``model.generate(..., custom_generate=REPO)``.

The whole of ``custom_generate/generate.py`` in artifacts. It drafts a few tokens, lets the model judge them
in one call, and keeps what plain decoding would have said; the rest is rolled back, which for a linear model
means forgetting rows that were never folded into its state. In float32 the text is that of plain decoding,
greedy or sampled from the same seed.

Needs torch, and transformers with what it depends on. Reads the draft heads in the model's own repository.
"""

import inspect
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, GenerationConfig
from transformers.generation.utils import GenerateDecoderOnlyOutput, GenerationMixin
from transformers.utils.hub import cached_file

DRAFTERS = ("auto", "lookup", "medusa")
NGRAMS = (3, 2, 1)
UNSUPPORTED = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
Propose = Callable[[Tensor, Tensor, int], "Tensor | None"]


def generate(model: Any, drafter: str = "auto", draft_tokens: int = 4, **kwargs: Any) -> Any:
    """As ``model.generate``, only sooner.

    Args:
        model: the model.
        drafter: ``lookup`` continues an earlier occurrence of the last tokens; ``medusa`` uses the draft
            heads in the repository; ``auto`` looks up and, where nothing is found, uses the heads.
        draft_tokens: most tokens that are drafted at a time.
        kwargs: as for ``model.generate``, without beams, assistants and scores.

    Returns:
        As ``model.generate``.

    Raises:
        ValueError: for what it cannot do, and for a cache that cannot forget.
    """
    if drafter not in DRAFTERS:
        raise ValueError(f"drafter={drafter!r}: use one of {', '.join(DRAFTERS)}")
    if draft_tokens < 1:
        raise ValueError(f"draft_tokens={draft_tokens}: use at least 1")
    if kwargs.get("assistant_model") is not None:
        raise ValueError(
            "assistant_model does not go with this repository's custom_generate: drop one of the two"
        )
    heads = None if drafter == "lookup" else _load_heads(model, required=drafter == "medusa")
    streamer = kwargs.get("streamer")

    def decode(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        _refuse(generation_config)
        loop = _Loop(model, generation_config, logits_processor, stopping_criteria, streamer, model_kwargs)
        propose = _proposer(heads, lookup=drafter != "medusa")
        return loop.run(input_ids, propose, draft_tokens)

    return GenerationMixin.generate(model, custom_generate=decode, **kwargs)


def _refuse(config: GenerationConfig) -> None:
    if (config.num_beams or 1) > 1:
        raise ValueError(f"num_beams={config.num_beams}: drafts need a single beam; drop custom_generate")
    named = next((name for name in UNSUPPORTED if getattr(config, name, False)), None)
    if named is not None and config.return_dict_in_generate:
        raise ValueError(f"{named}=True: not kept while drafting; drop it or custom_generate")
    if config.use_cache is False:
        raise ValueError("use_cache=False: drafts need the decoding state; drop it or custom_generate")


class _Loop:
    """One call of generate: the text so far and the model's cache."""

    def __init__(
        self, model: Any, config: Any, processors: Any, stopping: Any, streamer: Any, given: dict[str, Any]
    ) -> None:
        self.model, self.config, self.processors, self.stopping = model, config, processors, stopping
        self.streamer = streamer
        self.cache: Any = given.get("past_key_values", given.get("cache"))
        self.mask = given.get("attention_mask")
        accepted = inspect.signature(model.forward).parameters
        self.cache_name = "cache" if "cache" in accepted else "past_key_values"
        self.takes_positions = "position_ids" in accepted
        self.hidden: Tensor | None = None

    def run(self, ids: Tensor, propose: Propose, most: int) -> Any:
        if self.cache is None:  # transformers 5.0 leaves it to the first call
            self.cache = DynamicCache(config=self.model.config)
        if not hasattr(self.cache, "crop"):
            raise ValueError(f"the cache ({type(self.cache).__name__}) cannot forget rejected drafts")
        if self.mask is None:
            self.mask = torch.ones_like(ids)
        unfinished = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        done = int(self.cache.get_seq_length())
        hook = self.model.get_output_embeddings().register_forward_pre_hook(self._keep)
        try:
            logits, draft = self._forward(ids, done, prompt=True)[:, -1:], ids[:, :0]
            self._record()
            while True:
                ids, unfinished, kept = self._accept(ids, logits, draft, unfinished)
                rejected = draft.shape[1] + 1 - kept
                if rejected:
                    self.cache.crop(-rejected)
                    self.mask = self.mask[:, : self.mask.shape[1] - rejected]
                if not bool(unfinished.any()):
                    return self._result(ids)
                assert self.hidden is not None
                hidden = self.hidden[:, self.hidden.shape[1] - 1 - rejected]
                room = (self.stopping.max_length or ids.shape[1] + most + 1) - ids.shape[1] - 1
                found = propose(ids, hidden, min(most, room)) if room > 0 else None
                draft = ids[:, :0] if found is None else found
                logits = self._forward(torch.cat([ids, draft], 1), ids.shape[1] - 1)
        finally:
            hook.remove()
            if self.streamer is not None:
                self.streamer.end()

    def _record(self) -> None:
        """Layers of softmax attention with a window forget what leaves it, unless told."""
        for layer in self.cache.layers:
            if "SlidingWindow" in type(layer).__name__ and hasattr(layer, "activate_past_recording"):
                layer.activate_past_recording()

    def _keep(self, module: Any, inputs: tuple[Tensor, ...]) -> None:
        self.hidden = inputs[0].detach()

    def _forward(self, ids: Tensor, done: int, *, prompt: bool = False) -> Tensor:
        """Logits of ``ids[:, done:]``; of the last token only, for a prompt."""
        assert self.mask is not None
        more = ids.shape[1] - self.mask.shape[1]
        if more > 0:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), more)], 1)
        inputs = {"input_ids": ids[:, done:], "attention_mask": self.mask, self.cache_name: self.cache}
        if self.takes_positions:
            positions = (self.mask.long().cumsum(1) - 1).clamp(min=0)
            inputs["position_ids"] = positions[:, done:]
        if prompt and "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            inputs["logits_to_keep"] = 1
        result = self.model(**inputs, use_cache=True, return_dict=True)
        return result.logits  # type: ignore[no-any-return]

    def _accept(
        self, ids: Tensor, logits: Tensor, draft: Tensor, unfinished: Tensor
    ) -> tuple[Tensor, Tensor, int]:
        """Say token after token what plain decoding says, as long as the draft says the same.

        Returns:
            The text, which rows go on, and how many of the judged rows hold.
        """
        for place in range(draft.shape[1] + 1):
            scores = self.processors(ids, logits[:, place].to(copy=True, dtype=torch.float32))
            if self.config.do_sample:
                token = torch.multinomial(functional.softmax(scores, -1), num_samples=1)[:, 0]
            else:
                token = scores.argmax(-1)
            padding = getattr(self.config, "_pad_token_tensor", None)
            if padding is not None and not bool(unfinished.all()):
                token = torch.where(unfinished, token, padding.to(token.device))
            ids = torch.cat([ids, token[:, None]], 1)
            if self.streamer is not None:
                self.streamer.put(token.cpu())
            unfinished = unfinished & ~self.stopping(ids, None)
            last = place == draft.shape[1] or not bool(unfinished.any())
            if last or not bool(((token == draft[:, place]) | ~unfinished).all()):
                return ids, unfinished, place + 1
        raise AssertionError("unreachable")

    def _result(self, ids: Tensor) -> Any:
        if not self.config.return_dict_in_generate:
            return ids
        fields = inspect.signature(GenerateDecoderOnlyOutput).parameters
        name = "past_key_values" if "past_key_values" in fields else "cache"
        return GenerateDecoderOnlyOutput(**{"sequences": ids, name: self.cache})


def _proposer(heads: "_Heads | None", *, lookup: bool) -> Propose:
    """Drafts for all rows, ``[B, N]``, from the text and the last hidden state; None for no draft."""

    def propose(ids: Tensor, hidden: Tensor, most: int) -> Tensor | None:
        found = [_look_up(row, most) if lookup else None for row in ids]
        missing = any(one is None for one in found)
        drafts = heads.draft(hidden)[:, :most] if heads is not None and missing else None
        if drafts is None and all(one is None for one in found):
            return None
        rows = [
            one if one is not None else drafts[i] if drafts is not None else None
            for i, one in enumerate(found)
        ]
        width = max(len(row) for row in rows if row is not None)
        # A row without a draft repeats its last token: cheap, and rejected unless right.
        whole = ids[:, -1:].repeat(1, width)
        for i, row in enumerate(rows):
            if row is not None:
                whole[i, : len(row)] = row
        return whole

    return propose


def _look_up(row: Tensor, most: int) -> Tensor | None:
    """What followed the latest earlier occurrence of the row's last tokens.

    Source: Saxena, 2023, prompt lookup decoding; Yang et al., 2023, arXiv:2304.04487.
    """
    for size in NGRAMS:
        if len(row) <= size:
            continue
        windows = row[:-1].unfold(0, size, 1)
        places = (windows == row[-size:]).all(1).nonzero()
        if len(places):
            start = int(places[-1]) + size
            return row[start : start + most]
    return None


class _Heads:
    """Medusa heads: ``lm_head(h + SiLU(W_k h + b_k))`` over the tokens that they may propose.

    Source: Cai et al., 2024, arXiv:2401.10774, section 2.1.1.
    """

    def __init__(self, tensors: dict[str, Tensor], model: Any) -> None:
        projection = model.get_output_embeddings()
        device = projection.weight.device
        self.weight, self.bias = tensors["weight"].to(device).float(), tensors["bias"].to(device).float()
        self.token_ids = tensors["token_ids"].to(device)
        self.rows = projection.weight.detach()[self.token_ids].float()
        bias = getattr(projection, "bias", None)
        self.offsets = None if bias is None else bias.detach()[self.token_ids].float()

    def draft(self, hidden: Tensor) -> Tensor:
        """Every head's best token, ``[B, E] -> [B, K]``."""
        hidden = hidden.float()
        moved = torch.einsum("be,kfe->bkf", hidden, self.weight) + self.bias
        logits = (hidden[:, None] + functional.silu(moved)) @ self.rows.t()
        if self.offsets is not None:
            logits = logits + self.offsets
        return self.token_ids[logits.argmax(-1)]


def _load_heads(model: Any, *, required: bool) -> _Heads | None:
    """The heads in ``draft/`` of the repository or folder that the model came from."""
    from safetensors.torch import load_file

    where, revision = model.config._name_or_path, getattr(model.config, "_commit_hash", None)
    if not where:
        if required:
            raise ValueError("drafter='medusa': a model that was not loaded from anywhere has no draft heads")
        return None
    options: dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    config_file = cached_file(where, "draft/config.json", **options)
    weights = cached_file(where, "draft/model.safetensors", **options)
    if config_file is None or weights is None:
        if required:
            raise ValueError(f"drafter='medusa': no draft heads in {where}; use drafter='lookup'")
        return None
    with open(config_file, encoding="utf-8") as config:
        kind = json.load(config).get("model_type")
    if kind != "medusa":
        raise ValueError(f"{where}: draft heads of an unknown kind {kind!r}; use drafter='lookup'")
    return _Heads(load_file(weights), model)
