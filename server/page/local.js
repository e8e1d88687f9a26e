// The model in this browser: the same file, run by onnxruntime-web.

import { resize } from "./resize.js";
import { fetchModelFile } from "./remote.js";

export class LocalModel {
  static async load(model, key) {
    const response = await fetchModelFile(model, key);
    try {
      const ort = await import(new URL("onnxruntime-web/ort.wasm.min.mjs", document.baseURI));
      ort.env.wasm.wasmPaths = new URL("onnxruntime-web/", document.baseURI).href;
      ort.env.wasm.numThreads = 1; // More would need the page to be isolated from other origins.
      const file = new Uint8Array(await response.arrayBuffer());
      const session = await ort.InferenceSession.create(file, { logSeverityLevel: 3 });
      return new LocalModel(ort, session, model);
    } catch (cause) { // Once a script has not loaded, only a reload makes the browser try again.
      const text = "The model cannot be loaded into this browser: reload the page, or untick “Run in this browser”.";
      throw new Error(text, { cause });
    }
  }

  constructor(ort, session, model) {
    this.ort = ort;
    this.session = session;
    this.model = model;
  }

  // Predictions for a picture file, with how long it took.
  async classify(blob, count) {
    const { width, height, names } = this.model;
    const start = performance.now();
    const pixels = resize(await decode(blob), width, height);
    const image = new this.ort.Tensor("uint8", pixels, [1, height, width, 3]);
    const wanted = this.model.heatmap ? ["probabilities", "heatmap"] : ["probabilities"];
    const outputs = await this.session.run({ image }, wanted);
    const milliseconds = Math.round(performance.now() - start);
    return {
      predictions: [...outputs.probabilities.data]
        .map((probability, index) => ({ name: names[index], probability }))
        .sort((a, b) => b.probability - a.probability)
        .slice(0, count),
      heatmap: this.model.heatmap ? rows(outputs.heatmap) : null,
      note: `${milliseconds} ms in this browser`,
    };
  }
}

// The pixels as a viewer shows them: upright, transparency over white.
async function decode(blob) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(blob, options).catch(() => {
    throw new Error("This browser cannot read the picture.");
  });
  const canvas = document.createElement("canvas");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

function rows(tensor) {
  const [, height, width] = tensor.dims;
  return Array.from({ length: height }, (_, y) => [...tensor.data.slice(y * width, (y + 1) * width)]);
}
