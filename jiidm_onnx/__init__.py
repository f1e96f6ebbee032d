"""Draws with the ONNX files of `jiidm export`: numpy, pillow and onnxruntime alone, without Jittor."""
