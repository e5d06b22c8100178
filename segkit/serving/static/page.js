"use strict";
// Shows what a model says about one image: the server sends probabilities once, and thresholds move here.

const find = (id) => document.getElementById(id);
const KINDS = {
  png: ["PNG", "One picture of class numbers."],
  zip: ["ZIP", "The files that `segkit predict` writes."],
  rle: ["JSON", "Compressed run lengths of each class, as COCO files hold them."],
  probabilities: ["NPZ", "Probabilities of every class, for NumPy."],
};
const BACKGROUND = "background";

let model = null;
let rows = []; // one for each class
let view = null; // width, height, and layers of the image that is shown
let file = null;
let pending = null; // what aborts the request that is under way

start();

async function start() {
  try {
    const health = await answerOf(fetch("health"));
    setUp(await health.json());
  } catch (error) {
    tell(error);
  }
}

function setUp(health) {
  model = { ...health.model, limits: health.limits, codecs: health.codecs };
  const { format } = model;
  model.judged = format.activation === "sigmoid";
  find("model").textContent = model.name;
  find("facts").textContent = `${format.format}, ${format.activation} · ${counted(format.classes.length, "class", "classes")} · ${counted(model.bands, "band")} · ${model.device}`;
  document.title = `${model.name} · segkit serve`;
  rows = format.classes.map((described, number) => classRow(described, number));
  find("meaning").textContent = model.overlap
    ? "Each class is judged alone: it holds where its probability is above its threshold. Where several hold, their colours mix."
    : "One class at each pixel: the most probable one.";
  if (model.postprocess.length) find("meaning").textContent += " The mask is post-processed too, which is not shown here.";
  if (model.judged && !model.overlap) setUpLeast(format.threshold ?? 0);
  find("reset").hidden = !model.judged;
  for (const name of health.outputs) find("output").add(new Option(KINDS[name]?.[0] ?? name, name));
  describeKind();
  listen();
}

function classRow(described, number) {
  const item = find("class").content.cloneNode(true).firstElementChild;
  const [check, slider] = item.querySelectorAll("input");
  const color = `rgb(${described.color.join(" ")})`;
  item.querySelector("bdi").textContent = described.name;
  item.querySelector(".swatch").style.background = color;
  // As in the overlays that files get: what is nothing is not painted.
  check.checked = described.name !== BACKGROUND;
  check.addEventListener("change", repaint);
  const row = {
    item, check, slider, value: item.querySelector(".value"), share: item.querySelector(".share"),
    packed: pack(described.color), color: described.color, threshold: null,
  };
  if (model.judged && model.overlap) {
    row.threshold = row.stored = model.format.thresholds[number];
    item.querySelector(".slider .unseen").textContent = `Threshold of ${described.name}`;
    slider.style.setProperty("--fill", color);
    slider.addEventListener("input", () => { row.threshold = Number(slider.value); showThreshold(row); repaint(); });
    showThreshold(row);
  } else {
    item.querySelector(".slider").remove();
  }
  find("classes").append(item);
  return row;
}

function showThreshold(row) {
  row.slider.value = row.threshold;
  row.value.textContent = twoDigits(row.threshold);
  fillTrack(row.slider);
}

// The part of a track that lies before its thumb.
function fillTrack(slider) {
  const share = (slider.value - slider.min) / (slider.max - slider.min);
  slider.style.setProperty("--at", `${100 * share}%`);
}

function setUpLeast(stored) {
  const [slider, value] = [find("least").querySelector("input"), find("least").querySelector("output")];
  // A model that has a threshold cannot be asked to answer without one.
  slider.min = stored > 0 ? 0.01 : 0;
  model.least = { slider, value, stored, threshold: stored };
  find("least").hidden = false;
  slider.addEventListener("input", () => { model.least.threshold = Number(slider.value); showThreshold(model.least); repaint(); });
  showThreshold(model.least);
  find("meaning").textContent += " Where it is not more probable than the least probability, no class holds.";
}

