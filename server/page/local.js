// The model in this browser: the file that the server runs, run by onnxruntime-web.

import { fit } from "./fit.js";
import { fetchModelFile } from "./remote.js";

export class LocalModel {
  static async load(model, key) {
    const response = await fetchModelFile(model, key);
    try {
      const ort = await import(new URL("onnxruntime-web/ort.wasm.min.mjs", document.baseURI));
      ort.env.wasm.wasmPaths = new URL("onnxruntime-web/", document.baseURI).href;
      // More threads would need a page that is isolated from other origins.
      ort.env.wasm.numThreads = 1;
      const file = new Uint8Array(await response.arrayBuffer());
      const session = await ort.InferenceSession.create(file, { logSeverityLevel: 3 });
      return new LocalModel(ort, session, model);
    } catch (cause) {
      // After a script has failed to load, the browser tries again only when the page is reloaded.
      const text = "The model cannot be loaded into this browser: reload the page, or untick “Run in this browser”.";
      throw new Error(text, { cause });
    }
  }

  constructor(ort, session, model) {
    this.ort = ort;
    this.session = session;
    this.model = model;
  }

  // Classifies a picture file. Returns predictions, heat map and a note on the time it took.
  async classify(blob, count) {
    const { width, height, names } = this.model;
    const start = performance.now();
    const pixels = fit(await decode(blob), this.model);
    const image = new this.ort.Tensor("uint8", pixels, [1, height, width, 3]);
    const outputNames = this.model.heatmap ? ["probabilities", "heatmap"] : ["probabilities"];
    const outputs = await this.session.run({ image }, outputNames);
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

// Returns the pixels as a viewer shows them: upright, transparency over white.
async function decode(blob) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(blob, options).catch(() => {
    throw new Error("This browser cannot read the picture: use JPEG or PNG, or untick “Run in this browser”.");
  });
  const canvas = document.createElement("canvas");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  if (image.data[3] !== 255) { // Browsers leave a canvas that is too large for them empty, such as Safari on a phone.
    throw new Error("The picture is too large for this browser: scale it down, or untick “Run in this browser”.");
  }
  return image;
}

// Returns a tensor [1, height, width] as a list of rows.
function rows(tensor) {
  const [, height, width] = tensor.dims;
  return Array.from({ length: height }, (_, y) => [...tensor.data.slice(y * width, (y + 1) * width)]);
}
