// The exported networks on onnxruntime-web: what `refine` asks of them, and the segmenter.

import { toByte } from './numbers.js';

const NO_CLASS = 255;

export class Networks {
  static LOADED = ['encoder', 'decoder', 'unet-condition', 'unet-encode', 'unet-decode'];

  // Loads all but the segmenter. `fetchFile(path)` gives a file's bytes; `onGpu` is whether they run by WebGPU.
  static async load(ort, manifest, fetchFile, onGpu) {
    const networks = new Networks();
    Object.assign(networks, { ort, manifest, fetchFile, onGpu, sessions: {}, none: null });
    for (const name of Networks.LOADED) await networks.open(name);
    return networks;
  }

  async open(name) {
    // what only other networks read stays on the GPU
    const stays = this.onGpu && ['unet-condition', 'unet-encode'].includes(name) ? 'gpu-buffer' : 'cpu';
    this.sessions[name] ??= await this.ort.InferenceSession.create(await this.fetchFile(`weights/${this.manifest.networks[name].file}`), {
      executionProviders: this.onGpu ? ['webgpu', 'wasm'] : ['wasm'], preferredOutputLocation: stays,
    });
    return this.sessions[name];
  }

  async run(name, feeds, outputs = this.sessions[name]?.outputNames) {
    return (await this.open(name)).run(feeds, outputs);
  }

  // The latents of a picture: {channels, width, height, data}.
  async encode(picture) {
    const { latents } = await this.run('encoder', { picture: this.pictureTensor(picture) });
    const [, channels, height, width] = latents.dims;
    return { channels, width, height, data: latents.data };
  }

  async decode({ channels, width, height, data }) {
    const latents = new this.ort.Tensor('float32', data, [1, channels, height, width]);
    const { data: values, dims } = (await this.run('decoder', { latents })).picture;
    if (!values.every(Number.isFinite)) throw new Error('the networks gave no numbers; load the page again');
    const count = dims[2] * dims[3], pixels = new Uint8ClampedArray(3 * count);
    for (let i = 0; i < count; i++) {
      for (let c = 0; c < 3; c++) pixels[3 * i + c] = toByte((values[c * count + i] + 1) * 127.5);
    }
    return { width: dims[3], height: dims[2], pixels };
  }

  // What the decoder of the UNet needs of a label map; the same without one serves all maps.
  async condition(labels) {
    const { width, height } = this.manifest.picture;
    const maps = (values) => this.run('unet-condition', { labels: new this.ort.Tensor('int32', Int32Array.from(values), [1, height, width]) });
    this.none ??= await maps(new Uint8Array(labels.length).fill(NO_CLASS));
    return maps(labels);
  }

  release(conditions) {
    for (const tensor of Object.values(conditions)) tensor.dispose();
  }

  // (z, t, conditional, null) -> the predictions asked for. Both see the same features.
  predictor(conditions, { channels, width, height }) {
    return async (z, t, conditional, none) => {
      const encoded = await this.run('unet-encode', {
        latents: new this.ort.Tensor('float32', z, [1, channels, height, width]), timestep: new this.ort.Tensor('int32', [t], [1]),
      });
      const predictions = [];
      for (const maps of [...(conditional ? [conditions] : []), ...(none ? [this.none] : [])]) {
        predictions.push((await this.run('unet-decode', { ...encoded, ...maps })).prediction.data);
      }
      this.release(encoded);
      return predictions;
    };
  }

  // The labels of a photo at a size; `photo` has the segmenter's own size.
  async segment(photo, width, height) {
    const size = new this.ort.Tensor('int32', [height, width], [2]);
    const { labels } = await this.run('segmenter', { picture: this.pictureTensor(photo), size }, ['labels']);
    return Uint8Array.from(labels.data);
  }

  pictureTensor({ width, height, pixels }) {
    const count = width * height, values = new Float32Array(3 * count);
    for (let i = 0; i < count; i++) for (let c = 0; c < 3; c++) values[c * count + i] = pixels[3 * i + c] / 127.5 - 1;
    return new this.ort.Tensor('float32', values, [1, 3, height, width]);
  }
}
