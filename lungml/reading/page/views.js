// How do three planes through a point look, with everything that is marked there?

const PLANES = {
  axial: { u: 0, v: 1, w: 2, flip: false, name: "Axial" },
  coronal: { u: 0, v: 2, w: 1, flip: true, name: "Coronal" },
  sagittal: { u: 1, v: 2, w: 0, flip: true, name: "Sagittal" },
};
const MOST_ZOOM = 16;
const WHEEL_STEP = 40; // of a wheel's delta, for a slice: a notch of a mouse is about 100, a touchpad sends many small
const MASK_COLORS = [[64, 224, 170], [240, 160, 214]]; // of opinion A and B
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
  for (const name of ["malignant", "benign", "candidate", "truth", "missed", "reader", "cross", "text", "soft"]) {
    ink[name] = style.getPropertyValue(`--${name}`).trim();
  }
  for (const [name, plane] of Object.entries(PLANES)) {
    const holder = document.getElementById(name);
    const canvas = holder.querySelector("canvas");
    const picture = document.createElement("canvas");
    picture.width = SIZE[plane.u];
    picture.height = SIZE[plane.v];
    const pictureContext = picture.getContext("2d");
    const image = pictureContext.createImageData(picture.width, picture.height);
    const view = { name, plane, canvas, context: canvas.getContext("2d"), picture, pictureContext, image,
      pixels: new Uint32Array(image.data.buffer), flags: new Uint8Array(picture.width * picture.height),
      zoom: 1, center: middleOf(plane), shown: "", width: 0, height: 0, wheel: 0 };
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
  return [width / 2 + (at[plane.u] * SPACING[plane.u] - center[0]) * k,
    height / 2 + (plane.flip ? -1 : 1) * (at[plane.v] * SPACING[plane.v] - center[1]) * k];
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
        const k = find(columns, starts[z * NY + y], starts[z * NY + y + 1], slice);
        if (k >= 0 && above[k] >= atLeast) flags[(NZ - 1 - z) * NY + y] = 1;
      }
    }
  }
  const color = MASK_COLORS[o];
  for (let k = 0; k < flags.length; k++) {
    if (!flags[k]) continue;
    const x = k % wide;
    const edge = x === 0 || x === wide - 1 || k < wide || k >= wide * (high - 1) ||
      !flags[k - 1] || !flags[k + 1] || !flags[k - wide] || !flags[k + wide];
    const part = edge ? 0.75 : o === 1 && (x + ((k / wide) | 0)) % 4 ? 0.06 : 0.22;
    for (let c = 0; c < 3; c++) image.data[4 * k + c] += part * (color[c] - image.data[4 * k + c]);
  }
}

function find(columns, low, high, wantedColumn) {
  while (low < high) {
    const middle = (low + high) >> 1;
    if (columns[middle] < wantedColumn) low = middle + 1;
    else if (columns[middle] > wantedColumn) high = middle;
    else return middle;
  }
  return -1;
}

// ---- drawing: once a frame, whatever asked for it
const dirty = new Set();
let frame = 0;
let drawnFrames = 0;

function draw(...names) {
  (names.length ? names : Object.keys(PLANES)).forEach((name) => dirty.add(name));
  frame = frame || requestAnimationFrame(() => {
    frame = 0;
    drawnFrames += 1;
    const now = [...dirty];
    dirty.clear();
    now.forEach((name) => views[name] && drawView(views[name]));
  });
}

function drawView(view) {
  const { context, plane, picture, width, height } = view;
  if (!width || !height) return;
  context.setTransform(view.dense, 0, 0, view.dense, 0, 0);
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  const slice = sliceOf(plane);
  const missing = view.name === "axial" && !decoded[slice];
  if (missing) wanted = slice;
  else {
    paint(view);
    const first = [...state.at];
    first[plane.u] = -0.5;
    first[plane.v] = plane.flip ? SIZE[plane.v] - 0.5 : -0.5;
    const [left, top] = toScreen(view, first);
    const k = scaleOf(view);
    context.imageSmoothingEnabled = true;
    context.drawImage(picture, left, top, SIZE[plane.u] * SPACING[plane.u] * k, SIZE[plane.v] * SPACING[plane.v] * k);
  }
  if (state.cross) drawCross(view);
  if (state.marks) drawMarks(view, slice);
  drawCaliper(view, slice);
  drawWords(view, missing);
}

