// The noise schedule, guidance and samplers: jiidm/diffusion/ in JavaScript. Latents are Float32Arrays.

import { interp, linspace, rint } from './numbers.js';

const LEAST_SIGNAL = 4e-5; // alpha_cumprod at which the paper's own schedule ends
const TINY = 1e-5;

export class Schedule {
  // `config` is `schedule` of the exported manifest: alphas_cumprod and prediction.
  constructor(config) {
    this.prediction = config.prediction;
    this.alphas = Float64Array.from(config.alphas_cumprod);
    this.length = this.alphas.length;
  }

  scales(t) {
    return [Math.sqrt(this.alphas[t]), Math.sqrt(1 - this.alphas[t])];
  }

  addNoise(z0, noise, t) {
    const [signal, std] = this.scales(t);
    return z0.map((value, i) => signal * value + std * noise[i]);
  }

  // The clean latents and the noise that z consists of, by the network's prediction.
  split(z, predicted, t) {
    const [signal, std] = this.scales(t);
    if (this.prediction === 'v') {
      return [z.map((value, i) => signal * value - std * predicted[i]), z.map((value, i) => std * value + signal * predicted[i])];
    }
    return [z.map((value, i) => (value - std * predicted[i]) / signal), predicted];
  }

  // The timesteps of "ddimN", ascending.
  respaced(respacing) {
    const count = Number(respacing.replace('ddim', ''));
    for (let stride = 1; stride <= this.length; stride++) {
      if (Math.ceil(this.length / stride) === count) return Array.from({ length: count }, (_, i) => i * stride);
    }
    throw new Error(`respacing ${respacing}: no stride through ${this.length} steps gives ${count}`);
  }

  // `steps` distinct timesteps from `start` down, evenly spaced in log(signal / noise).
  descent(start, steps) {
    let alpha = this.alphas.subarray(0, start + 1);
    if (this.alphas[this.length - 1] === 0) alpha = alpha.map((value) => Math.max(value, LEAST_SIGNAL));
    const noise = alpha.map((value) => Math.log1p(-value) - Math.log(value));
    const places = Float64Array.from(noise, (_, i) => i);
    const even = linspace(noise[start], noise[0], steps + 1).subarray(0, steps);
    const timesteps = [];
    for (let i = 0; i < steps; i++) { // each leaves room for those below it, then moves below the one above
      const t = Math.max(rint(interp(even[i], noise, places)), steps - 1 - i);
      timesteps.push(i ? Math.min(t, timesteps[i - 1] - 1) : t);
    }
    return timesteps;
  }
}

// The denoiser (z, t) -> prediction; `predict(z, t, conditional, null)` gives the predictions asked for.
export function guidedDenoiser(predict, schedule, { scale, rescale }) {
  return async (z, t) => {
    if (scale === 0 || scale === 1) return (await predict(z, t, scale === 1, scale === 0))[0];
    const [conditional, none] = await predict(z, t, true, true);
    const guided = none.map((value, i) => value + scale * (conditional[i] - value));
    return rescale ? rescaled(schedule, z, t, guided, conditional, rescale) : guided;
  };
}

// The guided prediction with its std moved towards the conditional one's, as v.
function rescaled(schedule, z, t, guided, conditional, rescale) {
  const kept = schedule.prediction === 'epsilon' ? schedule.scales(t)[1] : 0;
  const ofV = (values) => values.map((value, i) => value - kept * z[i]);
  const part = ofV(guided);
  const factor = rescale * ((std(ofV(conditional)) + TINY) / (std(part) + TINY)) + 1 - rescale;
  return part.map((value, i) => kept * z[i] + factor * value);
}

function std(values) {
  let sum = 0, squares = 0;
  for (const value of values) sum += value;
  for (const value of values) squares += (value - sum / values.length) ** 2;
  return Math.sqrt(squares / values.length);
}

// Samplers visit `timesteps`, descending; after each step they give the latents.

async function* ddim(denoise, schedule, z, timesteps) {
  for (let i = 0; i < timesteps.length; i++) {
    const t = timesteps[i];
    const [z0, noise] = schedule.split(z, await denoise(z, t), t);
    const [signal, std] = i + 1 < timesteps.length ? schedule.scales(timesteps[i + 1]) : [1, 0];
    z = z0.map((value, k) => signal * value + std * noise[k]);
    yield z;
  }
}

async function* dpmpp(denoise, schedule, z, timesteps) {
  let before = z; // of weight 0 in the first step
  for (const [i, [kept, now, earlier]] of solverWeights(schedule, timesteps).entries()) {
    const [z0] = schedule.split(z, await denoise(z, timesteps[i]), timesteps[i]);
    const was = before, from = z;
    z = z0.map((value, k) => kept * from[k] + now * value + earlier * was[k]);
    before = z0;
    yield z;
  }
}

// Of each step: the weights of the latents, of the predicted z0 and of the z0 before it.
function solverWeights(schedule, timesteps) {
  const scales = timesteps.map((t) => schedule.scales(t));
  const h = scales.slice(1).map(([signal, std], i) => Math.log(signal / std) - Math.log(scales[i][0] / scales[i][1]));
  const weights = h.map((step, i) => {
    const extrapolation = i ? step / (2 * h[i - 1]) : 0;
    const data = -scales[i + 1][0] * Math.expm1(-step);
    return [scales[i + 1][1] / scales[i][1], data * (1 + extrapolation), -data * extrapolation];
  });
  return [...weights, [0, 1, 0]];
}

export const SAMPLERS = { ddim, dpmpp };
