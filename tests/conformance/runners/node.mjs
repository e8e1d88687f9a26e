// onnxruntime-web in Node: `node node.mjs FOLDER` prints one JSON line for each model.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import * as ort from "onnxruntime-web";

ort.env.wasm.numThreads = 1;
const folder = process.argv[2];
for (const name of readdirSync(folder).filter((entry) => entry.endsWith(".onnx")).sort()) {
  const file = name.slice(0, -".onnx".length);
  try {
    const facts = JSON.parse(readFileSync(join(folder, `${file}.json`)));
    const images = new Uint8Array(readFileSync(join(folder, `${file}.image`)));
    const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(join(folder, name))));
    const [count, height, width, channels] = facts.shape;
    const size = height * width * channels;
    const logits = [];
    for (const [from, to] of [[0, 1], [1, count]]) {
      const tensor = new ort.Tensor("uint8", images.slice(from * size, to * size), [to - from, height, width, channels]);
      const values = Array.from((await session.run({ image: tensor }, ["logits"])).logits.data);
      for (let i = 0; i < to - from; i++) logits.push(values.slice(i * facts.classes, (i + 1) * facts.classes));
    }
    console.log(JSON.stringify({ file, logits }));
  } catch (error) {
    console.log(JSON.stringify({ file, error: String(error).slice(0, 300) }));
  }
}
