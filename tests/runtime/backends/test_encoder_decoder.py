"""A T5 trained here to copy, decoded speculatively: token for token like plain decoding, in fewer steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from lineahead.convert.replace import linearize
from lineahead.errors import ArchitectureError, InputError
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
from lineahead.plugins.augmented_attention.huggingface.seq2seq_step import Seq2SeqStepModel
from lineahead.plugins.augmented_attention.huggingface.step_model import StepModel
from lineahead.plugins.augmented_attention.methods import preset
from lineahead.runtime.backends.eager import EagerSession, carried_names
from lineahead.runtime.drafters import LookupDrafter, NoDrafter
from lineahead.runtime.drafters.recorded import RecordedDrafter
from lineahead.runtime.row import Row
from lineahead.runtime.sampling import SamplingParams, stream
from lineahead.runtime.session import SessionInfo
from lineahead.runtime.speculate import Decoder

VOCABULARY, START, TOKENS = 24, 0, 260
SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": START}


def examples(count, length, seed):
    """Sources made of a repeated phrase, and the phrase going on for ever as the target."""
    generator = torch.Generator().manual_seed(seed)
    phrase = torch.stack([3 + torch.randperm(VOCABULARY - 3, generator=generator)[:12] for _ in range(count)])
    return phrase, phrase.repeat(1, -(-length // 12))[:, :length]


@pytest.fixture(scope="module")
def trained():
    """A linear T5 of two layers that knows how to go on with a phrase."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(**SPECIAL, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0)
    )
    linearize(model, replace(preset("augmented"), window=16, conv_taps=4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(120):
        source, target = examples(8, 40, step)
        loss = model(input_ids=source, labels=target.contiguous()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    return model.eval()


@pytest.fixture(scope="module")
def session(trained, plain):
    """The trained model behind the eager backend; `plain` was generated before it was taken over."""
    return session_of(trained)


def session_of(model):
    steps = Seq2SeqStepModel(model, layers_of(model.config))
    info = SessionInfo(backend="eager")
    return EagerSession(steps, identity=lambda: "tiny", info=info, names=carried_names(steps))


def decode(session, sources, drafter=None, tokens=TOKENS, **options):
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, **options)
    rows = [
        Row(request=i, tokens=[START], prompt=1, params=params, random=stream(params, i), source=source)
        for i, source in enumerate(sources)
    ]
    decoder = Decoder(session, drafter)
    decoder.admit(rows)
    list(decoder.run())
    return [row.tokens for row in rows], decoder.statistics


@pytest.fixture(scope="module")
def sources():
    return [row.tolist()[:length] for row, length in zip(examples(3, 12, 999)[0], (12, 7, 10), strict=True)]


@pytest.fixture(scope="module")
def plain(trained, sources):
    """What transformers' own generate() writes for each source."""
    wanted = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    return [trained.generate(torch.tensor([source]), **wanted)[0].tolist() for source in sources]


def test_speculative_text_is_plain_text(session, sources, plain):
    """More than 200 tokens over 16 groups; chains, trees, lookup in the source, and a ragged batch."""
    for source, want in zip(sources, plain, strict=True):
        (text,), _ = decode(session, [source], NoDrafter())
        assert text == want
        assert len(text) == TOKENS + 1
    texts = dict(enumerate(plain))
    together, _ = decode(session, sources)
    assert together == plain
    lookup, statistics = decode(session, sources, LookupDrafter(shortest=2))
    assert lookup == plain
    print(f"lookup: {statistics.tokens_per_step:.2f} tokens per step")
    assert statistics.tokens_per_step > 2
    for shape in ({"depth": 7, "hit_rate": 0.8}, {"depth": 4, "branches": 3, "hit_rate": 0.8}):
        drafter = RecordedDrafter(texts, vocab_size=VOCABULARY, seed=1, **shape)
        found, statistics = decode(session, sources, drafter)
        assert found == plain
        assert statistics.tokens_per_step > 1.5


def test_trees_and_rollback_leave_no_trace(session, sources, plain):
    """The state after drafts were accepted and rejected is the state after reading the text itself."""
    params = SamplingParams(max_tokens=70, ignore_eos=True)

    def state(tokens, until, drafter=None):
        row = Row(
            request=0, tokens=list(tokens), prompt=len(tokens), params=params, random=stream(params, 0),
            source=sources[0],
        )  # fmt: skip
        decoder = Decoder(session, drafter)
        decoder.admit([row])
        while row.fed < until:
            decoder.step()
        session.flush(np.array([list(row.accept)]), np.array([len(row.accept)]))
        return row.fed, session.read_state()

    drafter = RecordedDrafter({0: plain[0]}, vocab_size=VOCABULARY, seed=5, depth=5, branches=2, hit_rate=0.7)
    fed, drafted = state([START], 50, drafter)
    read, want = state(plain[0][:fed], fed)
    assert fed == read
    assert "past.1.source_state" in want
    for name, tensor in want.items():
        assert np.abs(drafted[name] - tensor).max() <= 1e-4, name


def test_rows_come_and_go_with_their_sources(session, sources, plain):
    params = SamplingParams(max_tokens=40, ignore_eos=True)

    def row(i):
        return Row(
            request=i, tokens=[START], prompt=1, params=params, random=stream(params, i), source=sources[i]
        )

    decoder, rows = Decoder(session, LookupDrafter()), [row(i) for i in range(3)]
    decoder.admit(rows[:1])
    for _ in range(3):
        decoder.step()
    decoder.admit(rows[1:])
    list(decoder.run())
    assert [one.tokens for one in rows] == [want[:41] for want in plain]


def test_bart_knows_its_positions(sources):
    torch.manual_seed(1)
    model = BartForConditionalGeneration(
        BartConfig(
            **SPECIAL, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, bos_token_id=2, init_std=0.3,
            max_position_embeddings=128, forced_eos_token_id=None,
        )
    ).eval()  # fmt: skip
    linearize(model, replace(preset("augmented"), window=8, conv_taps=4))
    wanted = {"max_new_tokens": 60, "min_new_tokens": 60, "do_sample": False}
    want = [model.generate(torch.tensor([source]), **wanted)[0].tolist() for source in sources]
    drafter = RecordedDrafter(dict(enumerate(want)), vocab_size=VOCABULARY, seed=2, depth=4, branches=2)
    session = session_of(model)
    assert decode(session, sources, tokens=60)[0] == want
    assert decode(session, sources, drafter, tokens=60)[0] == want


def test_what_cannot_be_done_is_said(trained, toy):
    with pytest.raises(ArchitectureError, match="cannot be exported yet"):
        StepModel(trained, layers_of(trained.config))
    with pytest.raises(InputError, match="no encoder"):
        toy.decode(toy.Session(), [toy.row(0, [3], source=[1, 2])])
