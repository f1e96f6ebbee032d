"""Training steps of the autoencoder and its discriminator in PyTorch, as their user would write them: the yardstick.

    python -m benchmarks.torch_autoencoder --weights autoencoder.safetensors --discriminator discriminator.safetensors \
        --inputs batch.npz

prints one line of JSON. The inputs are photos (N, 3, H, W in [-1, 1]) of one batch. A step is that of
`jiidm.training.autoencoder` with codebook and discriminator: L1, colour means, quantiser, the adversarial loss with its
adaptive weight, both networks' gradients and AdamW, and the moving average of the autoencoder's weights.
"""
import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from benchmarks.torch_unet import VARIANTS, functional, nn, torch
from jiidm.checkpoint import open_checkpoint
from jiidm.commands.entry import run_tool
from jiidm.system.errors import InputError

_EPS, _EMA = 1e-6, 0.98


class ResnetBlock(nn.Module):
    """norm, swish, conv, norm, swish, conv, plus the input."""

    def __init__(self, in_channels, out_channels, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, _EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, _EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x):
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return h + self.nin_shortcut(x)


class AttnBlock(nn.Module):
    """One head of attention over all positions, plus the input."""

    def __init__(self, channels, groups):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, _EPS)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).mT.contiguous()[:, None] for f in (self.q, self.k, self.v))
        h = functional.scaled_dot_product_attention(q, k, v)[:, 0].mT.reshape(x.shape)
        return x + self.proj_out(h)


class Middle(nn.Module):
    """The blocks at the lowest resolution."""

    def __init__(self, channels, groups):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, h):
        return self.block_2(self.attn_1(self.block_1(h)))


class Resample(nn.Module):
    """3x3 convolution of stride 2, or after nearest x2."""

    def __init__(self, channels, up):
        super().__init__()
        self.up, self.conv = up, nn.Conv2d(channels, channels, 3, *((1, 1) if up else (2, 0)))

    def forward(self, x):
        return self.conv(functional.interpolate(x, scale_factor=2.0) if self.up else functional.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """The residual blocks of one resolution and the change to the next."""

    def __init__(self, in_channels, out_channels, blocks, groups, resample):
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(out_channels if i else in_channels, out_channels, groups)
                                   for i in range(blocks))
        if resample:
            setattr(self, resample, Resample(out_channels, resample == "upsample"))
        self.resample = resample

    def forward(self, h):
        for block in self.block:
            h = block(h)
        return getattr(self, self.resample)(h) if self.resample else h


class Encoder(nn.Module):
    """N, 3, H, W -> N, z_channels, H / f, W / f."""

    def __init__(self, config):
        super().__init__()
        widths, groups = [config.ch * m for m in config.ch_mult], config.norm_groups
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(before, width, config.num_res_blocks, groups, "downsample" if i < len(widths) - 1 else "")
            for i, (before, width) in enumerate(zip([config.ch, *widths], widths, strict=False)))
        self.mid = Middle(widths[-1], groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], _EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x):
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(functional.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """N, z_channels, h, w -> N, 3, f * h, f * w. `up` is stored from the full resolution to the lowest."""

    def __init__(self, config):
        super().__init__()
        widths, groups = [config.ch * m for m in config.ch_mult], config.norm_groups
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups)
        self.up = nn.ModuleList(
            Level(before, width, config.num_res_blocks + 1, groups, "upsample" if i else "")
            for i, (before, width) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True)))
        self.norm_out = nn.GroupNorm(groups, widths[0], _EPS)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z):
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(functional.silu(self.norm_out(h)))


class TorchAutoencoder(nn.Module):
    """Reconstruction, latent and codes, as `jiidm.models.autoencoder.Autoencoder` of the same configuration."""

    def __init__(self, config):
        super().__init__()
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(config.n_embed, config.embed_dim)})
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def forward(self, x):
        z = self.quant_conv(self.encoder(x))
        codes = self.quantize["embedding"]
        rows = z.detach().permute(0, 2, 3, 1).flatten(0, 2).float()
        index = torch.cdist(rows, codes.weight.detach()).argmin(1)
        nearest = codes(index).reshape(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(z + (nearest - z).detach())), z, nearest


