"""What the trainings of the autoencoder and of its decoder share: random crops, an adversary, reconstructions shown."""
from jiidm.data.pictures import fit_photo, from_pixels, to_pixels
from jiidm.data.views import draw_views, load_photos
from jiidm.system.distributed import shard
from jiidm.system.runtime import jt
from jiidm.training.gradients import Learner, trainable
from jiidm.training.quality import psnr_ssim
from jiidm.training.trainer import Trainer


class CropTrainer(Trainer):
    """A training on random crops of the photos of a `TrainingFolder`.

    A subclass sets `network` and `discriminator` in `build_networks`, then calls `set_learners`; it writes
    `reconstruct`, and what `Trainer` asks for.
    """

    def set_learners(self):
        """Sets `learners`: `network` and `discriminator`, with one learning rate."""
        self.learners = [
            Learner(name, network, jt.optim.AdamW(trainable(network), self.training.learning_rate, betas=(0.5, 0.9)))
            for name, network in (("network", self.network), ("discriminator", self.discriminator))]

    def build(self):
        super().build()
        folder, names = self.shown_names()
        self.shown = [fit_photo(folder.photo(name), self.config.image.width, self.config.image.height)
                      for name in names]
        return self

    def batch(self, step):
        image, crop, indices = self.config.image, self.training.crop, self.indices(step)
        views = draw_views(self.rng(step, "crops"), len(indices), image.width, image.height, crop, crop,
                           self.training.scale)
        own = shard(len(indices))
        return (from_pixels(load_photos(self.samples, [self.samples.names[i] for i in indices[own]], views[own])),)

    def reconstruct(self, x, step):
        """D(E(x)) of photos N, 3, H, W after `step` steps."""
        raise NotImplementedError

    def pictures(self, step):
        with self.ema.averaged(), jt.no_grad():
            recons = [to_pixels(self.reconstruct(jt.array(from_pixels(photo[None])), step).numpy())[0]
                      for photo in self.shown]
        psnr, ssim = psnr_ssim(self.shown, recons)
        self.log_quality("quality", step, psnr=psnr, ssim=ssim)
        return {"photo": self.shown, "reconstruction": recons}
