"""What the native kernel does not know is refused by name, so that the function body runs instead."""

import onnx
import onnxruntime as ort
import pytest
from native_model import KNOWN, make_model, make_session, unknown
from operator_cases import VARIANTS
from operator_kernel_call import refuse

from lineahead.errors import BackendError
from lineahead.plugins.augmented_attention import native
from lineahead.plugins.augmented_attention.feature_maps import FEATURE_MAPS
from lineahead.plugins.augmented_attention.local_kernels import LOCAL_KERNELS
from lineahead.plugins.augmented_attention.normalizers import NORMALIZERS
from lineahead.plugins.augmented_attention.schema import AttentionSettings


@pytest.mark.parametrize("name", [name for name in VARIANTS if unknown(AttentionSettings(**VARIANTS[name]))])
def test_what_the_kernel_lacks_is_refused_by_name(name, library):
    """Whoever loads the graph runs its function body then; a kernel that ignores a setting would be wrong."""
    with pytest.raises(Exception, match="this library has no") as caught:
        make_session(library, AttentionSettings(**VARIANTS[name]))
    assert native.lacking(str(caught.value)) == unknown(AttentionSettings(**VARIANTS[name]))


PARTS = {
    "local": (*LOCAL_KERNELS, "toy"),
    "feature_map": (*FEATURE_MAPS, "toy"),
    "normalizer": (*NORMALIZERS, "toy"),
    "normalizes": ("global", "local"),
    "pattern": ("toy",),
    "local_norm": (1,),
    "causal": (0,),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name, values in PARTS.items()
        for value in values
        if isinstance(value, int) or value not in KNOWN.get(name, ())
    ],
)
def test_every_part_of_the_registries_is_known_or_refused(name, value, library):
    """One attribute of a graph that the kernel runs is changed to what it lacks."""
    model = onnx.load_from_string(make_model(AttentionSettings(**VARIANTS["grouped-relu2"]), 0.4))
    (attribute,) = [one for one in model.graph.node[0].attribute if one.name == name]
    attribute.CopyFrom(onnx.helper.make_attribute(name, value))
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library))
    with pytest.raises(Exception, match="this library has no") as caught:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert native.lacking(str(caught.value)).startswith(f"{name} '")


def test_the_kernel_reads_every_setting():
    """A setting that is added later, and not read there, would be ignored."""
    source = (native.SOURCES / native.MAIN).read_text(encoding="utf-8")
    ports = {"feature_dim"}  # the projection's shape says it
    assert not {name for name in AttentionSettings().as_dict() if f'"{name}"' not in source} - ports


@pytest.mark.parametrize("name", VARIANTS)
def test_the_cuda_kernels_take_every_variant(name):
    refuse(AttentionSettings(**VARIANTS[name]))


@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, "toy") for name in ("local", "feature_map", "normalizer", "normalizes")), ("causal", False)],
)
def test_what_the_cuda_kernels_lack_is_refused_by_name(name, value):
    settings = AttentionSettings(**VARIANTS["grouped-relu2"])
    object.__setattr__(settings, name, value)  # past the checks of the settings themselves
    with pytest.raises(ValueError, match=f"have no {name} {value!r}"):
        refuse(settings)


def test_a_graph_without_the_newer_settings_runs(library):
    """Graphs of older versions name neither the scope nor local_norm nor causal."""
    settings = AttentionSettings(**VARIANTS["grouped-relu2"])
    model = onnx.load_from_string(make_model(settings, 0.4))
    kept = [x for x in model.graph.node[0].attribute if x.name not in ("normalizes", "local_norm", "causal")]
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.extend(kept)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library))
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def test_without_the_kernel_the_log_says_why(caplog):
    with caplog.at_level("WARNING"):
        native.without_kernel("feature_map 'toy'", "auto")
    assert "feature_map 'toy'" in caplog.text
    with pytest.raises(BackendError, match="feature_map 'toy'"):
        native.without_kernel("feature_map 'toy'", "native")
    assert native.lacking("no such file") is None
