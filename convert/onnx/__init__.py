"""Artifact folder -> ONNX: the step graph, its quantised forms and the draft graph, proved against eager."""
