// How is a finding drawn, a nodule of the truth, and what the reader added?

const KIND_STYLE = {
  filtered: { color: "filtered", width: 1.2, dash: [2, 4] },
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
  const missed = missRows().find(({ miss }) => miss.nodule === nodule);
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
  addLabel(view, missed ? `missed${missedBy(missed.miss)}` : "truth", x, y + half + 11, color, {
    align: "center",
    size: 11,
    away: -1,
  });
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
