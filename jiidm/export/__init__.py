"""The networks as ONNX files: `jiidm export`. A network is written as a graph node by node; Jittor has no exporter."""
