"""What pyproject.toml cannot say: `configs/` at the top of the repository is installed as `jiidm/configs`."""
from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["jiidm", "jiidm.*", "jiidm_onnx"]), "jiidm.configs"],
    package_dir={"jiidm.configs": "configs"},
)
