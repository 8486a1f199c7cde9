"""What the layers that stay softmax see."""

import pytest

from lineahead.errors import ArchitectureError
from lineahead.plugins.augmented_attention.huggingface import softmax_layers as module
from lineahead.plugins.augmented_attention.huggingface.softmax_layers import local_layers, softmax_layers
from lineahead.plugins.augmented_attention.schema import AttentionSettings
from lineahead.plugins.softmax_attention.schema import CacheSettings


@pytest.mark.parametrize(
    ("family", "views", "local"),
    [
        ("llama", [("whole", 0), ("whole", 0)], ()),
        ("gpt2", [("whole", 0), ("whole", 0)], ()),
        ("mistral", [("sliding", 16), ("sliding", 16)], ()),
        ("gemma3", [("sliding", 16), ("whole", 0)], (0,)),
        ("gemma2", [("sliding", 16), ("whole", 0)], (0,)),
    ],
)
def test_patterns(softmax_model, family, views, local):
    model = softmax_model(family)
    assert [(layer.pattern, layer.window) for layer in softmax_layers(model, ())] == views
    assert local_layers(model) == local
    assert [layer.index for layer in softmax_layers(model, {0})] == [1]


def test_a_window_is_constant_and_a_cap_needs_a_cache(softmax_model):
    first, second = (layer.settings for layer in softmax_layers(softmax_model("gemma3"), ()))
    assert isinstance(first, AttentionSettings)
    assert (first.window, first.state_ports) == (16, ("window_key", "window_value"))
    assert second == CacheSettings()
    assert [layer.settings for layer in softmax_layers(softmax_model("gemma2"), ())] == [
        CacheSettings(pattern="sliding", window=16),
        CacheSettings(),
    ]


def test_groups_and_strange_masks():
    def grouped(_, __, query, key):
        return (query // 4 == key // 4) & (key <= query)

    assert module._view(grouped, 4, "cpu") == module._View(pattern="grouped", window=4)
    assert module._view(lambda _, __, query, key: key <= query, 4, "cpu") is None


def test_a_mask_of_its_own_cannot_stay_softmax(softmax_model, monkeypatch):
    model, probe = softmax_model(), module.probe
    monkeypatch.setattr(module, "probe", lambda model, _: probe(model, lambda **_: None))
    with pytest.raises(ArchitectureError, match=r"layers\.0\.self_attn: its mask is its own"):
        softmax_layers(model, {1})
    assert local_layers(model) == ()
