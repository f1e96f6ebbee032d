"""Draws with the ONNX files of `jiidm export`: numpy, pillow and onnxruntime alone, without Jittor.

    from jiidm_onnx import Generator

    generator = Generator("onnx")
    generator.infer("mask.png", "photo.jpg").save("picture.jpg")

It imports nothing of jiidm, so that a copy of these modules beside the ONNX files is a whole program.
"""
import importlib
from typing import Any

__all__ = ["Generator", "InputError", "Step"]
_HOMES = {"Generator": "jiidm_onnx.generator", "Step": "jiidm_onnx.generator", "InputError": "jiidm_onnx.errors"}


def __getattr__(name: str) -> Any:
    # imported with their first use, so that the command line can say which package is missing
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
