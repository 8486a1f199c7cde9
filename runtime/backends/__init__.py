"""Sessions on eager torch, ONNX Runtime and TensorRT."""
