"""Artifact folder -> ONNX graphs: the step graph and its quantised forms, the draft graph, and the proof that they agree with eager."""
