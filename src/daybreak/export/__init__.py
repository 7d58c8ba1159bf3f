"""Backbones on disk: safetensors, timm, ONNX, and back."""
