"""From the ONNX step graph to TensorRT engines."""