function line(context, color, width, dash, path) {
  context.setLineDash(dash);
  for (const [style, extra] of [[HALO, 2], [color, 0]]) {
    context.strokeStyle = style;
    context.lineWidth = width + extra;
    context.beginPath();
    path(context);
    context.stroke();
  }
  context.setLineDash([]);
}

function word(context, text, x, y, color, align = "left", size = 12) {
  context.font = `600 ${size}px system-ui, "Segoe UI", Roboto, sans-serif`;
  context.textAlign = align;
  context.textBaseline = "middle";
  context.lineJoin = "round";
  context.lineWidth = 3;
  context.strokeStyle = "rgba(0, 0, 0, 0.8)";
  context.strokeText(text, x, y);
  context.fillStyle = color;
  context.fillText(text, x, y);
}

function drawCross(view) {
  const { context, width, height } = view;
  const [x, y] = toScreen(view, state.at).map((v) => Math.round(v) + 0.5);
  const chosen = chosenPlace();
  const gap = Math.max(14, chosen ? radiusOf(chosen) * scaleOf(view) + 12 : 0);
  context.strokeStyle = ink.cross;
  context.globalAlpha = 0.55;
  context.lineWidth = 1;
  context.beginPath();
  for (const [a, b, c, d] of [[0, y, x - gap, y], [x + gap, y, width, y], [x, 0, x, y - gap], [x, y + gap, x, height]]) {
    context.moveTo(a, b);
    context.lineTo(c, d);
  }
  context.stroke();
  context.globalAlpha = 1;
}

const KIND_STYLE = {
  filtered: { color: "candidate", width: 1.2, dash: [2, 4] },
  benign: { color: "benign", width: 1.8, dash: [] },
  unasked: { color: "benign", width: 1.8, dash: [7, 5] },
  malignant: { color: "malignant", width: 2.2, dash: [], twice: true },
};
const LAYER_OF = { filtered: "candidates", benign: "kept", unasked: "kept", malignant: "malignant" };

function touches(place, plane, slice) {
  const away = Math.abs(place.at[plane.w] - slice) * SPACING[plane.w];
  return away <= Math.max(radiusOf(place), SPACING[plane.w] / 2);
}

function drawMarks(view, slice) {
  const { plane } = view;
  const k = scaleOf(view);
  view.labels = [];
  if (state.layers.truth) {
    for (const nodule of truths) if (touches(nodule, plane, slice)) drawTruth(view, nodule, k);
  }
  const order = { filtered: 0, benign: 1, unasked: 1, malignant: 2 };
  const shown = shownFindings(view, slice).sort((a, b) => order[stageOf(a)] - order[stageOf(b)]);
  for (const finding of shown) drawFinding(view, finding, k);
  for (const row of addedRows()) {
    if (touches(row, plane, slice)) drawAdded(view, row, k, row.id === state.chosen);
  }
  if (state.draft) {
    const [x, y] = toScreen(view, state.draft.at);
    const r = (state.draft.diameter / 2) * k;
    line(view.context, ink.reader, 1.8, [], (c) => c.arc(x, y, r, 0, 2 * Math.PI));
    label(view, `${state.draft.diameter.toFixed(1)} mm`, x + r + 6, y, ink.reader, { rank: 9 });
  }
  drawLabels(view);
}

// Numbers are written last, what matters most first; a filtered candidate's gives way where there is no room.
function label(view, text, x, y, color, { align = "left", size = 12, rank = 5, away = 1 } = {}) {
  view.labels.push({ text, x, y, color, align, size, rank, away });
}

function drawLabels(view) {
  const taken = [];
  for (const { text, x, y, color, align, size, rank, away } of view.labels.sort((a, b) => b.rank - a.rank)) {
    const wide = text.length * size * 0.62;
    const left = align === "left" ? x : align === "right" ? x - wide : x - wide / 2;
    const free = (up) => taken.every(([l, t, r, b]) => left + wide < l || left > r || y - up + size / 2 < t || y - up - size / 2 > b);
    const up = [0, 1, 2, 3].map((lines) => away * lines * size).find(free);
    if (rank === 0 && up !== 0) continue;
    const at = y - (up || 0);
    taken.push([left, at - size / 2, left + wide, at + size / 2]);
    word(view.context, text, x, at, color, align, size);
  }
}

