"""Exponential moving average of weights."""
import contextlib

from jiidm.kernels.parameters import towards
from jiidm.system.runtime import jt


class EMA:
    """Averaged copies of a module's parameters, on the device.

    The decay after n updates is min(decay, (1 + n) / (10 + n)), so that a short run forgets its random start.
    """

    def __init__(self, module, decay):
        self.module = module
        self.decay = decay
        self.average = {name: p.clone().detach() for name, p in module.named_parameters()}

    def update(self, step):
        """Averages in the parameters after optimiser step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.module.named_parameters():
            average = self.average[name]
            average.update(towards(average, parameter, 1 - decay))
        jt.sync(list(self.average.values()))  # else old parameters are held until someone asks for the averages

    def arrays(self):
        """Names to averaged float32 arrays."""
        return {name: value.numpy() for name, value in self.average.items()}

    def assign(self, arrays):
        """Replaces the averages by arrays of the same names."""
        for name, value in arrays.items():
            self.average[name].assign(jt.array(value))

    @contextlib.contextmanager
    def averaged(self):
        """Inside the block the module has the averaged weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self):
        """Exchanges the module's parameters and the averages; a second call restores them."""
        for name, parameter in self.module.named_parameters():
            own = parameter.clone().detach()
            own.sync()  # before the parameter changes
            parameter.assign(self.average[name].clone().detach())
            self.average[name].assign(own)
            jt.sync([parameter, self.average[name]])
