// Pillow's resize, as in training: a canvas would compute other pixels.

const FILTERS = { bicubic: { support: 2, kernel: cubic }, bilinear: { support: 1, kernel: triangle } }; // Radius in pixels.
const A = -0.5; // Parameter of the cubic convolution kernel (Keys 1981).
const PRECISION = 2 ** 22; // Pillow computes with integer weights of this scale, and rounds after each direction.

function cubic(x) {
  const t = Math.abs(x);
  if (t < 1) {
    return ((A + 2) * t - (A + 3)) * t * t + 1;
  }
  return t < 2 ? (((t - 5) * t + 8) * t - 4) * A : 0;
}

function triangle(x) {
  return Math.max(1 - Math.abs(x), 0);
}

// Returns for each of `to` pixels the first source pixel with a weight, and the weights from there on. The pixels show
// the part of `from` source pixels that is `length` long and begins at `start`.
function weights(from, to, { start, length }, { support, kernel }) {
  const scale = length / to;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const center = start + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support * stretch + 0.5));
    const last = Math.min(from, Math.trunc(center + support * stretch + 0.5));
    const raw = Array.from({ length: last - first }, (_, k) => kernel((first + k - center + 0.5) / stretch));
    const sum = raw.reduce((total, weight) => total + weight, 0);
    return { first, weights: raw.map((weight) => Math.round((weight / sum) * PRECISION)) };
  });
}

// Resizes one direction: each of `lines` lines from `from` to `to` pixels. Neighbours are `step` pixels apart in the
// source, lines `stride` pixels; `outStep` and `outStride` are the same for the result.
function pass(source, channels, { lines, from, to, part, filter, step, stride, outStep, outStride }) {
  const result = new Uint8ClampedArray(lines * to * 3);
  weights(from, to, part, FILTERS[filter]).forEach(({ first, weights: kernel }, i) => {
    for (let line = 0; line < lines; line++) {
      for (let channel = 0; channel < 3; channel++) {
        let sum = PRECISION / 2; // Rounds to nearest.
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

// Resizes the part of ImageData in `box`, and returns the bytes of RGB pixels, row by row.
export function resize({ data, width, height }, toWidth, toHeight, filter, box) {
  const columns = { start: box.left, length: box.width };
  const rows = { start: box.upper, length: box.height };
  const narrow = pass(data, 4, {
    lines: height, from: width, to: toWidth, part: columns, filter, step: 1, stride: width, outStep: 1, outStride: toWidth,
  });
  const small = pass(narrow, 3, {
    lines: toWidth, from: height, to: toHeight, part: rows, filter, step: toWidth, stride: 1, outStep: toWidth, outStride: 1,
  });
  return new Uint8Array(small.buffer);
}