function shownFindings(view, slice) {
  const row = rowById.get(state.chosen);
  return opinions.flatMap(({ findings }) => findings.filter((finding) =>
    touches(finding, view.plane, slice) &&
    (state.layers[LAYER_OF[stageOf(finding)]] || (row && row.parts.includes(finding)))));
}

function drawFinding(view, finding, k) {
  const { context } = view;
  const [x, y] = toScreen(view, finding.at);
  const r = Math.max(3, radiusOf(finding) * k);
  const row = rowOf.get(finding);
  const correction = correctionOf(row);
  const stage = correction && correction.kind === "relabel" ? correction.label : stageOf(finding);
  const style = KIND_STYLE[stage];
  const dash = comparing && finding.o === 1 && stage !== "filtered" ? [9, 3, 2, 3] : style.dash;
  const color = ink[style.color];
  line(context, color, style.width, dash, (c) => c.arc(x, y, r, 0, 2 * Math.PI));
  if (style.twice) line(context, color, 1.2, dash, (c) => c.arc(x, y, r + 4.5, 0, 2 * Math.PI));
  const rejected = correction && correction.kind === "reject";
  if (rejected) {
    line(context, ink.reader, 1.8, [], (c) => {
      c.moveTo(x - r - 4, y + r + 4);
      c.lineTo(x + r + 4, y - r - 4);
    });
  }
  if (row.id === state.chosen) drawTicks(context, x, y, r + (style.twice ? 6 : 2));
  const outer = (r + 7) * Math.SQRT1_2 + 2;
  const side = finding.o === 1 ? -1 : 1;
  const align = side > 0 ? "left" : "right";
  const quiet = stage === "filtered" && row.id !== state.chosen && !correction;
  if (!quiet || view.width > 330) {
    label(view, nameOf(finding), x + side * outer, y - outer, color, { align, size: quiet ? 10 : 12, rank: quiet ? 0 : 5 });
  }
  if (correction) {
    const sign = { accept: "\u2713", reject: "\u2717", relabel: "\u2713", note: "\u270e" }[correction.kind];
    label(view, sign, x + side * outer, y + outer, ink.reader, { align, away: -1 });
  }
}

function drawTicks(context, x, y, r) {
  line(context, "#fff", 2, [], (c) => {
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      c.moveTo(x + dx * (r + 1), y + dy * (r + 1));
      c.lineTo(x + dx * (r + 8), y + dy * (r + 8));
    }
  });
}

// Truth is square, what a model says is round.
function drawTruth(view, nodule, k) {
  const { context } = view;
  const [x, y] = toScreen(view, nodule.at);
  const half = Math.max(4, radiusOf(nodule) * k) + 4;
  const missedBy = opinions.filter(({ o }) => missesOf(o).some((miss) => miss.nodule === nodule));
  const missed = missedBy.length > 0;
  const color = missed ? ink.missed : ink.truth;
  const arm = Math.max(4, half * 0.45);
  line(context, color, 1.8, [], (c) => {
    for (const [sx, sy] of [[1, 1], [1, -1], [-1, 1], [-1, -1]]) {
      c.moveTo(x + sx * (half - arm), y + sy * half);
      c.lineTo(x + sx * half, y + sy * half);
      c.lineTo(x + sx * half, y + sy * (half - arm));
    }
    if (missed) {
      for (const s of [1, -1]) {
        c.moveTo(x - 4, y - 4 * s);
        c.lineTo(x + 4, y + 4 * s);
      }
    }
  });
  const by = comparing && missed ? ` by ${missedBy.map(({ letter }) => letter).join(" and ")}` : "";
  label(view, missed ? `missed${by}` : "truth", x, y + half + 11, color, { align: "center", size: 11, away: -1 });
}

function drawAdded(view, row, k, chosen) {
  const { context } = view;
  const [x, y] = toScreen(view, row.at);
  const r = Math.max(4, radiusOf(row) * k);
  line(context, ink.reader, 1.8, [], (c) => {
    c.arc(x, y, r, 0, 2 * Math.PI);
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      c.moveTo(x + dx * r, y + dy * r);
      c.lineTo(x + dx * Math.max(r - 5, r / 2), y + dy * Math.max(r - 5, r / 2));
    }
  });
  if (chosen) drawTicks(context, x, y, r + 2);
  label(view, `+${row.number}`, x + (r + 4) * Math.SQRT1_2 + 2, y + (r + 7) * Math.SQRT1_2 + 2, ink.reader, { rank: 6, away: -1 });
}

