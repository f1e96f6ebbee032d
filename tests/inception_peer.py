"""Features of the FID's Inception by somebody else's program, in a process of its own: PEER WEIGHTS PICTURES OUTPUT.

PEER is pytorch_fid (its network, with torchvision's blocks) or torch (the network written out with torch's functions).
WEIGHTS is a state dict, PICTURES N x H x W x 3 uint8 as .npy, OUTPUT receives N x 2048. Exit code 77: not installed.
"""
import sys

import numpy as np

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    sys.exit(77)


def pytorch_fid_network(weights):
    """The 2048 features of pytorch-fid for N x 3 x H x W in 0..1."""
    # torchvision describes its compiled operators to torch at import, and fails where they are for another torch;
    # the Inception network needs none of them
    torch.library.register_fake = lambda *_, **__: lambda function: function
    try:
        from pytorch_fid import inception
    except ImportError:
        sys.exit(77)
    inception.load_state_dict_from_url = lambda *_, **__: weights
    network = inception.InceptionV3([3]).eval()
    return lambda x: network(x)[0][:, :, 0, 0]


def torch_network(weights):
    """The same, from the description of the blocks in Szegedy et al. 2016 and the changes that the FID made."""
    def unit(x, name, stride=1, padding=0):
        x = F.conv2d(x, weights[f"{name}.conv.weight"], None, stride, padding)
        statistics = (weights[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, *statistics, False, 0, 1e-3))

    def chain(x, name, *units):
        for suffix, *options in units:
            x = unit(x, f"{name}{suffix}", *options)
        return x

    def average(x):
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    across, down = (1, (0, 3)), (1, (3, 0))

    def mixed(x, name):
        b, kind = f"{name}.branch", name[6:]
        if kind[0] == "5":
            return [chain(x, b, ("1x1",)), chain(x, f"{b}5x5", ("_1",), ("_2", 1, 2)),
                    chain(x, f"{b}3x3dbl", ("_1",), ("_2", 1, 1), ("_3", 1, 1)), unit(average(x), f"{b}_pool")]
        if kind == "6a":
            return [chain(x, b, ("3x3", 2)), chain(x, f"{b}3x3dbl", ("_1",), ("_2", 1, 1), ("_3", 2)),
                    F.max_pool2d(x, 3, 2)]
        if kind[0] == "6":
            return [chain(x, b, ("1x1",)), chain(x, f"{b}7x7", ("_1",), ("_2", *across), ("_3", *down)),
                    chain(x, f"{b}7x7dbl", ("_1",), ("_2", *down), ("_3", *across), ("_4", *down), ("_5", *across)),
                    unit(average(x), f"{b}_pool")]
        if kind == "7a":
            return [chain(x, f"{b}3x3", ("_1",), ("_2", 2)),
                    chain(x, f"{b}7x7x3", ("_1",), ("_2", *across), ("_3", *down), ("_4", 2)), F.max_pool2d(x, 3, 2)]
        pooled = average(x) if kind == "7b" else F.max_pool2d(x, 3, 1, 1)
        first, second = unit(x, f"{b}3x3_1"), chain(x, f"{b}3x3dbl", ("_1",), ("_2", 1, 1))
        return [chain(x, b, ("1x1",)), unit(first, f"{b}3x3_2a", 1, (0, 1)), unit(first, f"{b}3x3_2b", 1, (1, 0)),
                unit(second, f"{b}3x3dbl_3a", 1, (0, 1)), unit(second, f"{b}3x3dbl_3b", 1, (1, 0)),
                unit(pooled, f"{b}_pool")]

    def run(x):
        x = 2 * F.interpolate(x, (299, 299), mode="bilinear", align_corners=False) - 1
        x = chain(x, "Conv2d_", ("1a_3x3", 2), ("2a_3x3",), ("2b_3x3", 1, 1))
        x = F.max_pool2d(chain(F.max_pool2d(x, 3, 2), "Conv2d_", ("3b_1x1",), ("4a_3x3",)), 3, 2)
        for kind in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = torch.cat(mixed(x, f"Mixed_{kind}"), 1)
        return x.mean((2, 3))
    return run


if __name__ == "__main__":
    peer, path, pictures, output = sys.argv[1:]
    make = {"pytorch_fid": pytorch_fid_network, "torch": torch_network}[peer]
    run = make(torch.load(path))
    with torch.no_grad():
        np.save(output, run(torch.from_numpy(np.load(pictures)).permute(0, 3, 1, 2).float() / 255).numpy())
