// The model on the server.

export function fetchModel(key) {
  return fetch("model.json", { headers: authorization(key) });
}

export function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

// Predictions for a picture file, with how long it took.
export async function askServer(blob, model, count) {
  const top = Math.min(count, model?.names.length ?? 1);
  const start = performance.now();
  const response = await fetch(`predict?top_k=${top}&heatmap=${Boolean(model?.heatmap)}`, {
    method: "POST",
    body: blob,
    headers: { "Content-Type": blob.type || "application/octet-stream", ...authorization(sessionStorage.getItem("key")) },
  }).catch(() => {
    throw new Error("The server cannot be reached: is it running?");
  });
  const answer = await response.json();
  if (!response.ok) {
    throw Object.assign(new Error(answer.error), { status: response.status });
  }
  const milliseconds = Math.round(performance.now() - start);
  return {
    predictions: answer.top_predictions.map((each) => ({ name: each.class, probability: each.prob })),
    heatmap: answer.heatmap ?? null,
    note: `${milliseconds} ms, there and back`,
  };
}
