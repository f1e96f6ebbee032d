"""Fixtures that several test files use, and how hypothesis works: the same examples each time, no deadline.

A first run of an operation compiles it, which takes seconds; a deadline would take that for a fault.
"""
import os

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # threads of two workers that wait for each other stall both
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // int(workers))))

import pytest  # noqa: E402
from helpers import made_up, reference  # noqa: E402
from hypothesis import settings  # noqa: E402

from jiidm.config import AutoencoderConfig, Config, ImageConfig, UNetConfig  # noqa: E402

settings.register_profile("jiidm", deadline=None, derandomize=True)
settings.load_profile("jiidm")


@pytest.fixture(scope="session")
def reference_unet():
    """The UNet of the reference numbers: 32 channels, 32 a head, made-up weights. Not to be changed."""
    from jiidm.models.unet import UNet

    return made_up(UNet(UNetConfig(model_channels=32, head_channels=32)), int(reference("unet")["salt"]))


@pytest.fixture(scope="session")
def reference_autoencoder():
    """The autoencoder of the reference numbers: 32 channels, 64 codes, made-up weights. Not to be changed."""
    from jiidm.models.autoencoder import Autoencoder

    return made_up(Autoencoder(AutoencoderConfig(ch=32, n_embed=64)), int(reference("autoencoder")["salt"]))


@pytest.fixture(scope="session")
def tiny_config():
    """Networks other than the full-size ones in every respect but their method, for pictures of 48x32."""
    return Config(
        image=ImageConfig(48, 32),
        autoencoder=AutoencoderConfig(ch=16, ch_mult=(1, 2), num_res_blocks=1, z_channels=4, embed_dim=2, n_embed=40,
                                      norm_groups=8),
        unet=UNetConfig(in_channels=2, num_classes=5, model_channels=16, channel_mult=(1, 2, 2), num_res_blocks=1,
                        attention_resolutions=(4,), head_channels=8, spade_channels=8, norm_groups=8),
        seed=3,
    )
