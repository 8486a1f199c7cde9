"""The step model: an unmodified transformers model with its state as arguments."""

import pytest
import torch

from lineahead.convert.replace import linearize
from lineahead.errors import ArchitectureError
from lineahead.plugins import step_graph
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
from lineahead.plugins.augmented_attention.huggingface.step_model import StepModel
from lineahead.plugins.augmented_attention.methods import preset


@pytest.fixture
def converted(softmax_model):
    def build(family="llama", name="softmax-hedgehog", **changes):
        model = softmax_model(family)
        layers = linearize(model, preset(name, window=8, conv_taps=5, **changes))
        torch.manual_seed(1)
        for parameter_name, parameter in model.named_parameters():
            if ".lineahead." in parameter_name:
                parameter.data += 0.2 * torch.randn_like(parameter)
        return model.eval(), layers

    return build


class Decoder:
    """Feeds a step model, accepting what it is told."""

    def __init__(self, model, batch=1):
        self.model, self.past = model, model.empty(batch)
        self.length = torch.zeros(batch, dtype=torch.int64)
        self.accept([[]] * batch)

    def accept(self, paths):
        width = max(map(len, paths))
        self.index = (
            torch.tensor([path + [0] * (width - len(path)) for path in paths])
            .reshape(len(paths), width)
            .long()
        )
        self.count = torch.tensor([len(path) for path in paths])

    @torch.no_grad()
    def step(self, tokens, tree=None):
        batch, nodes = tokens.shape
        tree = torch.ones(nodes, nodes).tril().bool() if tree is None else tree
        rows = torch.arange(nodes).repeat(batch, 1)
        logits, hidden, self.length, *self.past = self.model(
            tokens, tree.repeat(batch, 1, 1), rows, self.index, self.count, self.length, *self.past
        )
        self.accept([list(range(nodes))] * batch)
        return logits, hidden


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "opt", "gpt_neox"])
@pytest.mark.parametrize("name", ["augmented", "softmax-hedgehog"])
def test_chunks_equal_the_whole_text(converted, family, name):
    model, layers = converted(family, name)
    tokens = torch.randint(2, 97, (2, 37), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = model(tokens, use_cache=False).logits
    decoder = Decoder(StepModel(model, layers), batch=2)
    got = torch.cat([decoder.step(part)[0] for part in tokens.split([20, 1, 7, 1, 8], 1)], 1)
    torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=2e-5)


def test_tree_nodes_equal_their_paths(converted):
    model, layers = converted()
    step_model = StepModel(model, layers)
    prefix, nodes = torch.randint(2, 97, (1, 14)), torch.randint(2, 97, (1, 5))
    tree = torch.tensor(
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 1, 0, 1]]
    ).bool()
    decoder = Decoder(step_model)
    decoder.step(prefix)
    logits, _ = decoder.step(nodes, tree)
    for node in range(5):
        path = tree[node].nonzero()[:, 0]
        plain, _ = Decoder(step_model).step(torch.cat([prefix, nodes[:, path]], 1))
        torch.testing.assert_close(logits[:, node], plain[:, -1], rtol=1e-4, atol=2e-5)


def test_only_wanted_rows_reach_the_head(converted):
    model, layers = converted()
    step_model = StepModel(model, layers)
    tokens = torch.randint(2, 97, (2, 6))
    every, _ = Decoder(step_model, batch=2).step(tokens)
    call = Decoder(step_model, batch=2)
    tree = torch.ones(6, 6).tril().bool().repeat(2, 1, 1)
    rows = torch.tensor([[5], [2]])
    with torch.no_grad():
        logits, hidden, *_ = step_model(tokens, tree, rows, call.index, call.count, call.length, *call.past)
    assert logits.shape[:2] == hidden.shape[:2] == (2, 1)
    torch.testing.assert_close(logits[:, 0], torch.stack([every[0, 5], every[1, 2]]))


@pytest.mark.parametrize("name", ["augmented", "softmax-hedgehog"])
def test_state_is_the_contract_and_inputs_are_not_written(converted, name):
    model, layers = converted(name=name)
    step_model = StepModel(model, layers)
    settings = [layer.settings for layer in step_model.layers]
    past = step_model.empty(2)
    assert len(past) == len(step_graph.input_names(settings)) - len(step_graph.CALL_INPUTS) - 1
    decoder = Decoder(step_model, batch=2)
    decoder.step(torch.randint(2, 97, (2, 11)))
    before, carried = [x.clone() for x in decoder.past], decoder.past
    decoder.step(torch.randint(2, 97, (2, 3)))
    assert len(carried) == len(past)
    assert all(torch.equal(a, b) for a, b in zip(before, carried, strict=True))


def test_gaps_between_layers_are_refused(converted):
    model, layers = converted()
    with pytest.raises(ArchitectureError, match="leave gaps"):
        StepModel(model, layers[1:])


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3", "gpt2", "opt", "gpt_neox"])
def test_layers_that_stay_softmax(linear_model, family):
    model = linear_model(preset("softmax-hedgehog", window=8, conv_taps=5), family, layers=[1])
    tokens = torch.randint(2, 97, (2, 57), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = model(tokens, use_cache=False).logits
    decoder = Decoder(StepModel(model, layers_of(model.config)), batch=2)
    got = torch.cat([decoder.step(part)[0] for part in tokens.split([20, 1, 7, 1, 18, 10], 1)], 1)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_trees_over_softmax_layers_equal_their_paths(linear_model, family):
    model = linear_model(preset("softmax-hedgehog", window=8), family, layers=[1])
    step_model = StepModel(model, layers_of(model.config))
    prefix, nodes = torch.randint(2, 97, (1, 30)), torch.randint(2, 97, (1, 4))
    tree = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]).bool()
    decoder = Decoder(step_model)
    decoder.step(prefix)
    logits, _ = decoder.step(nodes, tree)
    for node in range(4):
        path = tree[node].nonzero()[:, 0]
        plain, _ = Decoder(step_model).step(torch.cat([prefix, nodes[:, path]], 1))
        torch.testing.assert_close(logits[:, node], plain[:, -1], rtol=1e-4, atol=2e-5)
    decoder.accept([[0, 2, 3]])
    after, _ = decoder.step(prefix[:, :1])
    plain, _ = Decoder(step_model).step(torch.cat([prefix, nodes[:, [0, 2, 3]], prefix[:, :1]], 1))
    torch.testing.assert_close(after[:, -1], plain[:, -1], rtol=1e-4, atol=2e-5)


def test_attention_outside_a_step_is_refused(converted):
    model, layers = converted()
    StepModel(model, layers)
    with pytest.raises(ArchitectureError, match="not one of its layers"):
        model(torch.ones(1, 3, dtype=torch.int64), use_cache=False)
