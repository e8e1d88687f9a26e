// Pillow's bicubic resize, with which the model was trained: a canvas would blend other pixels.

const SUPPORT = 2;
const A = -0.5;
const PRECISION = 2 ** 22; // Pillow rounds the weights to this, and the sums after each direction.

function cubic(x) {
  const t = Math.abs(x);
  if (t < 1) {
    return ((A + 2) * t - (A + 3)) * t * t + 1;
  }
  return t < 2 ? (((t - 5) * t + 8) * t - 4) * A : 0;
}

// For each pixel of the result: the first pixel of the source that counts, and the weights from there on.
function weights(from, to) {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - SUPPORT * stretch + 0.5));
    const last = Math.min(from, Math.trunc(center + SUPPORT * stretch + 0.5));
    const raw = Array.from({ length: last - first }, (_, k) => cubic((first + k - center + 0.5) / stretch));
    const sum = raw.reduce((total, each) => total + each, 0);
    return { first, weights: raw.map((each) => Math.round((each / sum) * PRECISION)) };
  });
}

// One direction: `lines` lines of `from` pixels, which are `step` apart in the source, each line `stride` after the last.
function pass(source, channels, { lines, from, to, step, stride, outStep, outStride }) {
  const result = new Uint8ClampedArray(lines * to * 3);
  weights(from, to).forEach(({ first, weights: kernel }, i) => {
    for (let line = 0; line < lines; line++) {
      for (let channel = 0; channel < 3; channel++) {
        let sum = PRECISION / 2;
        let at = (line * stride + first * step) * channels + channel;
        for (const weight of kernel) {
          sum += source[at] * weight;
          at += step * channels;
        }
        result[(line * outStride + i * outStep) * 3 + channel] = Math.floor(sum / PRECISION);
      }
    }
  });
  return result;
}

// From ImageData to the bytes of RGB pixels, row by row.
export function resize({ data, width, height }, toWidth, toHeight) {
  const narrow = pass(data, 4, {
    lines: height, from: width, to: toWidth, step: 1, stride: width, outStep: 1, outStride: toWidth,
  });
  const small = pass(narrow, 3, {
    lines: toWidth, from: height, to: toHeight, step: toWidth, stride: 1, outStep: toWidth, outStride: 1,
  });
  return new Uint8Array(small.buffer);
}
