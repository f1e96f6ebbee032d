"""A baseline: its generator and the encoder of its style, in one file of weights."""
import numpy as np

from jiidm.baselines.config import baseline_checkpoint
from jiidm.baselines.encoder import StyleEncoder, drawn_style
from jiidm.baselines.generator import LayoutGenerator
from jiidm.baselines.layers import Layout
from jiidm.baselines.positions import region_positions
from jiidm.checkpoint import check_numbers, load_into, load_tensors, save_checkpoint
from jiidm.data.latents import one_hot_batch
from jiidm.system.runtime import jt, nn


class Baseline(nn.Module):
    """Generator and style encoder of a `BaselineRun`; parameters have the published names of both, which differ."""

    def __init__(self, config):
        self.generator = LayoutGenerator(config.generator, config.image)
        self.encoder = StyleEncoder(config.generator) if config.generator.style_channels else None

    def execute(self, layout, styles=None, noise=None):
        """Pictures of label maps.

        Args:
            layout: a `Layout` of N pictures.
            styles: photos as from `style_input`; not used without an encoder.
            noise: N, style_channels, standard normal, draws the styles; None takes their means.

        Returns:
            Pictures N, 3, H, W; mean and log variance of the styles, None without an encoder.
        """
        if self.encoder is None:
            return self.generator(layout), None, None
        mean, log_variance = self.encoder(styles)
        style = mean if noise is None else drawn_style(mean, log_variance, noise)
        return self.generator(layout, style), mean, log_variance


def layout_arrays(labels, generator):
    """The arrays that `layout_of` takes, for label maps N, H, W uint8: labels, and positions N, 2, H, W (N, 0, H, W
    unless the `GeneratorConfig` is positional)."""
    if generator.positional:
        return labels, np.stack([region_positions(each) for each in labels])
    return labels, np.zeros((len(labels), 0, *labels.shape[1:]), np.float32)


def layout_of(labels, positions, generator):
    """The `Layout` of what `layout_arrays` returns."""
    return Layout(one_hot_batch(labels, generator.num_classes),
                  jt.array(positions) if generator.positional else None)


def save_baseline(path, arrays, config, step, note="", dtype="float16", classes=None):
    """Writes the arrays of a `Baseline` (by its names) of a `BaselineRun` as safetensors, with the `classes` of its
    `Vocabulary` as a dict; raises InputError for NaN and where it cannot be written."""
    published = {name.split(".", 1)[1]: value for name, value in arrays.items()}  # without generator. and encoder.
    save_checkpoint(path, config.generator.model, published, config, step, dtype, note, classes=classes)


def load_baseline(path):
    """The `Checkpoint` in the file `path`, its config a `BaselineRun`; raises InputError for another kind of file."""
    return baseline_checkpoint(path, *load_tensors(path))


def baseline_of(checkpoint):
    """The `Baseline` of a `Checkpoint` from `load_baseline`; raises InputError for missing, unexpected or mis-shaped
    tensors, and for NaN."""
    network = Baseline(checkpoint.config)
    ours = {name.split(".", 1)[1]: name for name, _ in network.named_parameters()}
    check_numbers(checkpoint.tensors, checkpoint.path)
    load_into(network, {ours.get(name, name): value for name, value in checkpoint.tensors.items()}, checkpoint.path)
    return network
