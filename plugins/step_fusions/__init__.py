"""Fused operators for what stands between the products of a transformer block, as TensorRT plugins."""
