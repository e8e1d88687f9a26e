// onnxruntime-web in headless Chromium: `node browser.mjs FOLDER` prints one JSON line for each model.
// A local server hands the page the library and the models.
import { createReadStream, existsSync, readdirSync } from "node:fs";
import { createServer } from "node:http";
import { dirname, extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import puppeteer from "puppeteer-core";

const here = dirname(fileURLToPath(import.meta.url));
const library = join(here, "node_modules", "onnxruntime-web", "dist");
const folder = process.argv[2];
const kinds = { ".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm", ".json": "application/json" };

const server = createServer((request, response) => {
  const path = normalize(decodeURIComponent(new URL(request.url, "http://localhost").pathname));
  if (path === "/") {
    response.setHeader("Content-Type", "text/html");
    response.end('<script src="/library/ort.wasm.min.js"></script>');
    return;
  }
  const file = path.startsWith("/library/") ? join(library, path.slice(9)) : join(folder, path);
  if (!existsSync(file)) {
    response.statusCode = 404;
    response.end();
    return;
  }
  response.setHeader("Content-Type", kinds[extname(file)] ?? "application/octet-stream");
  createReadStream(file).pipe(response);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const address = `http://127.0.0.1:${server.address().port}/`;

const browser = await puppeteer.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"], headless: true });
const page = await browser.newPage();
await page.goto(address);
for (const name of readdirSync(folder).filter((entry) => entry.endsWith(".onnx")).sort()) {
  const file = name.slice(0, -".onnx".length);
  try {
    const logits = await page.evaluate(async (file) => {
      ort.env.wasm.numThreads = 1;
      ort.env.wasm.wasmPaths = "/library/";
      const read = async (path) => new Uint8Array(await (await fetch(path)).arrayBuffer());
      const facts = await (await fetch(`/${file}.json`)).json();
      const images = await read(`/${file}.image`);
      const session = await ort.InferenceSession.create(await read(`/${file}.onnx`));
      const [count, height, width, channels] = facts.shape;
      const size = height * width * channels;
      const logits = [];
      for (const [from, to] of [[0, 1], [1, count]]) {
        const pictures = images.slice(from * size, to * size);
        const tensor = new ort.Tensor("uint8", pictures, [to - from, height, width, channels]);
        const values = Array.from((await session.run({ image: tensor }, ["logits"])).logits.data);
        for (let i = 0; i < to - from; i++) logits.push(values.slice(i * facts.classes, (i + 1) * facts.classes));
      }
      return logits;
    }, file);
    console.log(JSON.stringify({ file, logits }));
  } catch (error) {
    console.log(JSON.stringify({ file, error: String(error).slice(0, 300) }));
  }
}
await browser.close();
server.close();
