// Which key does what?

const HELP = [
  [
    "Slices",
    [
      [["\u2191", "\u2193"], "slice to head, to feet; in the other planes to front, back or right, left"],
      [["Page\u2191", "Page\u2193"], "ten slices"],
      [["Home", "End"], "as far as \u2191, as \u2193 goes"],
      [["\u21e7 arrows"], "move the cross in the plane"],
      [["Wheel"], "slices; with Ctrl: zoom"],
      [["+", "\u2212", "0"], "zoom at the cross, whole picture"],
      [["\u21e7 drag"], "pan when zoomed; the right button does as well"],
    ],
  ],
  [
    "Windows and layers",
    [
      [["1", "2", "3"], "lung, mediastinum, bone"],
      [["U"], "U-Net mask"],
      [["C"], "candidates that were filtered"],
      [["B"], "kept, benign"],
      [["M"], "malignant"],
      [["T"], "truth"],
      [["H"], "all marks"],
      [["X"], "cross"],
      [["V"], "look: a click moves the cross"],
    ],
  ],
  [
    "Findings",
    [
      [["J", "K"], "next, previous; \u2191 \u2193 in the list"],
      [["Enter"], "go to the chosen one"],
      [["L"], "the list"],
      [["W"], "rows: kept, all, filtered, yours"],
      [["/"], "find in the list"],
      [["Q"], "the bundle's own thresholds"],
    ],
  ],
  [
    "Your corrections",
    [
      [["A"], "accept"],
      [["R"], "reject"],
      [["\u21e7B", "\u21e7M"], "relabel benign, malignant"],
      [["N"], "add a nodule: click, drag from its centre, or Enter at the cross"],
      [["[", "]"], "an added nodule smaller, larger by 1 mm"],
      [["D"], "caliper: drag, or Enter at both ends"],
      [["S"], "what was measured is its diameter"],
      [["E"], "note"],
      [["Del"], "take back what you said"],
      [["Ctrl Z", "Ctrl Y"], "undo, redo: what you said, and thresholds"],
      [["Ctrl S"], "export corrections.json"],
      [["Esc"], "leave a tool, a field or this window"],
    ],
  ],
];
const LEGEND = [
  ["filtered", "dotted ring: a candidate that was filtered"],
  ["benign", "ring: kept, benign"],
  ["unasked", "dashed ring: kept, malignancy not asked"],
  ["malignant", "double ring: kept, malignant"],
  ["truth", "square: a nodule of the truth"],
  ["missed", "square with a cross: missed"],
  ["added", "green: yours"],
];

function showHelp() {
  const dialog = byId("help");
  const terms = (pairs) =>
    el("dl", {}, ...pairs.flatMap(([term, words]) => [el("dt", {}, ...term), el("dd", {}, words)]));
  const sections = HELP.map(([name, keys]) =>
    el(
      "section",
      {},
      el("h3", {}, name),
      terms(keys.map(([names, words]) => [names.map((key) => el("kbd", {}, key)), words])),
    ),
  );
  const marks = LEGEND.map(([kind, words]) => [[el("i", { class: `glyph ${kind}`, "aria-hidden": "true" })], words]);
  const about =
    `Slices count from 0 as in findings.csv. The pictures are lossy (JPEG of quality ${facts.quality}, HU in 256 ` +
    "steps): what is said of HU is approximate. Nothing is sent anywhere; your corrections stay in this browser " +
    "until you export them.";
  const close = el("button", { type: "button", onclick: () => dialog.close() }, "Close", el("kbd", {}, "Esc"));
  dialog.replaceChildren(
    el("div", { class: "line" }, el("h2", { id: "help-title" }, "Keys and marks"), close),
    el(
      "div",
      { class: "sections" },
      ...sections,
      el("section", { class: "legend" }, el("h3", {}, "Marks"), terms(marks)),
      el("section", {}, el("h3", {}, "This page"), el("p", {}, about)),
    ),
  );
  dialog.showModal();
}

function crossBy(right, down) {
  const { u, v, flip } = PLANES[state.focus];
  const at = [...state.at];
  at[u] = nearest(at[u]) + right;
  at[v] = nearest(at[v]) + (flip ? -down : down);
  goTo(at);
}

