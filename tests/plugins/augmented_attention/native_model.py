"""Models of one AugmentedAttention node for the native kernel, and what that kernel knows."""

import onnx
import onnxruntime as ort

from lineahead.plugins.augmented_attention import schema

FLOAT_PORTS = (*schema.DATA, *schema.STATE, *schema.PENDING, *schema.PARAMETERS)
KNOWN = {
    "local": ("none", "relu2", "softmax"),
    "normalizer": ("none", "denominator"),
    "feature_map": ("none", "identity", "hedgehog"),
    "normalizes": ("all",),
    "local_norm": (False,),
    "causal": (True,),
}


def unknown(settings):
    """The first setting whose value the kernel does not have, as it names it; None if it has all."""
    for name, values in KNOWN.items():
        value = getattr(settings, name)
        if value not in values:
            return f"{name} '{str(value).lower()}'"
    return None


def make_model(settings, scale):
    """One AugmentedAttention node whose every port is a graph input or output."""
    kinds = dict.fromkeys(FLOAT_PORTS, onnx.TensorProto.FLOAT) | {"ancestors": onnx.TensorProto.BOOL}
    given = [
        onnx.helper.make_tensor_value_info(name, kinds.get(name, onnx.TensorProto.INT64), None)
        for name in schema.INPUTS
    ]
    names = [f"{name}_out" for name in schema.OUTPUTS]
    results = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names]
    attributes = {k: int(v) if isinstance(v, bool) else v for k, v in settings.as_dict().items()}
    node = onnx.helper.make_node(
        schema.OP_TYPE, schema.INPUTS, names, domain=schema.DOMAIN, scale=scale, **attributes
    )
    graph = onnx.helper.make_graph([node], "one", given, results)
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid(schema.DOMAIN, schema.OP_VERSION)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def make_session(library, settings, scale=0.4, threads=1):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(make_model(settings, scale), options, providers=["CPUExecutionProvider"])
