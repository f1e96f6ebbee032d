"""Gradient checkpointing of the UNet (Chen et al. 2016): its blocks are computed again in the backward pass."""
from jiidm.models.unet import AttentionBlock, ResBlock, SpadeResBlock
from jiidm.system.runtime import jt
from jiidm.training.patching import patched


def recomputing(network):
    """A function of (z, t, mask) that computes what the `UNet` does, with the same gradients.

    Of each block it keeps the inputs only. The SPADE maps, too, are computed in the blocks, from the masks.
    """
    blocks = [layer for layer in network.modules() if isinstance(layer, ResBlock | SpadeResBlock | AttentionBlock)]
    recomputed = {id(block): _Recomputed(block) for block in blocks}

    def denoise(z, t, mask):
        height, width = z.shape[2:]
        with patched(blocks, lambda block: recomputed[id(block)]):
            conditions = network.condition(mask, height, width, budget=0)
            return network.decode(network.encode(z, network.embed(t)), conditions, height, width)

    return denoise


class _Recomputed:
    """Stands in for a block's `execute`."""

    def __init__(self, block):
        self.block = block
        unused = ["emb_layers"]  # serves `modulation`, outside of `execute`
        if isinstance(block, ResBlock):
            unused.append("out_layers.0")
        self.parameters = [p for name, p in block.named_parameters() if not name.startswith(tuple(unused))]

    def __call__(self, x, *groups):
        """groups: pairs of Vars, the modulation and the conditions."""
        if jt.flags.no_grad:
            return self.plain(x, *groups)
        sizes = [len(group) for group in groups]
        inputs = [x, *(value for group in groups for value in group)]
        return _Function(self, sizes, len(inputs))(*inputs, *self.parameters)

    def plain(self, x, *groups):
        """What the block itself computes."""
        return type(self.block).execute(self.block, x, *groups)


class _Function(jt.Function):
    """The block as one operation; its inputs are the block's, then its parameters."""

    def __init__(self, call, sizes, count):
        super().__init__()
        self.call, self.sizes, self.count = call, sizes, count

    def _run(self, inputs):
        rest, groups = iter(inputs[1:]), []
        for size in self.sizes:
            groups.append(tuple(next(rest) for _ in range(size)))
        return self.call.plain(inputs[0], *groups)

    def execute(self, *inputs):
        self.kept = [value.detach() for value in inputs[: self.count]]
        with jt.no_grad():
            return self._run(self.kept)

    def grad(self, output_grad):
        # Jittor computes in the order of creation: each block again only when the gradient of its output is known
        output_grad = output_grad.detach()
        inputs = [value.clone() for value in self.kept]
        grads = jt.grad((self._run(inputs) * output_grad).sum(), [*inputs, *self.call.parameters])
        return [value.stop_grad() for value in grads]  # else each would hold on to all that it was computed from
