"""A second model as the draft: its chains are those it would write alone, whatever was rejected before."""

import pytest

from lineahead.errors import InputError
from lineahead.runtime.drafters.model import ModelDrafter
from lineahead.runtime.sampling import SamplingParams

PROMPTS = ([3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5, 8], [2])


class Watched(ModelDrafter):
    """Compares every chain with one that is written from the whole text, without any state."""

    def __init__(self, session, **options):
        self.session, self.chains = session, []
        super().__init__(session, **options)

    def propose(self, rows):
        trees = super().propose(rows)
        for row, tree in zip(rows, trees, strict=True):
            text = list(row.tokens)
            for token in tree.tokens[1:]:
                assert token == self.session.logits(text).argmax()
                text.append(token)
            assert len(tree) - 1 <= min(row.nodes, row.depth, self.max_nodes)
            self.chains.append(tree.tokens[1:])
        texts = {row.request: [*row.tokens, *tree.tokens[1:]] for row, tree in zip(rows, trees, strict=True)}
        for request, held in zip(self._followed, self.session.texts, strict=True):
            assert request not in texts or held == texts[request][: len(held)]
        return trees


def rows_of(toy, **options):
    lengths = (40, 23, 31)
    return [
        toy.row(i, prompt, SamplingParams(max_tokens=length, **options))
        for i, (prompt, length) in enumerate(zip(PROMPTS, lengths, strict=True))
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("noise", [1.0, 1.4, 4.0], ids=["the same model", "a near one", "another"])
def test_the_text_is_that_of_plain_decoding(toy, noise, temperature):
    wanted, _ = toy.decode(toy.Session(), rows_of(toy, temperature=temperature))
    draft = toy.Session(noise=noise)
    draft.chunk = 4
    drafter = Watched(draft, max_nodes=5, least=0.02)
    found, run = toy.decode(toy.Session(), rows_of(toy, temperature=temperature), drafter)
    assert found == wanted
    statistics = run.decoder.statistics
    assert statistics.proposed > 20
    assert 0 < statistics.accepted <= statistics.proposed
    if noise == 1.0 and not temperature:
        assert statistics.accepted == statistics.proposed
    assert not draft.texts  # all forgotten


def test_a_chain_ends_where_it_is_unlikely(toy):
    sure = Watched(toy.Session(), max_nodes=5, least=0.5)
    toy.decode(toy.Session(), rows_of(toy), sure)
    brave = Watched(toy.Session(), max_nodes=5, least=0.0)
    toy.decode(toy.Session(), rows_of(toy), brave)
    assert max(map(len, sure.chains)) > 0
    assert sum(map(len, sure.chains)) / len(sure.chains) < sum(map(len, brave.chains)) / len(brave.chains)


def test_a_text_is_read_once(toy):
    draft = toy.Session()
    draft.chunk = 4
    toy.decode(toy.Session(), rows_of(toy)[1:2], ModelDrafter(draft, max_nodes=1, least=0.0))
    read = [call.input_ids.shape[1] for call in draft.calls]
    assert read[:3] == [4, 4, 2]  # the prompt of nine and its first answer
    assert max(read[3:]) <= 2  # what was accepted is committed, not read again


def test_a_chain_is_read_token_by_token(toy):
    draft = toy.Session()
    toy.decode(toy.Session(), rows_of(toy)[1:2], ModelDrafter(draft, max_nodes=5, least=0.0))
    assert max(call.input_ids.shape[1] for call in draft.calls[1:]) == 2  # the last guess and the next token


def test_wrong_guesses_are_taken_out_of_the_state(toy):
    draft = toy.Session(noise=2.5)
    placed, place = [], draft.place
    draft.place = lambda row, saved: (placed.append(saved.length), place(row, saved))
    drafter = Watched(draft, max_nodes=5, least=0.0)
    wanted, _ = toy.decode(toy.Session(), rows_of(toy))
    found, _ = toy.decode(toy.Session(), rows_of(toy), drafter)
    assert found == wanted
    assert len(placed) > 5


def test_numbers_that_make_no_sense(toy):
    with pytest.raises(InputError, match="max_nodes=0"):
        ModelDrafter(toy.Session(), max_nodes=0)
