// How a picture of any shape becomes the model's input, as in training: `server/resize.py` has the rule.

import { resize } from "./resize.js";

const GRAY = 127; // Level of what `pad` adds.

// Returns the bytes of RGB pixels that the model takes of ImageData, row by row.
export function fit(image, { width, height, resize: { mode, filter, side } }) {
  const scaled = { width, height };
  let box = { left: 0, upper: 0, width: image.width, height: image.height };
  if (mode === "crop") {
    const short = Math.min(image.width, image.height);
    box = { left: (image.width - short) / 2, upper: (image.height - short) / 2, width: short, height: short };
    Object.assign(scaled, { width: side, height: side });
  } else if (mode === "pad") {
    const long = Math.max(image.width, image.height);
    scaled.width = rounded((image.width * width) / long);
    scaled.height = rounded((image.height * height) / long);
  }
  const pixels = resize(image, scaled.width, scaled.height, filter, box);
  return place({ ...scaled, pixels }, width, height);
}

function rounded(length) {
  return Math.max(Math.floor(length + 0.5), 1);
}

// Places a scaled picture in the middle of the input; what lies outside is cut off.
function place(scaled, width, height) {
  if (scaled.width === width && scaled.height === height) {
    return scaled.pixels;
  }
  const left = Math.floor((width - scaled.width) / 2);
  const upper = Math.floor((height - scaled.height) / 2);
  const result = new Uint8Array(width * height * 3).fill(GRAY);
  const first = Math.max(left, 0);
  const last = Math.min(left + scaled.width, width);
  for (let row = Math.max(upper, 0); row < Math.min(upper + scaled.height, height); row++) {
    const start = ((row - upper) * scaled.width + first - left) * 3;
    const line = scaled.pixels.subarray(start, start + (last - first) * 3);
    result.set(line, (row * width + first) * 3);
  }
  return result;
}