const caliperMm = ({ a, b }) => Math.hypot(...a.map((value, axis) => (value - b[axis]) * SPACING[axis]));

function drawCaliper(view, slice) {
  const { context, plane } = view;
  const { caliper } = state;
  if (!caliper || caliper.plane !== view.name || nearest(caliper.a[plane.w]) !== slice) return;
  const [[ax, ay], [bx, by]] = [caliper.a, caliper.b].map((at) => toScreen(view, at));
  const length = Math.hypot(bx - ax, by - ay) || 1;
  const [nx, ny] = [(-(by - ay) / length) * 5, ((bx - ax) / length) * 5];
  line(context, ink.reader, 1.6, [], (c) => {
    c.moveTo(ax, ay);
    c.lineTo(bx, by);
    for (const [x, y] of [[ax, ay], [bx, by]]) {
      c.moveTo(x - nx, y - ny);
      c.lineTo(x + nx, y + ny);
    }
  });
  const right = ax > bx ? [ax, ay] : [bx, by];
  word(context, `${caliperMm(caliper).toFixed(1)} mm`, right[0] + 8, right[1], ink.reader, "left", 13);
}

function drawWords(view, missing) {
  const { context, plane, width, height } = view;
  const at = toScan(state.at.map(nearest));
  const axis = facts.axes[2 - plane.w];
  const small = width < 330;
  const size = small ? 11 : 12;
  const mm = toPatient(state.at.map((v, k) => (k === plane.w ? nearest(v) : v)))[plane.w];
  word(context, `${plane.name} ${at[axis]} / ${SIZE[plane.w] - 1}`, 8, 14, ink.text, "left", size);
  word(context, `${"xyz"[plane.w]} ${mm.toFixed(1)} mm`, 8, 30, ink.soft, "left", size);
  const { name, low, high } = WINDOWS[state.window];
  if (view.name === "axial") {
    word(context, `${name} ${low} to ${high} HU`, width - 8, 14, ink.text, "right", size);
    word(context, "approximate", width - 8, 30, ink.soft, "right", size);
  }
  if (view.zoom > 1) word(context, `${view.zoom.toFixed(1)} \u00d7`, width - 8, height - 16, ink.soft, "right", size);
  const up = plane.flip ? 1 : -1;
  word(context, letters(plane.u, -1), 8, height / 2, ink.text, "left", 14);
  word(context, letters(plane.u, 1), width - 8, height / 2, ink.text, "right", 14);
  word(context, letters(plane.v, up), width / 2, 14, ink.text, "center", 14);
  word(context, letters(plane.v, -up), width / 2, height - 14, ink.text, "center", 14);
  drawBar(view);
  if (missing) word(context, "loading this slice\u2026", width / 2, height / 2, ink.text, "center", 14);
}

function drawBar(view) {
  const { context, width, height } = view;
  const k = scaleOf(view);
  const mm = [100, 50, 20, 10, 5, 2, 1].find((length) => length * k <= width * (width < 330 ? 0.2 : 0.28)) || 1;
  const [x, y] = [10.5, height - 14.5];
  line(context, ink.text, 1.4, [], (c) => {
    c.moveTo(x, y - 4);
    c.lineTo(x, y);
    c.lineTo(x + mm * k, y);
    c.lineTo(x + mm * k, y - 4);
  });
  word(context, `${mm} mm`, x + mm * k + 6, y - 3, ink.text, "left", 11);
}

// ---- moving
function moveTo(at) {
  state.at = inside(at);
  draw();
  showPlace();
}

function scroll(name, steps) {
  const { w } = PLANES[name];
  const at = [...state.at];
  at[w] = clamp(nearest(at[w]) + steps, 0, SIZE[w] - 1);
  if (at[w] !== state.at[w]) moveTo(at);
}

function zoomBy(view, factor, x = view.width / 2, y = view.height / 2) {
  const before = fromScreen(view, [x, y]);
  view.zoom = clamp(view.zoom * factor, 1, MOST_ZOOM);
  if (view.zoom === 1) view.center = middleOf(view.plane);
  else {
    const after = fromScreen(view, [x, y]);
    [view.plane.u, view.plane.v].forEach((axis, k) => {
      view.center[k] += (before[axis] - after[axis]) * SPACING[axis];
    });
  }
  draw(view.name);
}

