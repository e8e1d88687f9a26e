// The model on the server.

// Fetches /model.json: the model's name, class names, size, checksum and limit.
export async function fetchModel(key) {
  return ask("model.json", key, {});
}

// Fetches the model file with the checksum of `model`, or fails if the server has another one by now.
export async function fetchModelFile(model, key) {
  return request(`model.onnx?${model.sha256}`, key, {});
}

// Classifies a picture file, unless `signal` aborts it. Returns predictions, heat map and a note on the time it took.
export async function askServer(blob, model, key, count, signal) {
  // Browsers may drop the server's error while they still send the picture.
  if (blob.size > model.max_bytes) {
    const [size, most] = [Math.ceil(blob.size / 1e5) / 10, Math.floor(model.max_bytes / 1e5) / 10];
    throw failure(413, `The picture has ${size} MB, but the server accepts at most ${most} MB: scale it down.`);
  }
  const top = Math.min(count, model.names.length);
  const start = performance.now();
  const answer = await ask(`predict?top_k=${top}&heatmap=${model.heatmap}`, key, {
    method: "POST",
    body: blob,
    signal,
    headers: { "Content-Type": blob.type || "application/octet-stream" },
  });
  const milliseconds = Math.round(performance.now() - start);
  return {
    predictions: answer.top_predictions.map((prediction) => ({ name: prediction.class, probability: prediction.prob })),
    heatmap: answer.heatmap ?? null,
    note: `${milliseconds} ms, including the network`,
  };
}

async function ask(path, key, options) {
  const response = await request(path, key, options);
  const answer = await readJson(response);
  if (answer === null) {
    throw noResult(response.status);
  }
  return answer;
}

async function request(path, key, options) {
  const headers = { ...options.headers, ...authorization(key) };
  const response = await fetch(path, { ...options, headers }).catch(() => {
    throw new Error("The server cannot be reached: is it running?");
  });
  if (response.status === 401) {
    throw failure(401, key ? "The server did not accept the API key." : "The server requires an API key.");
  }
  if (!response.ok) {
    const text = (await readJson(response))?.error;
    throw text ? failure(response.status, text) : noResult(response.status);
  }
  return response;
}

// Returns null for a body that is not JSON, such as the HTML of a proxy in front of the server.
function readJson(response) {
  return response.json().catch(() => null);
}

function authorization(key) {
  // With some other characters `fetch` fails as if the server could not be reached.
  const invalid = key?.match(/[^!-~]/u);
  if (invalid) {
    throw failure(401, `An API key cannot contain “${invalid[0]}”: copy it again, or type it in ASCII characters.`);
  }
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function noResult(status) {
  if (status === 413) {
    return failure(413, "The picture is too large for a proxy in front of the server: scale it down.");
  }
  return failure(status, `The server responded with status ${status} and no result: try again later.`);
}

function failure(status, text) {
  return Object.assign(new Error(text), { status });
}
