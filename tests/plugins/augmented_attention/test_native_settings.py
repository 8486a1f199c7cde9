"""What the native kernel does not know is refused by name, so that the function body runs instead."""

import onnx
import onnxruntime as ort
import pytest
from native_model import make_model, make_session, unknown
from operator_cases import VARIANTS

from lineahead.errors import BackendError
from lineahead.plugins.augmented_attention import native
from lineahead.plugins.augmented_attention.schema import AttentionSettings


@pytest.mark.parametrize("name", [name for name in VARIANTS if unknown(AttentionSettings(**VARIANTS[name]))])
def test_what_the_kernel_lacks_is_refused_by_name(name, library):
    """Whoever loads the graph runs its function body then; a kernel that ignores a setting would be wrong."""
    with pytest.raises(Exception, match="this library has no") as caught:
        make_session(library, AttentionSettings(**VARIANTS[name]))
    assert native.lacking(str(caught.value)) == unknown(AttentionSettings(**VARIANTS[name]))


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
