// A picture from a label map and a style: jiidm/inference/refinement.py in JavaScript.

import { transferColor } from './color.js';
import { SAMPLERS, guidedDenoiser } from './diffusion.js';
import { invert, toByte } from './numbers.js';
import { drawNoise } from './random.js';
import { resizePhoto } from './resize.js';

// Runs the rounds of a plan; gives {round, done, steps, picture or preview()} after every step.
// `networks` has encode(picture), condition(labels), predictor(conditions), decode(latents); `style` is a picture of
// their size, {width, height, pixels}; `seed` that of the noise; `rotations` those of the colour transfer.
export async function* refine(networks, schedule, plan, labels, style, seed, rotations) {
  const conditions = await networks.condition(labels);
  try {
    let picture = style, colors = null;
    for (const [round, { sampler, start, timesteps, guidance, transfer }] of plan.rounds.entries()) {
      if (transfer) picture = { ...picture, pixels: transferColor(picture, style, transfer, 1, rotations) };
      const latents = await networks.encode(picture);
      colors ??= new LatentColors(latents, style); // of the first round: the style's own latents
      const noise = await drawNoise(seed, '', round, latents.data.length);
      const denoise = guidedDenoiser(networks.predictor(conditions, latents), schedule, guidance);
      let done = 0, last;
      for await (const z of SAMPLERS[sampler](denoise, schedule, schedule.addNoise(latents.data, noise, start), timesteps)) {
        last = z;
        done++;
        if (done < timesteps.length) {
          const signal = schedule.alphas[timesteps[done]];
          yield { round, done, steps: timesteps.length, preview: () => colors.draw(z, signal) };
        }
      }
      picture = await networks.decode({ ...latents, data: last });
      if (round === plan.rounds.length - 1 && plan.lastTransfer) {
        picture = { ...picture, pixels: transferColor(picture, style, plan.lastTransfer, plan.lastShare, rotations) };
      }
      yield { round, done, steps: timesteps.length, picture };
    }
  } finally {
    networks.release(conditions);
  }
}

// A linear map from noised latents to colours: least squares over a photo and its latents.
export class LatentColors {
  // `latents` are {channels, width, height, data}.
  constructor({ channels, width, height, data }, photo) {
    const count = width * height, small = resizePhoto(photo, width, height).pixels;
    const means = (at, parts) => Array.from({ length: parts }, (_, c) => {
      let sum = 0;
      for (let i = 0; i < count; i++) sum += at(c, i);
      return sum / count;
    });
    const z = (c, i) => data[c * count + i], color = (c, i) => small[3 * i + c];
    Object.assign(this, { channels, width, height, z: means(z, channels), color: means(color, 3) });
    const products = (at, centre) => centre.map((mean, c) => this.z.map((zMean, k) => {
      let sum = 0;
      for (let i = 0; i < count; i++) sum += (z(k, i) - zMean) * (at(c, i) - mean);
      return sum / count;
    }));
    this.covariance = products(z, this.z);
    this.cross = products(color, this.color); // 3 x channels
  }

  // A picture of one pixel a latent; `signal`, 0 to 1, is the abar_t of the latents.
  draw(data, signal) {
    const { channels, width, height } = this, count = width * height, scale = Math.sqrt(signal);
    const inverse = invert(this.covariance.map((row, i) => row.map((value, j) => signal * value + (i === j ? 1 - signal : 0))));
    const weights = this.cross.map((row) => inverse.map((line) => scale * line.reduce((sum, value, k) => sum + value * row[k], 0)));
    const pixels = new Uint8ClampedArray(3 * count);
    for (let i = 0; i < count; i++) {
      for (let c = 0; c < 3; c++) {
        let value = this.color[c];
        for (let k = 0; k < channels; k++) value += weights[c][k] * (data[k * count + i] - scale * this.z[k]);
        pixels[3 * i + c] = toByte(value);
      }
    }
    return { width, height, pixels };
  }
}
