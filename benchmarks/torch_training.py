"""Training steps of the UNet in plain PyTorch: what the speed of jiidm's is compared with.

    python -m benchmarks.torch_training --weights unet.safetensors --inputs batch.npz

prints a line of JSON. The inputs are z0, noise (N, C, H, W), t (N) and one-hot masks (N, classes, H, W) of one batch. A
step is the squared error of epsilon, its gradients, AdamW, and the moving average of the weights. The variational bound
of jiidm's loss is missing: it takes less than a hundredth of a step.
"""
import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks.torch_unet import VARIANTS, load_network, torch
from jiidm.commands.entry import run_tool
from jiidm.system.errors import InputError

_EMA = 0.999


def step_of(model, optimizer, average, z0, noise, t, mask, bf16):
    """One step of the training; returns its loss."""
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64, device=t.device), 0)[t].float()
    abar = abar[:, None, None, None]
    with torch.autocast(z0.device.type, torch.bfloat16, enabled=bf16):
        output = model(abar.sqrt() * z0 + (1 - abar).sqrt() * noise, t, mask)
    loss = ((output[:, : z0.shape[1]].float() - noise) ** 2).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        torch._foreach_lerp_(average, list(model.parameters()), 1 - _EMA)
    return loss.item()


def main():
    """Times the steps of each variant and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="checkpoint of the UNet (safetensors)")
    parser.add_argument("--inputs", type=Path, required=True, help=".npz file with z0, noise, t and mask")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME",
                        help=f"which of {', '.join(VARIANTS)} (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=5, help="timed steps (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (default %(default)s)")
    args = parser.parse_args()
    if args.steps < 1 or args.warmup < 0:
        raise InputError(f"--steps {args.steps} --warmup {args.warmup}: expected at least 1 step and 0 before them")
    cuda = args.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no GPU; use --device cpu")
    torch.backends.cudnn.benchmark = True  # all steps have one size: what a user who wants speed would set
    with np.load(args.inputs) as file:
        z0, noise, t, mask = (torch.from_numpy(file[name]).to(args.device) for name in ("z0", "noise", "t", "mask"))
    report = {"torch": torch.__version__, "device": args.device, "threads": torch.get_num_threads(), "variants": {}}
    for name in args.variants:
        memory_format, bf16 = VARIANTS[name]
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        model = load_network(args.weights, args.device).train().to(memory_format=memory_format)
        images = [value.contiguous(memory_format=memory_format) for value in (z0, noise, mask)]
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.0)
        average = [parameter.detach().clone() for parameter in model.parameters()]
        seconds, losses = [], []
        for _ in range(args.warmup + args.steps):
            start = time.perf_counter()
            losses.append(step_of(model, optimizer, average, images[0], images[1], t, images[2], bf16))
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        report["variants"][name] = {
            "median_seconds": statistics.median(seconds[args.warmup :]), "first_losses": {"mse": losses[0]},
            "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        if cuda:
            report["variants"][name]["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
        del model, optimizer, average, images  # before the next one is measured
    print(json.dumps(report))


if __name__ == "__main__":
    run_tool(main)
