// A client of openapi-fetch with the types that openapi-typescript generated, against a running server.
//
// `node generated_client.js PORT MODEL PICTURE`, after tsc, in the folder that has `schema.d.ts`.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Prediction = components["schemas"]["Prediction"];
type InferenceResponse = components["schemas"]["InferenceResponse"];
type Form = components["schemas"]["Form"];

const [port, model, path] = process.argv.slice(2) as [string, string, string];
const client = createClient<paths>({ baseUrl: `http://127.0.0.1:${port}` });
const picture = await readFile(path);
const blob = new Blob([picture], { type: "image/png" });
const image = picture.toString("base64");

// JSON: one picture gets one prediction, a list gets a list.
const one = await client.POST("/predict", { body: { image }, params: { query: { top_k: 2 } } });
assert.equal(one.error, undefined);
assert.equal((one.data as Prediction).predicted_class, "red");
assert.equal((one.data as Prediction).top_predictions.length, 2);
assert.equal((one.data as Prediction).top_predictions[0]?.class, "red");
const several = await client.POST("/predict", { body: { images: [image, image] } });
assert.deepEqual((several.data as Prediction[]).map((found) => found.predicted_class), ["red", "red"]);

// The bytes of the file
const raw = await client.POST("/models/{name}/predict", {
  params: { path: { name: model } },
  body: blob,
  bodySerializer: (body) => body,
  headers: { "Content-Type": "image/png" },
});
assert.equal((raw.data as Prediction).predicted_class, "red");

// Forms with one file, and with several
function toForm(body: Form): FormData {
  const form = new FormData();
  for (const [name, files] of Object.entries(body)) {
    for (const file of [files].flat()) {
      form.append(name, file as Blob, "red.png");
    }
  }
  return form;
}
const single: Form = { image: blob };
const pair: Form = { images: [blob, blob] };
const form = await client.POST("/predict", { body: single, bodySerializer: () => toForm(single) });
assert.equal((form.data as Prediction).predicted_class, "red");
const forms = await client.POST("/predict", { body: pair, bodySerializer: () => toForm(pair) });
assert.equal((forms.data as Prediction[]).length, 2);

// Metadata, and the Open Inference Protocol
const metadata = await client.GET("/v2/models/{name}", { params: { path: { name: model } } });
assert.equal(metadata.data?.name, model);
assert.deepEqual(metadata.data?.inputs[0]?.shape, [-1, 8, 8, 3]);
const inference = await client.POST("/v2/models/{name}/infer", {
  params: { path: { name: model } },
  body: { inputs: [{ name: "image", datatype: "BYTES", shape: [1, 1], data: [image] }] },
});
const inferred = inference.data as InferenceResponse;
assert.equal(inferred.model_name, model);
assert.deepEqual(inferred.outputs.map((output) => output.name), ["logits", "probabilities"]);

// Errors
const broken = await client.POST("/predict", { body: { image: "no picture" } });
assert.equal(broken.response.status, 400);
assert.equal(broken.data, undefined);
assert.match(broken.error?.error ?? "", /base64/);
const absent = await client.GET("/v2/models/{name}", { params: { path: { name: "absent" } } });
assert.equal(absent.response.status, 404);
assert.match(absent.error?.error ?? "", /serves only/);
console.log("ok");
