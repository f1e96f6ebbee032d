"""Packaging. `configs/` lies at the top of the repository for its readers and is installed as `jiidm/configs`."""
from setuptools import find_packages, setup

setup(
    name="jiidm",
    version="0.1.0",
    description="IIDM, image-to-image diffusion for semantic image synthesis, in Jittor",
    license="Apache-2.0",
    license_files=["LICENSE"],
    author="the jiidm authors",
    python_requires=">=3.10,<3.13",
    packages=[*find_packages(include=["jiidm", "jiidm.*"]), "jiidm.configs"],
    package_dir={"jiidm.configs": "configs"},
    package_data={
        "jiidm": ["system/cuda/*.h", "system/cuda/cub/*.cuh", "evaluation/*.jinja",
                  "weights/**/*.safetensors", "weights/**/*.json", "weights/**/*.md"],
        "jiidm.configs": ["*.yaml"],
    },
    install_requires=[
        "jittor==1.3.11.0",
        "jittor_offline==0.0.7",  # brings oneDNN, which Jittor would else download
        "jinja2>=3.1,<4",  # the template of the evaluation's report
        "numpy>=1.24,<2",  # Jittor 1.3.11 gives wrong numbers with numpy 2
        "opencv-python-headless>=4.7,<4.12",  # from 4.12 on it wants numpy 2
        "pillow>=12.3",
        "pyyaml>=6,<7",
        "safetensors>=0.4,<1",
        "scikit-image>=0.21,<1",
        "scipy>=1.10",  # scikit-image brings it
        "tqdm>=4.65,<5",
    ],
    extras_require={
        "plots": ["matplotlib>=3.7"],
        "tensorboard": ["tensorboardX>=2.6"],
        "test": ["hypothesis>=6.90", "matplotlib>=3.7", "pytest>=7.4", "ruff>=0.6", "tensorboardX>=2.6"],
        "cuda13": [  # what Jittor compiles against and no driver brings
            "nvidia-cublas>=13,<14",
            "nvidia-cuda-nvrtc>=13,<14",
            "nvidia-cuda-runtime>=13,<14",
            "nvidia-cudnn-cu13>=9,<10",
            "nvidia-cufft>=12,<13",
            "nvidia-curand>=10.4,<11",
            "nvidia-cusparse>=12.6,<13",
            "nvidia-nvjitlink>=13,<14",
        ],
    },
)
