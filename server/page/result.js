// Shows predictions, heat map and messages on the page.

const element = (id) => document.getElementById(id);
const percent = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });

export function showMessage(text, isWrong = false) {
  element("message").textContent = text;
  element("message").classList.toggle("wrong", isWrong);
}

export function showPredictions(predictions) {
  element("bars").replaceChildren(...predictions.map(row));
}

function row({ name, probability }) {
  const item = document.createElement("li");
  const bar = div("bar", "");
  bar.style.width = `${probability * 100}%`;
  const track = div("track", "");
  track.append(bar);
  item.append(div("name", name), div("share", percent.format(probability)), track);
  return item;
}

function div(className, text) {
  const block = document.createElement("div");
  block.className = className;
  block.textContent = text;
  return block;
}

// Shows a heat map over the picture: rows of numbers from 0 to 1, or null for none.
export function showHeatmap(heatmap) {
  const canvas = element("heatmap");
  element("heatmap-switch").hidden = heatmap === null;
  canvas.hidden = heatmap === null || !element("show-heatmap").checked;
  if (heatmap === null) {
    return;
  }
  canvas.height = heatmap.length;
  canvas.width = heatmap[0].length;
  const pixels = new ImageData(canvas.width, canvas.height);
  pixels.data.set(heatmap.flat().flatMap(colour));
  canvas.getContext("2d").putImageData(pixels, 0, 0); // The browser interpolates when it enlarges the canvas.
}

// Places the heat map on what the model sees of a picture: `server/resize.py` has the rule.
export function placeHeatmap({ width, resize: { mode, side } }) {
  const canvas = element("heatmap");
  canvas.className = mode;
  canvas.style.setProperty("--shown", mode === "crop" ? width / side : 1); // Share of the central square's side.
}

// Returns RGBA for a value from 0 to 1: from transparent over violet and red to bright yellow.
function colour(heat) {
  return [255 * Math.min(1, 0.35 + heat), 230 * Math.max(0, heat * 1.6 - 0.6), 140 * (1 - heat), 190 * heat];
}