const KEYS = {
  ArrowUp: () => stepSlices(state.focus, state.focus === "axial" ? 1 : -1),
  ArrowDown: () => stepSlices(state.focus, state.focus === "axial" ? -1 : 1),
  PageUp: () => stepSlices(state.focus, state.focus === "axial" ? 10 : -10),
  PageDown: () => stepSlices(state.focus, state.focus === "axial" ? -10 : 10),
  Home: () => stepSlices(state.focus, state.focus === "axial" ? 1e6 : -1e6),
  End: () => stepSlices(state.focus, state.focus === "axial" ? -1e6 : 1e6),
  1: () => setWindow(0),
  2: () => setWindow(1),
  3: () => setWindow(2),
  u: () => toggleLayer("mask"),
  c: () => toggleLayer("candidates"),
  b: () => toggleLayer("kept"),
  m: () => toggleLayer("malignant"),
  t: () => reading.truth && toggleLayer("truth"),
  h: toggleMarks,
  x: () => {
    state.cross = !state.cross;
    draw();
  },
  v: () => setTool("move"),
  n: () => setTool("add"),
  d: () => setTool("caliper"),
  "+": () => zoomAtCross(1.25),
  "=": () => zoomAtCross(1.25),
  "-": () => zoomAtCross(0.8),
  0: resetViews,
  j: () => chooseNext(1),
  k: () => chooseNext(-1),
  l: () => list.grid.focus({ preventScroll: true }),
  w: () => setShow(SHOWS[(SHOWS.findIndex(([id]) => id === list.show) + 1) % SHOWS.length][0]),
  "/": () => byId("search").focus(),
  q: resetLimits,
  a: () => judge("accept"),
  r: () => judge("reject"),
  e: () => byId("note") && byId("note").focus(),
  s: takeMeasured,
  "[": () => resizeAdded(-1),
  "]": () => resizeAdded(1),
  Delete: clearOpinion,
  Backspace: clearOpinion,
  "?": showHelp,
  Enter: () => {
    if (state.tool === "add") {
      state.draft = { at: [...state.at], diameter: UNKNOWN_MM };
      finishAdd();
    } else if (state.tool === "caliper") caliperAtCross();
    else if (state.chosen) choose(state.chosen);
  },
  Escape: () => {
    state.caliper = null;
    setTool("move");
    showDetail();
  },
};
const SHIFTED = {
  ArrowUp: () => crossBy(0, -1),
  ArrowDown: () => crossBy(0, 1),
  ArrowLeft: () => crossBy(-1, 0),
  ArrowRight: () => crossBy(1, 0),
  b: () => judge("benign"),
  m: () => judge("malignant"),
  "?": showHelp,
  "+": () => zoomAtCross(1.25),
  "/": () => byId("search").focus(), // where / is typed with Shift
};
const WITH_CONTROL = { z: doUndo, y: doRedo, s: doExport };
// A key that is held down goes on with these; of an accept it would make a toggle.
const HELD = /^(Arrow.*|Page.*|[-+=jk[\]zy])$/;

function onKey(event) {
  if (document.querySelector("dialog[open]")) return;
  // For a moment what had the focus in a dialog keeps it, though the dialog is closed.
  const target = event.target instanceof Element && !event.target.closest("dialog") ? event.target : document.body;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const writes = target.matches("textarea, input:not([type=range])");
  if (writes && (key === "Escape" || (key === "Enter" && target.matches("input")))) {
    event.preventDefault(); // else Escape empties the find field in some browsers, and the list stays searched
    target.blur(); // which takes what was written
    if (target.id === "search") list.grid.focus({ preventScroll: true });
    return;
  }
  const composes = event.getModifierState("AltGraph"); // [ and ] of many keyboards: it counts as Ctrl and Alt
  const control = (event.ctrlKey || event.metaKey) && !composes;
  if (writes && control && key === "s")
    list.grid.focus({ preventScroll: true }); // what was written is exported too
  else if (writes && !(control && target.dataset.shown === target.value)) return; // its own undo, while it has one
  const action = control
    ? event.shiftKey && key === "z"
      ? doRedo
      : event.shiftKey
        ? null
        : WITH_CONTROL[key]
    : event.altKey && !composes
      ? null
      : event.shiftKey
        ? SHIFTED[key] || (/^[^a-z]$/.test(key) && KEYS[key]) // digits and signs, where they are typed with Shift
        : KEYS[key];
  if (!action || (key === "Enter" && target.matches("button"))) return;
  event.preventDefault();
  if (event.repeat && !HELD.test(key)) return;
  action();
}
