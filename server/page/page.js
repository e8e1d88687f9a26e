// The page: takes a picture, has it classified here or on the server, and shows what came out.

import { LocalModel } from "./local.js";
import { askServer, fetchModel } from "./remote.js";
import { showHeatmap, showMessage, showPredictions } from "./result.js";

const element = (id) => document.getElementById(id);
const TOP = 5;

let model = null; // What /model.json tells.
let local = null; // The model in this browser, once it is loaded.
let latest = 0; // Only the answer to the latest picture is shown.

async function start() {
  const answer = await fetchModel(sessionStorage.getItem("key"));
  element("key-form").hidden = answer.status !== 401;
  if (!answer.ok) {
    return;
  }
  model = await answer.json();
  element("model").textContent = `${model.name}: ${model.names.length} classes, ${model.width} by ${model.height} pixels`;
  element("local").disabled = !model.in_browser;
  element("local-note").textContent = model.in_browser
    ? "In this browser, pictures do not leave this device."
    : "Running in the browser is not set up on this server (JAXCNN_ONNXRUNTIME_WEB).";
}

async function classify(blob) {
  const turn = ++latest;
  const picture = element("picture");
  URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(blob);
  element("result").hidden = false;
  document.body.classList.add("busy");
  showMessage("Looking …");
  try {
    const result = await (element("local").checked ? askLocal(blob) : askServer(blob, model, TOP));
    if (turn === latest) {
      showMessage("");
      showPredictions(result.predictions);
      showHeatmap(result.heatmap);
      element("latency").textContent = result.note;
    }
  } catch (error) {
    if (turn === latest) {
      showMessage(error.message, true);
      showPredictions([]);
      showHeatmap(null);
      element("latency").textContent = "";
      element("key-form").hidden = error.status !== 401;
    }
  } finally {
    if (turn === latest) {
      document.body.classList.remove("busy");
    }
  }
}

async function askLocal(blob) {
  if (local === null) {
    showMessage("Loading the model into this browser …");
    local = await LocalModel.load(model, sessionStorage.getItem("key"));
  }
  return local.classify(blob, TOP);
}

function useFirst(files) {
  const file = [...files].find((each) => each.type.startsWith("image/"));
  if (file) {
    classify(file);
  }
}

// Choose, drop, paste

element("file").addEventListener("change", (event) => {
  useFirst(event.target.files);
  event.target.value = ""; // The same file again is a change, too.
});
document.addEventListener("paste", (event) => useFirst(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  element("drop").classList.add("over");
});
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, () => element("drop").classList.remove("over"));
}
document.addEventListener("drop", (event) => {
  event.preventDefault();
  useFirst(event.dataTransfer.files);
});

// The camera

element("camera").addEventListener("click", async () => {
  const video = element("video");
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch {
    element("result").hidden = false;
    showMessage("The camera cannot be used: allow it, and open this page by https or on localhost.", true);
    return;
  }
  element("viewfinder").hidden = false;
  await video.play();
  element("shoot").focus();
});

function closeCamera() {
  const video = element("video");
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
  element("viewfinder").hidden = true;
  element("camera").focus();
}

element("close-camera").addEventListener("click", closeCamera);
element("viewfinder").addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    closeCamera();
  }
});
element("shoot").addEventListener("click", () => {
  const video = element("video");
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => classify(blob), "image/jpeg", 0.92);
  closeCamera();
});

element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", element("key").value);
  start();
});
element("show-heatmap").addEventListener("change", (event) => {
  element("heatmap").hidden = !event.target.checked;
});

start();
