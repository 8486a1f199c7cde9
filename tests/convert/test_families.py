"""Every family on a tiny random config: transformers, the step model and ONNX Runtime write the same text."""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from lineahead.convert.onnx import graph
from lineahead.convert.replace import linearize
from lineahead.convert.tiny_models import VOCABULARY, randomize, settings, tiny_model
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
from lineahead.plugins.augmented_attention.huggingface.step_model import StepModel
from lineahead.runtime.backends.eager import EagerSession, carried_names
from lineahead.runtime.backends.onnxruntime import OnnxRuntimeSession
from lineahead.runtime.drafters.recorded import RecordedDrafter
from lineahead.runtime.row import Row
from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.session import SessionInfo
from lineahead.runtime.speculate import Decoder

FAMILIES = ["llama", "qwen2", "qwen3", "gemma3_text", "mistral", "gpt2", "opt", "phi3", "gpt_neox"]
ADAPTED = ["gptj", "gpt_neo", "falcon"]
TOKENS = 24


def decode(session, ids, drafter=None):
    """Greedy text of every row, decoded together."""
    params = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
    rows = [
        Row(request=i, tokens=one.tolist(), prompt=len(one), params=params, random=np.random.default_rng(0))
        for i, one in enumerate(ids)
    ]
    decoder = Decoder(session, drafter)
    decoder.admit(rows)
    list(decoder.run())
    return [row.tokens for row in rows], decoder.statistics


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, *ADAPTED])
def test_one_text_in_every_form(family, tmp_path):
    model = tiny_model(family)
    layers = linearize(model, settings(), keep="local")
    assert len(layers) == (1 if family in ("gemma3_text", "gpt_neo") else 2)
    randomize(model)
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    model.generation_config = GenerationConfig(
        pad_token_id=0, do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS
    )
    wanted = model.generate(ids, attention_mask=torch.ones_like(ids)).tolist()
    step = StepModel(model, layers_of(model.config))
    graph.save(graph.trace(step), tmp_path / "verifier.onnx")
    sessions = [
        EagerSession(step, identity=str, info=SessionInfo(backend="eager"), names=carried_names(step)),
        OnnxRuntimeSession(tmp_path / "verifier.onnx", identity=str, threads=1, implementation="function"),
    ]
    for session in sessions:
        assert decode(session, ids)[0] == wanted
        drafter = RecordedDrafter(
            dict(enumerate(wanted)), vocab_size=VOCABULARY, seed=0, depth=4, hit_rate=0.8, branches=2
        )
        texts, statistics = decode(session, ids, drafter)
        assert texts == wanted
        assert statistics.as_dict()["tokens_per_step"] > 1.2
