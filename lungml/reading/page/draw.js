// What is drawn on a picture, and when: the slice, the cross, a measure, words, a bar?

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
  const small = width < 330;
  const size = small ? 11 : 12;
  const mm = toPatient(state.at.map((v, k) => (k === plane.w ? nearest(v) : v)))[plane.w];
  word(
    context,
    `${plane.name} ${at[2 - plane.w]}${width < 250 ? "" : ` / ${SIZE[plane.w] - 1}`}`,
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
