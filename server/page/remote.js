// The model on the server.

// What /model.json tells.
export async function fetchModel(key) {
  return ask("model.json", key, {});
}

// The response with the model file that this was told of.
export async function fetchModelFile(model, key) {
  return request(`model.onnx?${model.sha256}`, key, {});
}

// Predictions for a picture file, with how long it took.
export async function askServer(blob, model, key, count) {
  const top = Math.min(count, model?.names.length ?? 1);
  const start = performance.now();
  const answer = await ask(`predict?top_k=${top}&heatmap=${Boolean(model?.heatmap)}`, key, {
    method: "POST",
    body: blob,
    headers: { "Content-Type": blob.type || "application/octet-stream" },
  });
  const milliseconds = Math.round(performance.now() - start);
  return {
    predictions: answer.top_predictions.map((each) => ({ name: each.class, probability: each.prob })),
    heatmap: answer.heatmap ?? null,
    note: `${milliseconds} ms, there and back`,
  };
}

async function ask(path, key, options) {
  const response = await request(path, key, options);
  const answer = await read(response);
  if (answer === null) {
    throw withoutResult(response.status);
  }
  return answer;
}

async function request(path, key, options) {
  const headers = { ...options.headers, ...authorization(key) };
  const response = await fetch(path, { ...options, headers }).catch(() => {
    throw new Error("The server cannot be reached: is it running?");
  });
  if (response.status === 401) {
    throw failure(401, key ? "The server did not accept the key." : "The server asks for an API key.");
  }
  if (!response.ok) {
    const text = (await read(response))?.error;
    throw text ? failure(response.status, text) : withoutResult(response.status);
  }
  return response;
}

function read(response) {
  return response.json().catch(() => null); // A proxy before the server answers with HTML.
}

function authorization(key) {
  const odd = key?.match(/[^!-~]/u); // `fetch` fails with some of these as if the server could not be reached.
  if (odd) {
    throw failure(401, `No key contains “${odd[0]}”: copy it again, or type it with plain letters, digits and signs.`);
  }
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function withoutResult(status) {
  return failure(status, `The server answered with status ${status} and without a result: try again later.`);
}

function failure(status, text) {
  return Object.assign(new Error(text), { status });
}
