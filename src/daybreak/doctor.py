"""What is installed, which devices are here, and the line that mends what is missing."""

import importlib.metadata
import os
import platform

REQUIRED = ("torch", "torchvision", "timm", "lightning", "numpy", "opencv-python-headless", "pillow", "pyarrow",
            "scikit-learn", "typer", "rich", "safetensors", "tensorboard", "jinja2")
OPTIONAL = {"pydicom": "DICOM files", "onnx": "ONNX export", "onnxscript": "ONNX export", "onnxruntime": "ONNX export"}


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine() -> list[str]:
    """Lines to print: system, packages, devices, fixes."""
    import torch

    lines = [f"daybreak {version('daybreak')}, Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
             f"{os.cpu_count()} cores"]
    missing = [p for p in REQUIRED if version(p) is None]
    lines += [f"  {p} {version(p)}" for p in REQUIRED if version(p)]
    lines += [f"  {p} {version(p) or 'not installed'} (optional: {use})" for p, use in OPTIONAL.items()]
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        lines.append(f"device cuda:{i}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        lines.append("device mps: Apple GPU")
    lines.append(f"device cpu: {torch.get_num_threads()} torch threads, "
                 f"{'computes in bf16' if torch.cpu.get_capabilities().get('avx512_bf16') else 'fp32'}")
    if missing:
        lines.append(f"missing: {', '.join(missing)}. Fix: pip install {' '.join(missing)}")
    for use, extra in (("DICOM files", "dicom"), ("ONNX export", "onnx")):
        if any(version(p) is None for p, for_what in OPTIONAL.items() if for_what == use):
            lines.append(f'for {use}: pip install "daybreak[{extra}]"')
    if not missing:
        lines.append("all that is needed is here.")
    return lines