function zoomAtCross(factor) {
  const view = views[state.focus];
  if (view.zoom * factor > 1) view.center = [view.plane.u, view.plane.v].map((axis) => state.at[axis] * SPACING[axis]);
  zoomBy(view, factor);
}

function resetViews() {
  for (const view of Object.values(views)) Object.assign(view, { zoom: 1, center: middleOf(view.plane) });
  draw();
}

function panBy(view, dx, dy) {
  if (view.zoom === 1) return;
  const k = scaleOf(view);
  view.center[0] -= dx / k;
  view.center[1] -= ((view.plane.flip ? -1 : 1) * dy) / k;
  draw(view.name);
}

// A place that lies outside of a zoomed view is brought into it.
function reveal(at) {
  for (const view of Object.values(views)) {
    const [x, y] = toScreen(view, at);
    if (view.zoom > 1 && (x < 40 || y < 40 || x > view.width - 40 || y > view.height - 40)) {
      view.center = [view.plane.u, view.plane.v].map((axis) => at[axis] * SPACING[axis]);
    }
  }
}

// ---- the pointer
function listen(view) {
  const { canvas } = view;
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  let drag = null;
  canvas.addEventListener("focus", () => {
    state.focus = view.name;
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (event.ctrlKey || event.metaKey) {
      zoomBy(view, Math.exp(-clamp(event.deltaY, -60, 60) / 200), ...place(event));
      return;
    }
    const delta = event.deltaMode === 1 ? event.deltaY * WHEEL_STEP : event.deltaY;
    view.wheel += clamp(delta, -WHEEL_STEP, WHEEL_STEP);
    const steps = Math.trunc(view.wheel / WHEEL_STEP);
    view.wheel -= steps * WHEEL_STEP;
    if (steps) scroll(view.name, view.name === "axial" ? -steps : steps); // down is to the feet, to the back, to the left
  }, { passive: false });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    if (event.button === 1) event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    const start = place(event);
    const pan = event.button !== 0 || event.shiftKey;
    drag = { start, last: start, moved: false, kind: pan ? "pan" : state.tool, at: inside(fromScreen(view, start)) };
    if (drag.kind === "add") state.draft = { at: drag.at, diameter: UNKNOWN_MM };
    if (drag.kind === "caliper") state.caliper = { plane: view.name, a: drag.at, b: drag.at };
    draw();
  });
  canvas.addEventListener("pointermove", (event) => {
    const point = place(event);
    showPointer(view, fromScreen(view, point));
    if (!drag) return;
    drag.moved = drag.moved || Math.hypot(point[0] - drag.start[0], point[1] - drag.start[1]) > CLICK_PX;
    const at = inside(fromScreen(view, point));
    if (drag.kind === "pan") panBy(view, point[0] - drag.last[0], point[1] - drag.last[1]);
    else if (drag.kind === "move" && drag.moved) moveTo(at);
    else if (drag.kind === "caliper") state.caliper = { ...state.caliper, b: at };
    else if (drag.kind === "add" && drag.moved) {
      state.draft = { at: drag.at, diameter: Math.max(1, 2 * caliperMm({ a: drag.at, b: at })) };
    }
    drag.last = point;
    draw(view.name);
  });
  const end = (event) => {
    if (!drag) return;
    const done = drag;
    drag = null;
    if (event.type === "pointercancel") state.draft = null;
    else if (done.kind === "move" && !done.moved) pick(view, done.start);
    else if (done.kind === "add") finishAdd();
    else if (done.kind === "caliper") finishCaliper(done.moved);
    draw();
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("pointerleave", () => showPointer(view, null));
}

// A click on a ring chooses its finding, anywhere else it moves the cross.
function pick(view, [x, y]) {
  const k = scaleOf(view);
  const slice = sliceOf(view.plane);
  const places = state.marks
    ? [...shownFindings(view, slice).map((finding) => ({ row: rowOf.get(finding), place: finding })),
      ...addedRows().filter((row) => touches(row, view.plane, slice)).map((row) => ({ row, place: row }))]
    : [];
  const hit = places
    .map(({ row, place }) => {
      const [px, py] = toScreen(view, place.at);
      return { row, r: radiusOf(place) * k, away: Math.hypot(px - x, py - y) };
    })
    .filter(({ r, away }) => away <= Math.max(r, 3) + 4)
    .sort((a, b) => a.r - b.r)[0];
  if (hit) choose(hit.row.id, { move: false });
  moveTo(inside(fromScreen(view, [x, y])));
}
