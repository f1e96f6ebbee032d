"""What pyproject.toml cannot say: `configs/` and `examples/` are installed as `jiidm/configs` and `jiidm/examples`."""
from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["jiidm", "jiidm.*", "jiidm_onnx"]), "jiidm.configs", "jiidm.examples"],
    package_dir={"jiidm.configs": "configs", "jiidm.examples": "examples"},
)
