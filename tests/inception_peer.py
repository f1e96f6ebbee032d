"""Features of the FID's Inception by somebody else's program, in a process of its own: PEER WEIGHTS PICTURES OUTPUT.

PEER is pytorch_fid (its network, with torchvision's blocks) or torch (the network written out with torch's functions).
WEIGHTS is a state dict, PICTURES N x H x W x 3 uint8 as .npy, OUTPUT receives N x 2048. Exit code 77: not installed.

`store OUTPUT` makes tests/data/inception.npz anew, which stands for pytorch-fid where it is not installed: of the
made-up weights and the made-up pictures of two sets the features (first, second) and the FID between them, all by
pytorch-fid 0.3.0. The tests import the made-up numbers from here, without torch.
"""
import sys
import zlib

import numpy as np

SETS, PICTURES = (0, 1), 6


def made_up_weight(name, shape):
    """Numbers for the parameter `name` that neither vanish nor explode on their way through the network."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("conv.weight"):
        return random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    spread = name.endswith(("running_var", "bn.weight"))
    return random.uniform(0.5, 1.5, shape) if spread else 0.1 * random.standard_normal(shape)


def made_up_pictures(number):
    """PICTURES x 60 x 84 x 3 uint8 of the set `number`: coloured squares under noise, the second set of less contrast.

    Whole numbers throughout, of numpy's frozen generator: the same on every machine.
    """
    random, margin = np.random.RandomState(number), 10 * number
    squares = random.randint(margin, 256 - margin, (PICTURES, 5, 7, 3)).repeat(12, 1).repeat(12, 2)
    noise = random.randint(0, 256, squares.shape)
    share = np.arange(PICTURES).reshape(-1, 1, 1, 1)  # of noise: more in each picture, so that no two are alike
    return ((squares * (10 - share) + noise * share) // 10).astype(np.uint8)


def pytorch_fid_package():
    """pytorch-fid's module of the network."""
    import torch

    # torchvision describes its compiled operators to torch at import, and fails where they are for another torch;
    # the Inception network needs none of them
    torch.library.register_fake = lambda *_, **__: lambda function: function
    try:
        from pytorch_fid import inception
    except ImportError:
        sys.exit(77)
    return inception


def pytorch_fid_network(weights):
    """The 2048 features of pytorch-fid for N x 3 x H x W in 0..1."""
    inception = pytorch_fid_package()
    inception.load_state_dict_from_url = lambda *_, **__: weights
    network = inception.InceptionV3([3]).eval()
    return lambda x: network(x)[0][:, :, 0, 0]


def torch_network(weights):
    """The same, from the description of the blocks in Szegedy et al. 2016 and the changes that the FID made."""
    import torch
    import torch.nn.functional as F

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


def features(run, pictures):
    """N x 2048 of N x H x W x 3 uint8 by one of the networks."""
    import torch

    with torch.no_grad():
        return run(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255).numpy()


def store(output):
    """Writes the features of the made-up pictures and their FID."""
    pytorch_fid_package()
    import torch
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torchvision.models import inception_v3

    # names and shapes are torchvision's too: what the FID changed of its network has no parameters
    shapes = inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False).state_dict()
    weights = {name: torch.from_numpy(made_up_weight(name, tuple(value.shape))).float()
               for name, value in shapes.items() if not name.startswith("fc.") and value.ndim}
    weights = {**shapes, **weights}  # with the classifier and the counters of batches, which have no part in features
    run = pytorch_fid_network(weights)
    first, second = (features(run, made_up_pictures(number)) for number in SETS)
    numbers = [part for found in (first, second) for part in (found.mean(0, np.float64), np.cov(found, rowvar=False))]
    np.savez_compressed(output, first=first, second=second, fid=calculate_frechet_distance(*numbers))


def main():
    try:
        import torch
    except ImportError:
        sys.exit(77)
    if sys.argv[1] == "store":
        store(sys.argv[2])
        return
    peer, path, pictures, output = sys.argv[1:]
    make = {"pytorch_fid": pytorch_fid_network, "torch": torch_network}[peer]
    np.save(output, features(make(torch.load(path)), np.load(pictures)))


if __name__ == "__main__":
    main()
