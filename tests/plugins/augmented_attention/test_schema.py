"""Settings, ports and shapes: the one truth that every form and every file format is derived from."""

import dataclasses
import inspect
import json
import subprocess
import sys

import operator_cases as cases
import pytest

from lineahead.errors import SettingsError
from lineahead.plugins.augmented_attention import parallel, reference, schema, step
from lineahead.plugins.augmented_attention.methods import preset
from lineahead.plugins.augmented_attention.schema import AttentionSettings, LayerShape


def names(function):
    return [
        p.name for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD
    ]


def test_every_form_takes_the_ports_by_name_and_in_order():
    assert tuple(names(step.step)) == schema.INPUTS
    assert tuple(names(parallel.parallel)) == (*schema.DATA, *schema.PARAMETERS)
    assert tuple(names(reference.augmented_attention_ref)) == (*schema.DATA, *schema.PARAMETERS)


def test_the_presets_are_what_the_papers_say():
    assert preset("augmented").as_dict() == {
        "local": "relu2", "pattern": "grouped", "window": 64, "feature_map": "identity", "feature_dim": 0,
        "normalizer": "none", "normalizes": "all", "qk_norm": True, "local_norm": False, "conv_taps": 32,
        "eps": 1e-6, "sinks": 0, "causal": True,
    }  # fmt: skip
    assert preset("softmax-hedgehog").as_dict() == {
        "local": "softmax", "pattern": "sliding", "window": 64, "feature_map": "hedgehog", "feature_dim": 0,
        "normalizer": "denominator", "normalizes": "all", "qk_norm": False, "local_norm": False,
        "conv_taps": 32, "eps": 1e-6, "sinks": 4, "causal": True,
    }  # fmt: skip
    assert preset("augmented", window=16).window == 16


@pytest.mark.parametrize("name", cases.VARIANTS)
def test_settings_survive_json(name):
    settings = AttentionSettings(**cases.VARIANTS[name])
    assert AttentionSettings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"local": "none", "pattern": "sliding"}, "pattern"),
        ({"pattern": "none"}, "local"),
        ({"window": 0}, "window=0"),
        ({"conv_taps": -1}, "conv_taps=-1"),
        ({"feature_dim": -1}, "feature_dim=-1"),
        ({"sinks": -1}, "sinks=-1"),
        ({"local": "none", "pattern": "none", "sinks": 1}, "sinks"),
        ({"local": "none", "pattern": "none", "feature_map": "none"}, "feature map"),
        ({"local": "softmax"}, "denominator"),
        ({"local": "softmax", "normalizer": "l2"}, "denominator"),
        ({"local": "softmax", "normalizer": "denominator", "normalizes": "global"}, "denominator"),
        ({"normalizes": "global"}, "normalizes"),
        ({"normalizer": "l2", "normalizes": "local", "feature_map": "none"}, "normalizes"),
        ({"local_norm": True}, "local_norm"),
        ({"local": "none", "local_norm": True}, "local_norm"),
        ({"local": "yoso", "qk_norm": False}, "cosines"),
        ({"feature_map": "linformer"}, "linformer"),
        ({"feature_map": "no-such"}, "no-such"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, named):
    with pytest.raises(SettingsError, match=named) as caught:
        AttentionSettings(**changes)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_unknown_names_are_refused():
    with pytest.raises(SettingsError, match="'wndow'"):
        AttentionSettings.from_dict({"wndow": 64})
    with pytest.raises(SettingsError, match="'nothing'"):
        preset("nothing")


@pytest.mark.parametrize(
    "values", [{"local": "cosine"}, {"pattern": "ring"}, {"normalizer": "rms2"}, {"normalizes": "v"}]
)
def test_a_value_outside_its_list_is_refused(values):
    """Settings come from JSON files: a misspelt value must not pass for another one."""
    with pytest.raises(SettingsError, match=next(iter(values))):
        AttentionSettings(**values)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        AttentionSettings().window = 3


@pytest.mark.parametrize("name", cases.VARIANTS)
def test_state_shapes(name):
    settings = AttentionSettings(**cases.VARIANTS[name])
    shapes = schema.state_shapes(settings, LayerShape(heads=8, kv_heads=2, head_dim=6, value_dim=5), 12, 3)
    assert tuple(shapes) == settings.state_ports
    reach = max(0 if settings.pattern == "none" else settings.window, settings.conv_taps - 1, 1)
    assert shapes["window_key"] == (3, 2, reach + settings.sinks, 6)
    assert shapes["window_value"] == (3, 2, reach + settings.sinks, 5)
    assert shapes.get("state") == ((3, 2, 12, 5) if settings.feature_map != "none" else None)
    divided = settings.normalizer == "denominator" and settings.normalizes != "local"
    has_norm = settings.feature_map != "none" and divided
    assert shapes.get("norm") == ((3, 2, 12) if has_norm else None)


@pytest.mark.parametrize("pattern", ["grouped", "sliding", "none"])
def test_what_has_folded_is_what_no_later_query_is_local_to(pattern):
    """The largest prefix outside the group or window of the next query and of all after it."""
    local = "none" if pattern == "none" else "relu2"
    settings = AttentionSettings(local=local, pattern=pattern, window=5)
    for length in range(40):

        def local_to_later(key, length=length):
            later = range(length, length + 12)
            if pattern == "grouped":
                return any(query // 5 == key // 5 for query in later)
            return pattern == "sliding" and any(query - 5 < key <= query for query in later)

        expected = next((j for j in range(length) if local_to_later(j)), length)
        assert schema.folded(settings, length) == expected, length


def test_schema_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "import lineahead.plugins.augmented_attention.schema, lineahead.plugins.step_graph"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
