"use strict";
// Where is a point in the scan, and what grey lies there?

const reading = JSON.parse(document.getElementById("reading-data").textContent);
const facts = reading.page;
const [NZ, NY, NX] = facts.grid.shape_irc;
const SIZE = [NX, NY, NZ];
const SPACING = facts.grid.spacing_xyz; // mm along x, y, z of the turned grid
const DIRECTION = facts.grid.direction;
const ORIGIN = facts.grid.origin_xyz;

// Points are [x, y, z] in voxels of the turned grid (to the patient's left, back and head) unless a name says mm.
function toPatient(at) {
  return ORIGIN.map((start, k) => start + at.reduce((sum, v, axis) => sum + DIRECTION[k][axis] * v * SPACING[axis], 0));
}

function toVoxel(mm) {
  return SPACING.map((step, axis) => mm.reduce((sum, v, k) => sum + DIRECTION[k][axis] * (v - ORIGIN[k]), 0) / step);
}

// The scan's own (index, row, col), as findings.csv has them.
function toScan(at) {
  return [2, 1, 0].map((axis, k) => (facts.turned_round[k] ? SIZE[axis] - 1 - at[axis] : at[axis]));
}

const nearest = (value) => Math.floor(value + 0.5);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const inside = (at) => at.map((value, axis) => clamp(value, 0, SIZE[axis] - 1));
const between = (a, b) => Math.hypot(...a.map((value, k) => value - b[k]));

// Which way a step along an axis goes in the patient: one letter, two where the grid is tilted by more than 17 degrees.
function letters(axis, sign) {
  return [0, 1, 2]
    .map((k) => ({ k, part: sign * DIRECTION[k][axis] }))
    .filter(({ part }) => Math.abs(part) > 0.3)
    .sort((a, b) => Math.abs(b.part) - Math.abs(a.part))
    .slice(0, 2)
    .map(({ k, part }) => ["RL", "AP", "FH"][k][part > 0 ? 1 : 0])
    .join("");
}

// ---- voxels: levels of 8 bits, decoded a slice at a time and never for long
const levels = new Uint8Array(NX * NY * NZ);
const decoded = new Uint8Array(NZ);
let decodedCount = 0;
let wanted = null; // a slice that somebody waits for

function textsOf(id, lengths) {
  const text = document.getElementById(id).textContent;
  let start = 0;
  return lengths.map((length) => {
    const part = text.substr(start, length);
    start += length + 1;
    return part;
  });
}

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
  return bytes;
}

const breathe = () => new Promise((done) => setTimeout(done));

// Some browsers blur what a page reads back from a canvas, to tell people apart less well: then no picture is true.
function canvasIsTrue(context) {
  const picture = context.createImageData(16, 1);
  for (let k = 0; k < 64; k++) picture.data[k] = k % 4 === 3 ? 255 : 16 * (k >> 2);
  context.putImageData(picture, 0, 0);
  return context.getImageData(0, 0, 16, 1).data.every((value, k) => value === picture.data[k]);
}

async function decodeSlices(first, onSlice) {
  const texts = textsOf("slice-data", facts.slice_lengths);
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(NX, 16);
  canvas.height = NY;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const isTrue = canvasIsTrue(context);
  const order = [...texts.keys()].sort((a, b) => Math.abs(a - first) - Math.abs(b - first));
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const open = (z) => createImageBitmap(new Blob([bytesOf(texts[z])], { type: "image/jpeg" }), options);
  const started = new Map();
  const start = (z) => {
    if (!decoded[z] && !started.has(z)) started.set(z, open(z));
  };
  let since = performance.now();
  while (order.length) {
    let z = order.shift();
    if (decoded[z]) continue;
    if (wanted !== null && !decoded[wanted]) {
      order.unshift(z);
      z = wanted;
    }
    wanted = null;
    start(z);
    if (decodedCount) order.slice(0, 3).forEach(start); // decoded beside, while this one is read
    const bitmap = await started.get(z);
    started.delete(z);
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    const pixels = new Uint32Array(context.getImageData(0, 0, NX, NY).data.buffer);
    const base = z * NX * NY;
    for (let k = 0; k < pixels.length; k++) levels[base + k] = pixels[k]; // keeps the lowest byte: red
    decoded[z] = 1;
    texts[z] = "";
    decodedCount += 1;
    onSlice(z);
    if (decodedCount === 1 || performance.now() - since > 10) {
      await breathe();
      since = performance.now();
    }
  }
  document.getElementById("slice-data").remove();
  return isTrue;
}

const levelAt = (at) => {
  const [x, y, z] = inside(at).map(nearest);
  return decoded[z] ? levels[(z * NY + y) * NX + x] : null;
};

// ---- what the segmentation marked: rows of voxels with the hundredths that each lies above
async function readMarks() {
  const texts = textsOf(
    "mask-data",
    facts.marks.map((mark) => mark.length),
  );
  const sets = [];
  for (const [k, text] of texts.entries()) sets.push(await readMarked(text, facts.marks[k]));
  document.getElementById("mask-data").remove();
  return sets;
}

async function readMarked(text, { count, long_steps: longSteps }) {
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  const steps = new Uint8Array(buffer, 0, count);
  const above = new Uint8Array(buffer, count, count);
  const long = new DataView(buffer, 2 * count, 4 * longSteps);
  const starts = new Uint32Array(NY * NZ + 1);
  const columns = new Uint16Array(count);
  let place = -1,
    row = 0,
    next = 0;
  for (let k = 0; k < count; k++) {
    place += steps[k] || long.getUint32(4 * next++, true);
    while (place >= (row + 1) * NX) starts[++row] = k;
    columns[k] = place - row * NX;
    if ((k & 0xfffff) === 0xfffff) await breathe();
  }
  starts.fill(count, row + 1);
  return { starts, columns, above };
}

// ---- windows: lowest and highest HU, as radiology sets them
const WINDOWS = [
  { name: "Lung", key: "1", low: -1350, high: 150 },
  { name: "Mediastinum", key: "2", low: -160, high: 240 },
  { name: "Bone", key: "3", low: -450, high: 1050 },
];

function greys({ low, high }) {
  return Uint8Array.from(facts.level_hu, (hu) => clamp(Math.round((255 * (hu - low)) / (high - low)), 0, 255));
}
