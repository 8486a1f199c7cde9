"""Parity sees what it must see."""

import numpy as np
import onnx_ir as ir
import pytest

from lineahead.convert.onnx import parity
from lineahead.convert.onnx.graph import save
from lineahead.convert.onnx.rollout import cases, random_tree
from lineahead.errors import ParityError
from lineahead.plugins.augmented_attention.schema import DOMAIN


def test_graph_is_eager(tiny_artifact, traced):
    result = parity.compare(tiny_artifact, traced)
    assert result.largest < 1e-5
    assert result.rounding == result.kl == 0


def damaged(traced, tmp_path, change):
    model = ir.load(traced)
    change(model)
    path = tmp_path / "damaged.onnx"
    save(model, path)
    return path


def wrong_weight(model):
    value = model.graph.initializers["model.model.layers.1.mlp.down_proj.weight.T"]
    array = value.const_value.numpy().copy()
    array[3, 5] += 0.01
    value.const_value = ir.tensor(array, name=value.name)


def wrong_state(model):
    """The state output of layer 1 is that of layer 0."""
    first, second = (node for node in model.graph if node.domain == DOMAIN)
    position = model.graph.outputs.index(second.outputs[1])
    copy = ir.node("Identity", [first.outputs[1]])
    copy.outputs[0].name, second.outputs[1].name = "present.1.state", "unused"
    copy.outputs[0].dtype, copy.outputs[0].shape = first.outputs[1].dtype, first.outputs[1].shape
    model.graph.append(copy)
    model.graph.outputs[position] = copy.outputs[0]


def wrong_path(model):
    """Accepted rows are read in another order."""
    index = next(value for value in model.graph.inputs if value.name == "accept_index")
    users = [(use.node, use.idx) for use in index.uses()]
    zero = ir.Value(name="zero", const_value=ir.tensor(np.array(0, np.int64), name="zero"))
    model.graph.register_initializer(zero)
    product = ir.node("Mul", [index, zero])
    model.graph.insert_before(model.graph[0], product)
    for node, position in users:
        node.replace_input_with(position, product.outputs[0])


@pytest.mark.parametrize("change", [wrong_weight, wrong_state, wrong_path])
def test_damage_is_seen(tiny_artifact, traced, tmp_path, change):
    result = parity.compare(tiny_artifact, damaged(traced, tmp_path, change))
    assert result.largest > 1e-4


def test_a_process_that_dies_is_an_error(tmp_path, monkeypatch):
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho 'Illegal instruction' >&2\nkill -ILL $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(parity.sys, "executable", str(dying))
    with pytest.raises(ParityError, match="the parity check died: Illegal instruction"):
        parity.compare_in_subprocess(tmp_path, tmp_path / "missing.onnx")


def test_script_covers_boundaries_and_refusals():
    script = cases((8,), 97)
    turns = [turn for case in script for turn in case.turns]
    assert any(turn.accepted[row] == [] for turn in turns for row in range(len(turn.accepted)))
    assert any(not np.array_equal(turn.ancestors[0], np.tril(turn.ancestors[0] | True)) for turn in turns)
    assert {len(turn.tokens) for turn in turns} == {1, 2}


def test_random_tree_paths_are_ancestors():
    tree, paths = random_tree(np.random.default_rng(0), 12)
    for node, path in enumerate(paths):
        assert path[-1] == node
        assert tree[node].nonzero()[0].tolist() == path


def test_error_is_relative_only_above_one():
    assert parity.scaled_error(np.array([0.5]), np.array([0.6])) == pytest.approx(0.1)
    assert parity.scaled_error(np.array([100.0, 1]), np.array([100.0, 2])) == pytest.approx(0.01)
    assert parity.scaled_error(np.zeros(1), np.array([np.nan])) == float("inf")
    assert parity.scaled_error(np.zeros(1), np.zeros(2)) == float("inf")
