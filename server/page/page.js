// The page: takes a picture, classifies it in this browser or on the server, and shows the result.

import { LocalModel } from "./local.js";
import { askServer, fetchModel } from "./remote.js";
import { placeHeatmap, showHeatmap, showMessage, showPredictions } from "./result.js";

const element = (id) => document.getElementById(id);
const TOP = 5; // Predictions to show.

let model = null; // The content of /model.json.
let local = null; // Promise of the model in this browser, once it has been requested.
let latest = 0; // Number of the latest picture: only its result is shown.
let upload = new AbortController(); // Ends the request with the latest picture.
let unstoredKey = null; // The API key, in a browser that denies storage to sites.

// The model and its API key

async function start(key) {
  try {
    model = await fetchModel(key);
  } catch (error) {
    if (error.status === 401) {
      askForKey(key === null ? "" : error.message);
    } else {
      refuse(error.message);
    }
    return;
  }
  if (key) {
    keepKey(key);
  }
  if (!element("key-form").hidden) {
    element("key-form").hidden = true;
    element("file").focus(); // The focused element is hidden now.
  }
  showModel();
}

function askForKey(text) {
  keepKey(null);
  element("key-message").textContent = text;
  element("key-form").hidden = false;
}

function readKey() {
  try {
    return sessionStorage.getItem("key");
  } catch {
    return unstoredKey;
  }
}

function keepKey(key) {
  try {
    if (key) {
      sessionStorage.setItem("key", key);
    } else {
      sessionStorage.removeItem("key");
    }
  } catch {
    unstoredKey = key;
  }
}

function showModel() {
  element("model").textContent = `${model.name}: ${model.names.length} classes, ${model.width} by ${model.height} pixels`;
  element("local").disabled = !model.in_browser;
  element("local-note").textContent = model.in_browser
    ? "When the model runs in this browser, pictures do not leave this device."
    : "This server is not set up to run the model in the browser (JAXCNN_ONNXRUNTIME_WEB).";
  placeHeatmap(model);
}

// Results

async function classify(blob) {
  const turn = ++latest;
  upload.abort(); // The connection may be slow, and the earlier picture large.
  upload = new AbortController();
  const picture = element("picture");
  URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(blob);
  element("figure").hidden = false;
  document.body.classList.add("busy");
  showOnly("Classifying …");
  try {
    const result = await (element("local").checked ? askLocal(blob) : askRemote(blob));
    if (turn === latest) {
      showMessage("");
      showPredictions(result.predictions);
      showHeatmap(result.heatmap);
      element("latency").textContent = result.note;
    }
  } catch (error) {
    if (turn === latest) {
      showOnly(error.message, true);
      showAgain(blob, error);
      if (error.status === 401) {
        askForKey("");
      }
    }
  } finally {
    if (turn === latest) {
      document.body.classList.remove("busy");
    }
  }
}

// Offers to classify the picture again, unless the error is the picture's. One from the camera exists only here.
function showAgain(blob, { status }) {
  element("again").hidden = [400, 413, 415].includes(status);
  element("again").onclick = () => {
    element("file").focus(); // The focused element is about to be hidden.
    classify(blob);
  };
}

// Shows an error without a picture.
function refuse(text) {
  latest++; // The result of an earlier picture must not replace the error.
  upload.abort();
  document.body.classList.remove("busy");
  element("figure").hidden = true;
  showOnly(text, true);
}

// Shows a message in place of the result of an earlier picture.
function showOnly(text, isWrong = false) {
  showMessage(text, isWrong);
  showPredictions([]);
  showHeatmap(null);
  element("latency").textContent = "";
  element("again").hidden = true;
}

async function askRemote(blob) {
  const { signal } = upload; // A later picture has another.
  if (model === null) { // It could not be fetched when the page was opened, or not yet.
    model = await fetchModel(readKey());
    showModel();
  }
  const ask = () => askServer(blob, model, readKey(), TOP, signal);
  try {
    const result = await ask();
    isReplaced(); // Without waiting: the name and the heat map's place may be another model's by now.
    return result;
  } catch (error) {
    if (error.status === 400 && (await isReplaced())) {
      return ask(); // Now with what the new model supports.
    }
    throw error;
  }
}

// Returns whether the server has another model than the page knows of, and if so, updates the page.
async function isReplaced() {
  const served = await fetchModel(readKey()).catch(() => model);
  if (served.sha256 === model.sha256) {
    return false;
  }
  model = served;
  local = null;
  showModel();
  return true;
}

async function askLocal(blob) {
  if (local === null) {
    showMessage("Loading the model into this browser …");
    local = LocalModel.load(model, readKey());
    local.catch(() => {
      local = null; // Try again with the next picture.
    });
  }
  return (await local).classify(blob, TOP);
}

function useFirst(files) {
  const file = [...files].find((candidate) => candidate.type.startsWith("image/"));
  if (file) {
    classify(file);
  } else {
    refuse("This is not a picture file: use JPEG, PNG, WebP, GIF or BMP. Save a picture from another page first.");
  }
}

element("picture").addEventListener("load", ({ target }) => {
  element("figure").style.setProperty("--ratio", target.naturalWidth / target.naturalHeight);
});

element("picture").addEventListener("error", () => {
  element("figure").hidden = true; // Not a picture that this browser can show.
});

// Choose, drop, paste

element("file").addEventListener("change", (event) => {
  useFirst(event.target.files);
  event.target.value = ""; // Otherwise choosing the same file again would be no change.
});
document.addEventListener("paste", (event) => {
  if (event.target !== element("key")) {
    useFirst(event.clipboardData.files);
  }
});
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

let latestCamera = 0; // Number of the latest stream: an earlier one may arrive late, when the user allows it.

async function openCamera() {
  closeCamera();
  const turn = latestCamera;
  const video = element("video");
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    if (turn !== latestCamera) {
      stop(stream);
      return;
    }
    video.srcObject = stream;
    element("viewfinder").hidden = false;
    await video.play(); // Fails if the camera is closed before its first picture.
    element("shoot").focus();
  } catch {
    if (turn === latestCamera) {
      closeCamera();
      refuse("The camera cannot be used: allow access to it, and open this page over HTTPS or on localhost.");
    }
  }
}

function closeCamera() {
  latestCamera++;
  const video = element("video");
  if (video.srcObject) {
    stop(video.srcObject);
  }
  video.srcObject = null;
  element("viewfinder").hidden = true;
  element("camera").focus();
}

function stop(stream) {
  stream.getTracks().forEach((track) => track.stop());
}

element("camera").addEventListener("click", openCamera);

element("close-camera").addEventListener("click", closeCamera);
element("viewfinder").addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    closeCamera();
  }
});
element("shoot").addEventListener("click", () => {
  const video = element("video");
  if (!video.videoWidth) {
    return; // The camera has shown nothing yet.
  }
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => classify(blob), "image/jpeg", 0.92);
  closeCamera();
});

// API key and heat map

element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  showMessage("");
  element("key-message").textContent = "";
  start(element("key").value.trim());
});
element("show-heatmap").addEventListener("change", (event) => {
  element("heatmap").hidden = !event.target.checked;
});

start(readKey());
