"""Padded tokens to vectors: one model computed by torch, OpenVINO or ONNX Runtime."""