function listen() {
  find("file").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
  addEventListener("paste", (event) => take(event.clipboardData.files));
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    take(event.dataTransfer.files);
  });
  find("opacity").addEventListener("input", () => { fillTrack(find("opacity")); repaint(); });
  find("outlines").addEventListener("change", repaint);
  find("all").addEventListener("click", () => checkAll(true));
  find("none").addEventListener("click", () => checkAll(false));
  find("reset").addEventListener("click", resetThresholds);
  find("output").addEventListener("change", describeKind);
  find("download").addEventListener("click", download);
}

function take(files) {
  if (files.length) show(files[0]);
}

async function show(chosen) {
  pending?.abort();
  const own = pending = new AbortController();
  say(`Looking at ${chosen.name} …`, true);
  try {
    const started = performance.now();
    const answer = await ask("view", chosen, {}, own.signal);
    const buffer = await answer.arrayBuffer();
    file = chosen;
    view = readView(buffer);
    const seconds = (performance.now() - started) / 1000;
    drawPicture();
    find("name").textContent = chosen.name;
    find("size").textContent = `shown at ${view.width} × ${view.height}, answered in ${seconds.toFixed(2)} s`;
    find("result").hidden = false;
    document.body.classList.add("filled");
    find("drop").querySelector("strong").textContent = "Drop another image";
    find("download").disabled = false;
    repaint();
    say("");
  } catch (error) {
    if (error.name !== "AbortError") tell(error);
  } finally {
    if (pending === own) pending = null;
  }
}

async function download() {
  // While the mask is made, another image may take the place of this one.
  const chosen = file;
  find("download").disabled = true;
  say("Making the mask …", true);
  try {
    const answer = await ask("predict", chosen, { output: find("output").value, ...thresholds() });
    const link = document.createElement("a");
    const suffix = /filename="mask(\.\w+)"/.exec(answer.headers.get("Content-Disposition"))[1];
    link.href = URL.createObjectURL(await answer.blob());
    link.download = chosen.name.replace(/\.[^.]*$/, "") + suffix;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    say(`Saved ${link.download}.`);
  } catch (error) {
    tell(error);
  } finally {
    find("download").disabled = false;
  }
}

function thresholds() {
  const moved = (judged) => judged.threshold !== judged.stored;
  if (model.least) return moved(model.least) ? { threshold: model.least.threshold } : {};
  return rows.some(moved) ? { threshold: rows.map((row) => row.threshold).join() } : {};
}

function ask(address, chosen, query, signal) {
  if (chosen.size > model.limits.bytes) {
    const most = model.limits.bytes / 2 ** 20;
    throw new Error(`${chosen.name} is larger than ${most.toFixed(0)} MiB, the most this server takes.`);
  }
  // The server looks at the bytes: what a system calls a file says little.
  const headers = { "Content-Type": "application/octet-stream" };
  const parameters = new URLSearchParams(query).toString();
  const url = parameters ? `${address}?${parameters}` : address;
  return answerOf(fetch(url, { method: "POST", body: chosen, headers, signal }));
}

