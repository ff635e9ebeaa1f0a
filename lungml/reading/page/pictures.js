// Which grey does a plane through the volume have, voxel by voxel, and where is that on the screen?

const PLANES = {
  axial: { u: 0, v: 1, w: 2, flip: false, name: "Axial" },
  coronal: { u: 0, v: 2, w: 1, flip: true, name: "Coronal" },
  sagittal: { u: 1, v: 2, w: 0, flip: true, name: "Sagittal" },
};
const MOST_ZOOM = 16;
const WHEEL_STEP = 40; // of a wheel's delta, for a slice: a notch of a mouse is about 100, a touchpad sends many small
const INKS = [
  ...["malignant", "benign", "filtered", "truth", "missed", "reader", "mask-a", "mask-b"],
  ...["cross", "text", "soft"],
];
const [HALO, CLICK_PX] = ["rgba(0, 0, 0, 0.65)", 4];

const state = {
  at: SIZE.map((size) => (size - 1) / 2),
  window: 0,
  layers: { mask: false, candidates: false, kept: true, malignant: true, truth: true },
  marks: true, // all of them at once
  cross: true,
  tool: "move",
  chosen: null, // id of a row
  caliper: null, // {plane, a, b}
  draft: null, // {at, diameter}: a nodule that is being added
  focus: "axial",
};
let masks = null; // when they are read
let decodedStage = 0; // grows when coronal and sagittal pictures should be made anew
const views = {};
const ink = {};

function makeViews() {
  const style = getComputedStyle(document.documentElement);
  for (const name of INKS) ink[name] = style.getPropertyValue(`--${name}`).trim();
  for (const [name, plane] of Object.entries(PLANES)) {
    const holder = document.getElementById(name);
    const canvas = holder.querySelector("canvas");
    const picture = document.createElement("canvas");
    picture.width = SIZE[plane.u];
    picture.height = SIZE[plane.v];
    const pictureContext = picture.getContext("2d");
    const image = pictureContext.createImageData(picture.width, picture.height);
    const view = {
      name,
      plane,
      canvas,
      context: canvas.getContext("2d"),
      picture,
      pictureContext,
      image,
      pixels: new Uint32Array(image.data.buffer),
      flags: new Uint8Array(picture.width * picture.height),
      zoom: 1,
      center: middleOf(plane),
      shown: "",
      width: 0,
      height: 0,
      wheel: 0,
    };
    views[name] = view;
    new ResizeObserver(() => fit(view)).observe(holder);
    fit(view);
    listen(view);
  }
}

const middleOf = ({ u, v }) => [u, v].map((axis) => ((SIZE[axis] - 1) / 2) * SPACING[axis]);

function fit(view) {
  const { clientWidth: width, clientHeight: height } = view.canvas;
  const dense = window.devicePixelRatio || 1;
  Object.assign(view, { width, height, dense });
  view.canvas.width = Math.max(1, Math.round(width * dense));
  view.canvas.height = Math.max(1, Math.round(height * dense));
  draw(view.name);
}

// ---- between voxels and the pixels of a canvas
function scaleOf({ plane, width, height, zoom }) {
  const whole = Math.min(width / (SIZE[plane.u] * SPACING[plane.u]), height / (SIZE[plane.v] * SPACING[plane.v]));
  return Math.max(whole, 1e-6) * zoom; // pixels of CSS a mm
}

function toScreen(view, at) {
  const { plane, center, width, height } = view;
  const k = scaleOf(view);
  return [
    width / 2 + (at[plane.u] * SPACING[plane.u] - center[0]) * k,
    height / 2 + (plane.flip ? -1 : 1) * (at[plane.v] * SPACING[plane.v] - center[1]) * k,
  ];
}

function fromScreen(view, [x, y]) {
  const { plane, center, width, height } = view;
  const k = scaleOf(view);
  const at = [...state.at];
  at[plane.u] = ((x - width / 2) / k + center[0]) / SPACING[plane.u];
  at[plane.v] = (((plane.flip ? -1 : 1) * (y - height / 2)) / k + center[1]) / SPACING[plane.v];
  at[plane.w] = nearest(at[plane.w]);
  return at;
}

const sliceOf = (plane) => nearest(state.at[plane.w]);

// ---- the picture of a plane, one pixel a voxel
function paint(view) {
  const { plane, pixels, image } = view;
  const slice = sliceOf(plane);
  const shownMasks = state.layers.mask && state.marks && masks ? limits.map((limit) => limit.segmentation) : [];
  const shown = [slice, state.window, shownMasks, view.name === "axial" ? decoded[slice] : decodedStage].join();
  if (shown === view.shown) return;
  view.shown = shown;
  const table = Uint32Array.from(greys(WINDOWS[state.window]), (g) => 0xff000000 | (g << 16) | (g << 8) | g);
  if (view.name === "axial") {
    const base = slice * NX * NY;
    for (let k = 0; k < pixels.length; k++) pixels[k] = table[levels[base + k]];
  } else {
    const [step, start] = view.name === "coronal" ? [1, slice * NX] : [NX, slice];
    const wide = SIZE[plane.u];
    for (let z = 0; z < NZ; z++) {
      let from = z * NX * NY + start;
      let to = (NZ - 1 - z) * wide; // the head is up
      for (let k = 0; k < wide; k++, from += step, to++) pixels[to] = table[levels[from]];
    }
  }
  shownMasks.forEach((limit, o) => paintMask(view, o, limit, slice));
  view.pictureContext.putImageData(image, 0, 0);
}

// A thin veil with a clear edge; of two opinions the second is hatched.
function paintMask(view, o, limit, slice) {
  const { plane, flags, image } = view;
  const wide = SIZE[plane.u];
  const high = SIZE[plane.v];
  flags.fill(0);
  const { starts, columns, above } = masks[o];
  const atLeast = limit <= opinions[o].defaults.segmentation ? 0 : Math.round(limit * 100);
  const mark = (row, to) => {
    for (let k = starts[row]; k < starts[row + 1]; k++) if (above[k] >= atLeast) flags[to + columns[k]] = 1;
  };
  if (view.name === "axial") for (let y = 0; y < NY; y++) mark(slice * NY + y, y * NX);
  else if (view.name === "coronal") for (let z = 0; z < NZ; z++) mark(z * NY + slice, (NZ - 1 - z) * NX);
  else {
    for (let z = 0; z < NZ; z++) {
      for (let y = 0; y < NY; y++) {
        const k = findColumn(columns, starts[z * NY + y], starts[z * NY + y + 1], slice);
        if (k >= 0 && above[k] >= atLeast) flags[(NZ - 1 - z) * NY + y] = 1;
      }
    }
  }
  const hex = ink[o ? "mask-b" : "mask-a"];
  const color = [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
  for (let k = 0; k < flags.length; k++) {
    if (!flags[k]) continue;
    const x = k % wide;
    const edge =
      x === 0 ||
      x === wide - 1 ||
      k < wide ||
      k >= wide * (high - 1) ||
      !flags[k - 1] ||
      !flags[k + 1] ||
      !flags[k - wide] ||
      !flags[k + wide];
    const part = edge ? 0.75 : o === 1 && (x + ((k / wide) | 0)) % 4 ? 0.06 : 0.22;
    for (let c = 0; c < 3; c++) image.data[4 * k + c] += part * (color[c] - image.data[4 * k + c]);
  }
}

function findColumn(columns, low, high, wantedColumn) {
  while (low < high) {
    const middle = (low + high) >> 1;
    if (columns[middle] < wantedColumn) low = middle + 1;
    else if (columns[middle] > wantedColumn) high = middle;
    else return middle;
  }
  return -1;
}
