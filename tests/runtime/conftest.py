"""A toy language model behind the session protocol, and a tiny real artifact.

Every logit of the toy depends on the whole accepted text, so that any mistake in commit, ancestors or
positions changes what is decoded.
"""

import copy
import json
import shutil
import warnings
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from lineahead.errors import ArtifactError
from lineahead.runtime.row import Row
from lineahead.runtime.sampling import SamplingParams, stream
from lineahead.runtime.session import RowState, Session, SessionInfo, StepInput, StepOutput, check
from lineahead.runtime.speculate import Decoder


class ToySession(Session):
    """Keeps the committed tokens of each row; the next token mostly repeats a table of bigrams."""

    def __init__(self, vocab=13, seed=0, noise=1.0):
        self.info = SessionInfo(backend="toy")
        self.identity = lambda: "toy"
        self.vocab, self.noise = vocab, noise
        self.table = np.random.default_rng(seed).normal(size=(vocab, vocab)) * 3
        self.calls = []
        self.reset(0)

    @property
    def length(self):
        return np.array([len(text) for text in self.texts], np.int64)

    def reset(self, batch):
        self.texts = [[] for _ in range(batch)]
        self.pending = [[] for _ in range(batch)]

    def logits(self, text):
        random = np.random.default_rng(zlib.crc32(np.array(text, np.int64).tobytes()))
        return (self.table[text[-1]] + self.noise * random.normal(size=self.vocab)).astype(np.float32)

    def step(self, inputs: StepInput) -> StepOutput:
        batch, nodes = inputs.input_ids.shape
        check(inputs, len(self.texts), len(self.pending[0]) if self.pending else 0)
        self.calls.append(inputs)
        results = inputs.output_index.shape[1]
        logits = np.full((batch, results, self.vocab), np.nan, np.float32)
        hidden = np.zeros((batch, results, 2), np.float32)
        for b in range(batch):
            accepted = inputs.accept_index[b, : inputs.accept_count[b]]
            self.texts[b] = self.texts[b] + [self.pending[b][i] for i in accepted]
            mask = inputs.ancestors[b]
            assert mask.diagonal().all()
            for i in range(nodes):
                assert (mask[np.flatnonzero(mask[i])] <= mask[i]).all(), "not closed under ancestors"
                assert not mask[i, i + 1 :].any()
            for r, i in enumerate(inputs.output_index[b]):
                path = [int(token) for token in inputs.input_ids[b, np.flatnonzero(mask[i])]]
                text = self.texts[b] + path
                logits[b, r] = self.logits(text)
                hidden[b, r] = len(text), text[-1]
            self.pending[b] = inputs.input_ids[b].tolist()
        return StepOutput(logits=logits, hidden=hidden)

    def fork(self, rows):
        width = len(self.pending[0]) if self.pending else 0
        self.texts = [list(self.texts[row]) if row >= 0 else [] for row in rows]
        self.pending = [list(self.pending[row]) if row >= 0 else [0] * width for row in rows]

    def sibling(self):
        twin = copy.copy(self)
        twin.reset(0)
        return twin

    def take(self, row):
        state, pending = {"text": np.array(self.texts[row], np.int64)}, np.array(self.pending[row], np.int64)
        return RowState(
            length=len(self.texts[row]), state=state, pending={"ids": pending}, nodes=len(pending)
        )

    def place(self, row, saved):
        width = max(len(self.pending[0]), saved.nodes)
        self.texts[row] = saved.state["text"].tolist()
        self.pending[row] = saved.pending["ids"].tolist() if saved.nodes else []
        self.pending = [one + [0] * (width - len(one)) for one in self.pending]

    def read_state(self):
        width = max(map(len, self.texts), default=0)
        tokens = np.full((len(self.texts), width), -1, np.int64)
        for row, text in enumerate(self.texts):
            tokens[row, : len(text)] = text
        return {"past.length": self.length, "past.0.state": tokens}

    def write_state(self, tensors):
        if set(tensors) != {"past.length", "past.0.state"}:
            raise ArtifactError("not a toy state")
        lengths = tensors["past.length"]
        self.reset(len(lengths))
        self.texts = [row[:n].tolist() for row, n in zip(tensors["past.0.state"], lengths, strict=True)]


def make_row(request, tokens, params=None, **options):
    params = params or SamplingParams(max_tokens=40)
    return Row(
        request=request,
        tokens=list(tokens),
        prompt=len(tokens),
        params=params,
        random=stream(params, request),
        **options,
    )


def decode(session, rows, drafter=None, **options):
    """Run to the end: token lists (prompt included), by request, and the decoder."""
    decoder = Decoder(session, drafter, **options)
    rows = list(rows)
    decoder.admit(rows)
    events = list(decoder.run())
    return {row.request: row.tokens for row in rows}, SimpleNamespace(
        decoder=decoder, events=events, rows=rows
    )


@pytest.fixture
def toy():
    """The toy model's class and the functions that drive it."""
    return SimpleNamespace(Session=ToySession, row=make_row, decode=decode)


def byte_tokenizer(folder):
    """Write a tokenizer whose tokens are bytes, and two special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{one: 2 + i for i, one in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(one, special=True) for one in ("<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture
def tokenizer_folder(tmp_path):
    """A folder with a byte tokenizer."""
    byte_tokenizer(tmp_path)
    return tmp_path


def export(folder, model, **linear):
    """Convert `model`, give its operators weights that matter, save it and its step graph."""
    import torch

    from lineahead.convert.checkpoint import save_artifact
    from lineahead.convert.onnx import graph
    from lineahead.convert.replace import linearize
    from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
    from lineahead.plugins.augmented_attention.huggingface.step_model import StepModel
    from lineahead.plugins.augmented_attention.methods import preset

    linearize(model, preset("softmax-hedgehog", window=16), **linear)
    for name, parameter in model.named_parameters():
        if name.endswith(".conv"):
            parameter.data += 0.1 * torch.randn_like(parameter)
    save_artifact(model, None, folder)
    byte_tokenizer(folder)
    (folder / "onnx").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.onnx warns about its own internals
        traced = graph.trace(StepModel(model, layers_of(model.config)))
    graph.save(traced, folder / "onnx" / "verifier.onnx")


SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "eos_token_id": 1,
}


@pytest.fixture(scope="session")
def artifact(tmp_path_factory, made_once):
    """A random two-layer linear Llama of 300 tokens' vocabulary, exported."""
    made = made_once("artifact", _linear_llama)
    return shutil.copytree(made, tmp_path_factory.mktemp("artifact") / "tiny")


def _linear_llama(folder):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=160)).eval()
    export(folder, model)


@pytest.fixture(scope="session")
def hybrid_artifact(tmp_path_factory, made_once):
    """A random Gemma 3 whose first layer keeps its window, its second the whole text; the third is linear."""
    made = made_once("hybrid-artifact", _hybrid_gemma)
    return shutil.copytree(made, tmp_path_factory.mktemp("hybrid") / "tiny")


def _hybrid_gemma(folder):
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    config = Gemma3TextConfig(
        **SIZES,
        num_hidden_layers=3,
        head_dim=8,
        sliding_window=12,
        layer_types=kinds,
        max_position_embeddings=1024,
    )
    model = Gemma3ForCausalLM(config).eval()
    export(folder, model, layers=[2])
