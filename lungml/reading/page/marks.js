// What is drawn on a picture: cross, rings, squares, words, and in what order?

// ---- drawing: once a frame, whatever asked for it
const dirty = new Set();
let frame = 0;
let drawnFrames = 0;

function draw(...names) {
  (names.length ? names : Object.keys(PLANES)).forEach((name) => dirty.add(name));
  frame =
    frame ||
    requestAnimationFrame(() => {
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
  for (const [style, extra] of [
    [HALO, 2],
    [color, 0],
  ]) {
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
  for (const [a, b, c, d] of [
    [0, y, x - gap, y],
    [x + gap, y, width, y],
    [x, 0, x, y - gap],
    [x, y + gap, x, height],
  ]) {
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
    addLabel(view, `${state.draft.diameter.toFixed(1)} mm`, x + r + 6, y, ink.reader, { rank: 9 });
  }
  drawLabels(view);
}

// Numbers are written last, what matters most first; a filtered candidate's gives way where there is no room.
function addLabel(view, text, x, y, color, { align = "left", size = 12, rank = 5, away = 1 } = {}) {
  view.labels.push({ text, x, y, color, align, size, rank, away });
}

function drawLabels(view) {
  const taken = [];
  for (const { text, x, y, color, align, size, rank, away } of view.labels.sort((a, b) => b.rank - a.rank)) {
    const wide = text.length * size * 0.62;
    const left = align === "left" ? x : align === "right" ? x - wide : x - wide / 2;
    const free = (up) =>
      taken.every(([l, t, r, b]) => left + wide < l || left > r || y - up + size / 2 < t || y - up - size / 2 > b);
    const up = [0, 1, 2, 3].map((lines) => away * lines * size).find(free);
    if (rank === 0 && up !== 0) continue;
    const at = y - (up || 0);
    taken.push([left, at - size / 2, left + wide, at + size / 2]);
    word(view.context, text, x, at, color, align, size);
  }
}

function shownFindings(view, slice) {
  const row = rowById.get(state.chosen);
  return opinions.flatMap(({ findings }) =>
    findings.filter(
      (finding) =>
        touches(finding, view.plane, slice) &&
        (state.layers[LAYER_OF[stageOf(finding)]] ||
          (row && row.parts.includes(finding)) ||
          correctionOf(rowOf.get(finding)) !== null), // what the reader said is seen, as what was added is
    ),
  );
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
    addLabel(view, nameOf(finding), x + side * outer, y - outer, color, {
      align,
      size: quiet ? 10 : 12,
      rank: quiet ? 0 : 5,
    });
  }
  if (correction) {
    const sign = { accept: "\u2713", reject: "\u2717", relabel: "\u2713", note: "\u270e" }[correction.kind];
    addLabel(view, sign, x + side * outer, y + outer, ink.reader, { align, away: -1 });
  }
}

function drawTicks(context, x, y, r) {
  line(context, "#fff", 2, [], (c) => {
    for (const [dx, dy] of [
      [1, 0],
      [-1, 0],
      [0, 1],
      [0, -1],
    ]) {
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
    for (const [sx, sy] of [
      [1, 1],
      [1, -1],
      [-1, 1],
      [-1, -1],
    ]) {
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
  addLabel(view, missed ? `missed${by}` : "truth", x, y + half + 11, color, { align: "center", size: 11, away: -1 });
}

function drawAdded(view, row, k, chosen) {
  const { context } = view;
  const [x, y] = toScreen(view, row.at);
  const r = Math.max(4, radiusOf(row) * k);
  line(context, ink.reader, 1.8, [], (c) => {
    c.arc(x, y, r, 0, 2 * Math.PI);
    for (const [dx, dy] of [
      [1, 0],
      [-1, 0],
      [0, 1],
      [0, -1],
    ]) {
      c.moveTo(x + dx * r, y + dy * r);
      c.lineTo(x + dx * Math.max(r - 5, r / 2), y + dy * Math.max(r - 5, r / 2));
    }
  });
  if (chosen) drawTicks(context, x, y, r + 2);
  addLabel(view, `+${row.number}`, x + (r + 4) * Math.SQRT1_2 + 2, y + (r + 7) * Math.SQRT1_2 + 2, ink.reader, {
    rank: 6,
    away: -1,
  });
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
    for (const [x, y] of [
      [ax, ay],
      [bx, by],
    ]) {
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
  word(
    context,
    `${plane.name} ${at[axis]}${width < 250 ? "" : ` / ${SIZE[plane.w] - 1}`}`,
    8,
    14,
    ink.text,
    "left",
    size,
  );
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