async function answerOf(request) {
  let answer;
  try {
    answer = await request;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  let sentence = `The server answered with status ${answer.status}.`;
  try {
    sentence = (await answer.json()).error ?? sentence;
  } catch { /* no JSON, so the status has to do */ }
  throw new Error(sentence);
}

// NPY, version 1: a header as text, then the numbers of (3 + layers, height, width).
function readView(buffer) {
  const length = new DataView(buffer).getUint16(8, true);
  const header = new TextDecoder().decode(new Uint8Array(buffer, 10, length));
  const [count, height, width] = /'shape': \((\d+), (\d+), (\d+)\)/.exec(header).slice(1).map(Number);
  const numbers = new (header.includes("<u2") ? Uint16Array : Uint8Array)(buffer, 10 + length);
  const layers = Array.from({ length: count }, (_, k) => numbers.subarray(k * height * width, (k + 1) * height * width));
  return { width, height, picture: layers.slice(0, 3), layers: layers.slice(3) };
}

function drawPicture() {
  const { width, height, picture: [red, green, blue] } = view;
  for (const name of ["picture", "overlay"]) Object.assign(find(name), { width, height });
  find("frame").style.setProperty("--ratio", width / height);
  find("frame").classList.toggle("small", Math.max(width, height) < 400);
  const image = new ImageData(width, height);
  for (let i = 0, o = 0; i < red.length; i++, o += 4) {
    image.data[o] = red[i];
    image.data[o + 1] = green[i];
    image.data[o + 2] = blue[i];
    image.data[o + 3] = 255;
  }
  find("picture").getContext("2d").putImageData(image, 0, 0);
}

let frame = 0;
function repaint() {
  find("opacity-value").textContent = `${find("opacity").value} %`;
  // Once for each picture on the screen, however fast a slider moves.
  if (view) frame ||= requestAnimationFrame(() => { frame = 0; paint(); });
}

function paint() {
  const { width, height } = view;
  const [colors, counts] = model.overlap ? overlappingColors() : exclusiveColors();
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const tint = Math.round(find("opacity").value * 2.55) << 24, solid = 255 << 24;
  const outlines = find("outlines").checked;
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const color = colors[i];
      if (!color) continue;
      const edge = outlines && ((x > 0 && colors[i - 1] !== color) || (x + 1 < width && colors[i + 1] !== color)
        || (y > 0 && colors[i - width] !== color) || (y + 1 < height && colors[i + width] !== color));
      pixels[i] = (color & 0xffffff) | (edge ? solid : tint);
    }
  }
  find("overlay").getContext("2d").putImageData(image, 0, 0);
  rows.forEach((row, k) => {
    row.share.textContent = percent(counts[k] / colors.length);
    row.item.classList.toggle("absent", counts[k] === 0);
  });
}

// Colour of each pixel, 0 where nothing is painted, and the number of pixels of each class.
function overlappingColors() {
  const size = view.width * view.height;
  const colors = new Uint32Array(size), counts = new Uint32Array(rows.length);
  const sums = [new Uint16Array(size), new Uint16Array(size), new Uint16Array(size)], held = new Uint8Array(size);
  rows.forEach((row, k) => {
    const levels = view.layers[k], limit = row.threshold * 255, [red, green, blue] = row.color, shown = row.check.checked;
    for (let i = 0; i < size; i++) {
      if (levels[i] <= limit) continue;
      counts[k]++;
      if (!shown || held[i] === 255) continue;
      held[i]++;
      sums[0][i] += red;
      sums[1][i] += green;
      sums[2][i] += blue;
    }
  });
  for (let i = 0; i < size; i++) {
    const n = held[i];
    if (n) colors[i] = pack([sums[0][i] / n, sums[1][i] / n, sums[2][i] / n]);
  }
  return [colors, counts];
}

function exclusiveColors() {
  const [numbers, levels] = view.layers;
  const limit = model.least?.threshold ? model.least.threshold * 255 : -1;
  const colors = new Uint32Array(numbers.length), counts = new Uint32Array(rows.length);
  const shown = rows.map((row) => (row.check.checked ? row.packed : 0));
  for (let i = 0; i < numbers.length; i++) {
    if (levels[i] <= limit) continue;
    counts[numbers[i]]++;
    colors[i] = shown[numbers[i]];
  }
  return [colors, counts];
}

// Opaque, as canvases lie in memory on little-endian machines: all that browsers run on.
function pack([red, green, blue]) {
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

function checkAll(checked) {
  for (const row of rows) row.check.checked = checked;
  repaint();
}

function resetThresholds() {
  for (const judged of model.least ? [model.least] : rows) {
    judged.threshold = judged.stored;
    showThreshold(judged);
  }
  repaint();
}

function describeKind() {
  const name = find("output").value, codec = model.codecs[name];
  find("kind").textContent = (KINDS[name]?.[1] ?? "") + (codec ? ` Written by the codec ${codec.name}.` : "");
}

function say(text, busy = false) {
  find("error").hidden = true;
  find("status").textContent = text;
  document.body.classList.toggle("busy", busy);
}

function tell(error) {
  say("");
  find("error").textContent = error.message;
  find("error").hidden = false;
}

function counted(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

// The numbers of a model may have many digits; what is shown is rounded, what is used is not.
function twoDigits(number) {
  return number.toFixed(2);
}

function percent(share) {
  if (share === 0) return "–";
  return share < 0.001 ? "< 0.1 %" : `${(share * 100).toFixed(1)} %`;
}
