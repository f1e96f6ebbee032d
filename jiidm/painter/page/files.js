// Photos, label maps and projects: in from the user's disk, out to it.

import { decodeGrey, fromBase64, toBase64 } from './png.js';

const PHOTO_SIDE = 1024; // pixels that a photo is reduced to; the networks see fewer

// Reads a photo, upright, cropped centrally to an aspect and reduced; returns {bitmap, blob, base64, title}.
export async function readPhoto(file, aspect) {
  let whole;
  try {
    whole = await createImageBitmap(file, { imageOrientation: 'from-image' });
  } catch {
    throw new Error(`${file.name || 'The photo'} cannot be read by this browser; save it as JPEG or PNG`);
  }
  const width = Math.min(whole.width, whole.height * aspect), height = Math.min(whole.height, whole.width / aspect);
  const scale = Math.min(1, PHOTO_SIDE / Math.max(width, height));
  const canvas = document.createElement('canvas');
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext('2d');
  context.fillStyle = '#fff';
  context.fillRect(0, 0, canvas.width, canvas.height); // beneath transparent pictures
  context.imageSmoothingQuality = 'high';
  const left = (whole.width - width) / 2, top = (whole.height - height) / 2;
  context.drawImage(whole, left, top, width, height, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, 'image/jpeg', 0.92));
  return photoOf(blob, file.name || 'own photo');
}

export async function photoOf(blob, title) {
  const base64 = toBase64(new Uint8Array(await blob.arrayBuffer()));
  return { bitmap: await createImageBitmap(blob), blob, base64, title };
}

// The labels of a grey PNG at the canvas size; of any other PNG through the server.
export async function readMap(bytes, engine, { width, height }) {
  try {
    const map = await decodeGrey(bytes);
    if (map.width === width && map.height === height) return map.labels;
  } catch {
    // another kind of PNG
  }
  return (await decodeGrey(await engine.readMap(new Blob([bytes], { type: 'image/png' })))).labels;
}

// A project as the server takes it for a picture; returns it checked, with its map as bytes.
export function parseProject(text) {
  let project;
  try {
    project = JSON.parse(text);
  } catch {
    throw new Error('This file is no project: it is not JSON');
  }
  if (typeof project?.map !== 'string' || typeof project.style !== 'string') {
    throw new Error('This file is no project: it has no map and style');
  }
  const settings = { seed: 0, strength: null, color_by_class: true, ...project.settings };
  const { strength } = settings;
  if (strength !== null && !(typeof strength === 'number' && strength >= 0 && strength <= 1)) {
    throw new Error('This project cannot be read: its strength is no number from 0 to 1');
  }
  return { map: fromBase64(project.map), style: project.style, settings, title: project.title };
}

export function download(blob, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