def discriminator_of(channels, layers, groups=8):
    """`jiidm.models.discriminator.PatchDiscriminator`."""
    blocks, width = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)], channels
    for i in range(1, layers + 1):
        wider = channels * min(2**i, 8)
        blocks += [nn.Conv2d(width, wider, 4, 2 if i < layers else 1, 1), nn.GroupNorm(groups, wider, _EPS),
                   nn.LeakyReLU(0.2)]
        width = wider
    return nn.ModuleDict({"main": nn.Sequential(*blocks, nn.Conv2d(width, 1, 4, 1, 1))})


def color_loss(x, recon, factor):
    """L1 between means over squares along three colour axes, summed."""
    red, green, blue = functional.avg_pool2d(x - recon, factor).unbind(1)
    return sum(axis.abs().mean() for axis in ((red + green + blue) / 3, red - green, (red + green) / 2 - blue))


def step_of(model, judge, optimizers, average, photos, config, bf16):
    """One step of the training; returns its losses by the names of jiidm's columns."""
    training = config.train_autoencoder
    judge.requires_grad_(False)
    with torch.autocast(photos.device.type, torch.bfloat16, enabled=bf16):
        recon, z, codes = model(photos)
        fooled = judge["main"](recon)
    recon, z, codes = recon.float(), z.float(), codes.float()
    reconstruction, generator = (photos - recon).abs().mean(), -fooled.float().mean()
    codebook = ((codes.detach() - z) ** 2).mean() + 0.25 * ((codes - z.detach()) ** 2).mean()
    last = model.decoder.conv_out.weight
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, generator)]
    adaptive = (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4)
    total = (reconstruction + training.codebook_weight * codebook
             + training.coarse_weight * color_loss(photos, recon, config.autoencoder.factor)
             + training.discriminator_weight * adaptive * generator)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    total.backward()
    judge.requires_grad_(True)
    with torch.autocast(photos.device.type, torch.bfloat16, enabled=bf16):
        real, fake = judge["main"](photos), judge["main"](recon.detach())
    judged = 0.5 * (functional.relu(1 - real.float()).mean() + functional.relu(1 + fake.float()).mean())
    judged.backward()
    for optimizer in optimizers:
        optimizer.step()
    with torch.no_grad():
        torch._foreach_lerp_(average, list(model.parameters()), 1 - _EMA)
    return {"reconstruction": reconstruction.item(), "codebook": codebook.item(), "generator": generator.item(),
            "discriminator": judged.item()}


def main():
    """Times the steps of each variant and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="checkpoint of the autoencoder (safetensors)")
    parser.add_argument("--discriminator", type=Path, required=True, help="the discriminator's tensors (safetensors)")
    parser.add_argument("--inputs", type=Path, required=True, help=".npz file with photos")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME",
                        help=f"which of {', '.join(VARIANTS)} (default: all)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (default %(default)s)")
    args = parser.parse_args()
    if args.steps < 1 or args.warmup < 0:
        raise InputError(f"--steps {args.steps} --warmup {args.warmup}: expected at least 1 step and 0 before them")
    config, state = open_checkpoint(args.weights, "autoencoder").config, load_file(args.weights)
    training, judge_state = config.train_autoencoder, load_file(args.discriminator)
    with np.load(args.inputs) as file:
        given = torch.from_numpy(file["photos"])
    report = {"torch": torch.__version__, "threads": torch.get_num_threads(), "variants": {}}
    for name in args.variants:
        memory_format, bf16 = VARIANTS[name]
        model = TorchAutoencoder(config.autoencoder)
        judge = discriminator_of(training.discriminator_channels, training.discriminator_layers)
        for network, tensors in ((model, state), (judge, judge_state)):
            network.load_state_dict(tensors)
            network.to(memory_format=memory_format)
        photos = given.contiguous(memory_format=memory_format)
        optimizers = [torch.optim.AdamW(network.parameters(), training.learning_rate, (0.5, 0.9), weight_decay=0.0)
                      for network in (model, judge)]
        average = [parameter.detach().clone() for parameter in model.parameters()]
        seconds, losses = [], []
        for _ in range(args.warmup + args.steps):
            start = time.perf_counter()
            losses.append(step_of(model, judge, optimizers, average, photos, config, bf16))
            seconds.append(time.perf_counter() - start)
        report["variants"][name] = {
            "median_seconds": statistics.median(seconds[args.warmup :]), "first_losses": losses[0],
            "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
    print(json.dumps(report))


if __name__ == "__main__":
    run_tool(main)
