// How do the parts become one page that keys and a mouse drive?

const byId = (id) => document.getElementById(id);
const times = { firstPicture: null, allSlices: null, marks: null };
let ready = false;
const troubles = [];

function say(words) {
  byId("live").textContent = "";
  byId("live").textContent = words;
}

// ---- head
function showHeader() {
  byId("not-for").textContent = reading.note;
  const rows = [["Scan", reading.series_uid]];
  for (const { letter, bundle } of opinions) {
    const asked = bundle.asked_as === bundle.bundle ? "" : ` (${bundle.asked_as})`;
    const origin = bundle.origin === "phantom" ? "phantom-trained" : `trained on ${bundle.origin} scans`;
    rows.push([comparing ? letter : "Bundle", `${bundle.bundle}${asked}, recipe ${bundle.recipe}, ${origin}`]);
  }
  rows.splice(1, 0, ["Made", `${reading.made}, luna ${reading.luna_version}`]);
  byId("facts").replaceChildren(el("dl", {}, ...rows.map(([name, words]) =>
    el("div", {}, el("dt", {}, name), el("dd", { title: words }, words)))));
}

function showNotices() {
  const words = [...reading.scan.warnings];
  for (const { bundle } of opinions) {
    if (bundle.origin === "phantom") {
      words.push(`${bundle.bundle} learned from phantoms, not from patients: what it says of a patient means nothing.`);
    }
    if (bundle.left_out) words.push(`${bundle.bundle}: ${bundle.left_out} places more were marked than a reading holds.`);
  }
  if (!reader.storage) words.push("This browser keeps nothing for this page: export your corrections before you close it.");
  words.push(...troubles);
  byId("notices").replaceChildren(...words.map((text) => el("p", { class: "notice" }, text)));
}

// ---- tools
const LAYERS = [
  ["mask", "U-Net mask", "U"], ["candidates", "Candidates", "C"], ["kept", "Kept", "K"], ["malignant", "Malignant", "M"],
  ["truth", "Truth", "T"],
];
const TOOLS = [["move", "Look", "V"], ["add", "Add nodule", "N"], ["caliper", "Caliper", "D"]];

function toolButton(name, key, id, action) {
  return el("button", { type: "button", id, "aria-keyshortcuts": key, onclick: action }, name, el("kbd", {}, key));
}

function makeTools() {
  WINDOWS.forEach(({ name, key }, k) => byId("windows").append(toolButton(name, key, `window-${key}`, () => setWindow(k))));
  for (const [name, words, key] of LAYERS) {
    if (name === "truth" && !reading.truth) continue;
    const button = toolButton(words, key, `layer-${name}`, () => toggleLayer(name));
    button.prepend(el("i", { class: `glyph ${{ mask: "mask", candidates: "filtered", kept: "benign" }[name] || name}`, "aria-hidden": "true" }));
    byId("layers").append(button);
  }
  byId("layers").append(toolButton("All marks", "H", "marks", toggleMarks));
  for (const [name, words, key] of TOOLS) byId("modes").append(toolButton(words, key, `tool-${name}`, () => setTool(name)));
  byId("modes").append(toolButton("Whole", "0", "whole", resetViews));
  showTools();
}

function showTools() {
  WINDOWS.forEach(({ key }, k) => byId(`window-${key}`).setAttribute("aria-pressed", String(k === state.window)));
  for (const [name] of LAYERS) {
    const button = byId(`layer-${name}`);
    if (button) button.setAttribute("aria-pressed", String(state.layers[name]));
  }
  byId("marks").setAttribute("aria-pressed", String(state.marks));
  for (const [name] of TOOLS) byId(`tool-${name}`).setAttribute("aria-pressed", String(name === state.tool));
  byId("views").dataset.tool = state.tool;
}

function setWindow(k) {
  state.window = k;
  showTools();
  draw();
}

function toggleLayer(name) {
  state.layers[name] = !state.layers[name];
  if (state.layers[name]) state.marks = true;
  showTools();
  say(`${LAYERS.find(([id]) => id === name)[1]} ${state.layers[name] ? "shown" : "hidden"}`);
  draw();
}

function toggleMarks() {
  state.marks = !state.marks;
  showTools();
  say(state.marks ? "Marks shown" : "Marks hidden");
  draw();
}

function setTool(name) {
  state.tool = name;
  state.draft = null;
  showTools();
  say({ move: "Click moves the cross.", add: "Click adds a nodule of 6 mm; drag from its centre for another size; Enter adds one at the cross.",
    caliper: "Drag from edge to edge; Enter sets both ends at the cross, one after the other." }[name]);
  draw();
}

function finishAdd() {
  const { at, diameter } = state.draft;
  state.draft = null;
  addAt(at, diameter);
  setTool("move");
}

function finishCaliper(moved) {
  if (!moved) state.caliper = null;
  else say(`${caliperMm(state.caliper).toFixed(1)} millimetres`);
  showDetail();
}

// With keys: the ends are where the cross is.
function caliperAtCross() {
  const { caliper, focus } = state;
  const at = [...state.at];
  if (caliper && caliper.open && caliper.plane === focus) state.caliper = { plane: focus, a: caliper.a, b: at };
  else state.caliper = { plane: focus, a: at, b: at, open: true };
  say(state.caliper.open ? "First end set." : `${caliperMm(state.caliper).toFixed(1)} millimetres`);
  showDetail();
  draw();
}

// ---- thresholds
const LIMIT_NAMES = { segmentation: "U-Net", nodule: "Nodule", malignant: "Malignant" };
const digits = (value) => String(Math.round(value * 1e4) / 1e4);

function makeThresholds() {
  const boxes = opinions.map(({ o, letter, bundle, defaults }) => {
    const sliders = STEPS.map((name) => {
      const id = `limit-${o}-${name}`;
      const words = `${comparing ? `${letter}: ` : ""}${LIMIT_NAMES[name]} threshold`;
      const least = name === "segmentation" ? defaults.segmentation : 0;
      const range = el("input", { type: "range", id, min: String(least), max: "1", step: "any", "aria-label": words });
      const number = el("input", { type: "number", id: `${id}-number`, min: String(least), max: "1", step: "any", "aria-label": `${words}, exactly` });
      range.addEventListener("input", () => setLimit(o, name, Math.round(Number(range.value) * 100) / 100));
      range.addEventListener("keydown", (event) => {
        const by = { ArrowLeft: -0.01, ArrowDown: -0.01, ArrowRight: 0.01, ArrowUp: 0.01, PageDown: -0.1, PageUp: 0.1 }[event.key];
        if (!by) return;
        event.preventDefault();
        event.stopPropagation();
        setLimit(o, name, Math.round((limits[o][name] + by) * 100) / 100);
      });
      number.addEventListener("change", () => setLimit(o, name, number.value === "" ? defaults[name] : Number(number.value)));
      const tick = el("span", { class: "tick", title: `the bundle's own: ${digits(defaults[name])}` });
      tick.style.left = `calc(7px + (100% - 14px) * ${(defaults[name] - least) / Math.max(1 - least, 1e-9)})`;
      return el("div", { class: "limit" }, el("label", { for: id }, LIMIT_NAMES[name]),
        el("span", { class: "track" }, range, tick), number);
    });
    const title = comparing ? el("h2", { title: bundle.bundle }, `${letter}  ${bundle.bundle}`) : el("h2", {}, "Thresholds");
    return el("div", { class: "limits", role: "group", "aria-label": comparing ? `Thresholds of ${letter}` : "Thresholds" }, title, ...sliders);
  });
  const reset = el("button", { type: "button", id: "reset", "aria-keyshortcuts": "O", title: "The bundle's own thresholds", onclick: () => resetLimits() },
    "Reset", el("kbd", {}, "O"));
  byId("thresholds").replaceChildren(...boxes, reset);
  byId("thresholds").classList.toggle("two", comparing);
}

function showLimits() {
  for (const { o, defaults } of opinions) {
    for (const name of STEPS) {
      byId(`limit-${o}-${name}`).value = String(limits[o][name]);
      byId(`limit-${o}-${name}`).setAttribute("aria-valuetext", `${digits(limits[o][name])}${limits[o][name] === defaults[name] ? ", the bundle's own" : ""}`);
      byId(`limit-${o}-${name}-number`).value = digits(limits[o][name]);
      byId(`limit-${o}-${name}`).closest(".limit").classList.toggle("moved", limits[o][name] !== defaults[name]);
    }
  }
  byId("reset").disabled = opinions.every(({ o, defaults }) => STEPS.every((name) => limits[o][name] === defaults[name]));
}

function setLimit(o, name, value) {
  const least = name === "segmentation" ? opinions[o].defaults.segmentation : 0;
  limits[o][name] = Number.isFinite(value) ? clamp(value, least, 1) : opinions[o].defaults[name];
  afterLimits();
}

function resetLimits() {
  opinions.forEach(({ o, defaults }) => Object.assign(limits[o], defaults));
  afterLimits();
}

let limitFrame = 0;
function afterLimits() {
  limitFrame = limitFrame || requestAnimationFrame(() => {
    limitFrame = 0;
    showLimits();
    showCounts();
    refreshList();
    showDetail();
    draw();
  });
}

function showCounts() {
  byId("counts").replaceChildren(...opinions.map(({ o, letter }) => {
    const counts = countsOf(o);
    const words = [`${counts.kept} of ${counts.all} kept`, `${counts.malignant} malignant`];
    if (counts.unasked) words.push(`${counts.unasked} not asked`);
    if (reading.truth) words.push(`${counts.hits} of ${truths.length} nodules hit`, `${counts.falsePositives} false`);
    return el("span", {}, el("b", {}, `${comparing ? `${letter}: ` : ""}${words[0]}`), ` \u00b7 ${words.slice(1).join(" \u00b7 ")}`);
  }));
}

// ---- rows
function makeFilters() {
  byId("which").replaceChildren(...SHOWS.map(([id, name, title]) =>
    el("button", { type: "button", id: `show-${id}`, title, onclick: () => setShow(id) }, name)));
  byId("search").addEventListener("input", () => {
    list.text = byId("search").value;
    list.box.scrollTop = 0;
    refreshList();
  });
  showFilters();
}

function showFilters() {
  for (const [id] of SHOWS) byId(`show-${id}`).setAttribute("aria-pressed", String(id === list.show));
}

function setShow(id) {
  list.show = id;
  list.box.scrollTop = 0;
  if (id === "all" || id === "filtered") state.layers.candidates = true; // what is listed is seen
  showFilters();
  showTools();
  refreshList();
  draw();
}

// ---- the reader's work
function showWork() {
  const count = Object.keys(corrections()).length;
  const unsent = reader.exported !== reader.now && count > 0;
  const history = `${reader.now} of ${reader.steps.length - 1} steps`;
  const alias = el("input", { id: "alias", maxlength: "32", placeholder: "reader alias", "aria-label": "Reader alias, not your name",
    title: "Letters, digits, . _ - and not your name", autocomplete: "off", spellcheck: "false", value: reader.alias });
  alias.addEventListener("change", () => setAlias(alias));
  byId("work").replaceChildren(
    el("div", { class: "line" },
      el("b", { id: "said" }, `${count} correction${count === 1 ? "" : "s"}`),
      el("span", { id: "history", class: "soft" }, history),
      el("span", { class: "soft" }, unsent ? "not exported" : count ? "exported" : ""),
      el("button", { type: "button", id: "undo", "aria-keyshortcuts": "Control+Z", disabled: reader.now === 0, onclick: doUndo }, "Undo"),
      el("button", { type: "button", id: "redo", "aria-keyshortcuts": "Control+Y", disabled: reader.now + 1 >= reader.steps.length, onclick: doRedo }, "Redo")),
    el("div", { class: "line" }, alias,
      el("button", { type: "button", id: "import", onclick: () => byId("import-file").click() }, "Import"),
      el("button", { type: "button", id: "export", class: "main", "aria-keyshortcuts": "Control+S", onclick: doExport }, "Export")));
}

function doUndo() {
  const what = undo();
  afterChange(what ? `Undone: ${what}` : "Nothing to undo");
}

function doRedo() {
  const what = redo();
  afterChange(what ? `Done again: ${what}` : "Nothing to do again");
}

function setAlias(input) {
  if (input.value && !ALIAS.test(input.value)) {
    input.setAttribute("aria-invalid", "true");
    say("An alias has letters, digits, dots, underscores and hyphens, 32 at most.");
    return;
  }
  reader.alias = input.value;
  input.removeAttribute("aria-invalid");
  store();
}

function doExport() {
  if (!reader.alias) return askAlias();
  exportFile();
  return afterChange("corrections.json exported");
}

function askAlias() {
  const dialog = byId("ask-alias");
  const input = el("input", { id: "alias-asked", maxlength: "32", autocomplete: "off", spellcheck: "false", "aria-describedby": "alias-rule" });
  const form = el("form", { method: "dialog" },
    el("h2", { id: "alias-title" }, "Who reads?"),
    el("p", { id: "alias-rule" }, "An alias, not your name: letters, digits, dots, underscores and hyphens, 32 at most."),
    input,
    el("div", { class: "line" }, el("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), el("button", { type: "submit", class: "main" }, "Export")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!ALIAS.test(input.value)) {
      input.setAttribute("aria-invalid", "true");
      input.focus();
      return;
    }
    reader.alias = input.value;
    dialog.close();
    doExport();
  });
  dialog.replaceChildren(form);
  dialog.showModal();
  input.focus();
}

async function importFile(file) {
  try {
    const { read, alias } = importText(await file.text());
    step(`import ${Object.keys(read).length}`, { ...corrections(), ...read });
    if (!reader.alias) reader.alias = alias;
    afterChange(`${Object.keys(read).length} corrections imported`);
    trouble("");
  } catch (error) {
    trouble(`${file.name} was not imported: ${error instanceof SyntaxError ? "it is no JSON" : error.message}`);
  }
}

function trouble(words) {
  troubles.splice(0, troubles.length, ...troubles.filter((each) => !each.includes("was not imported")), ...(words ? [words] : []));
  showNotices();
  if (words) say(words);
}

// ---- what lies under the cross or the pointer
function placeWords(at, name) {
  const irc = toScan(at.map(nearest));
  const mm = toPatient(at).map((v) => v.toFixed(1));
  const level = levelAt(at);
  const hu = level === null ? "" : `, about ${Math.round(facts.level_hu[level] / 5) * 5} HU`;
  return `${name} x ${mm[0]}, y ${mm[1]}, z ${mm[2]} mm (LPS); index ${irc[0]}, row ${irc[1]}, col ${irc[2]}${hu}`;
}

function showPlace() {
  byId("where").textContent = placeWords(state.at, "Cross");
  byId("stack").value = String(nearest(state.at[2]));
  for (const [name, plane] of Object.entries(PLANES)) {
    views[name].canvas.setAttribute("aria-label", `${plane.name}, ${toScan(state.at.map(nearest))[facts.axes[2 - plane.w]]} of ${SIZE[plane.w] - 1}; arrow keys scroll`);
  }
  byId("stack").setAttribute("aria-valuetext", `${toScan(state.at.map(nearest))[facts.axes[0]]} of ${NZ - 1}`);
}

function showPointer(view, at) {
  const inPicture = at && at.every((value, axis) => value > -0.5 && value < SIZE[axis] - 0.5);
  byId("where").textContent = inPicture ? placeWords(inside(at), "Pointer") : placeWords(state.at, "Cross");
}

// ---- keys
const HELP = [
  ["Slices", [
    [["\u2191", "\u2193"], "slice to head, to feet; in the other planes to front, back or right, left"],
    [["Page\u2191", "Page\u2193"], "ten slices"], [["Home", "End"], "first, last"], [["\u21e7 arrows"], "move the cross in the plane"],
    [["Wheel"], "slices; with Ctrl: zoom"], [["+", "\u2212", "0"], "zoom at the cross, whole picture"],
    [["\u21e7 drag"], "pan when zoomed; the right button does as well"],
  ]],
  ["Windows and layers", [
    [["1", "2", "3"], "lung, mediastinum, bone"], [["U"], "U-Net mask"], [["C"], "candidates that were filtered"], [["K"], "kept, not malignant"],
    [["M"], "malignant"], [["T"], "truth"], [["H"], "all marks"], [["X"], "cross"],
  ]],
  ["Findings", [
    [["J", "F"], "next, previous; \u2191 \u2193 in the list"], [["Enter"], "go to the chosen one"], [["L"], "the list"],
    [["W"], "rows: kept, all, filtered, yours"], [["/"], "find in the list"], [["O"], "the bundle's own thresholds"],
  ]],
  ["Your corrections", [
    [["A"], "accept"], [["R"], "reject"], [["\u21e7B", "\u21e7M"], "relabel benign, malignant"],
    [["N"], "add a nodule: click, drag from its centre, or Enter at the cross"], [["[", "]"], "an added nodule smaller, larger by 1 mm"],
    [["D"], "caliper: drag, or Enter at both ends"], [["S"], "what was measured is its diameter"], [["E"], "note"],
    [["Del"], "take back what you said"], [["Ctrl Z", "Ctrl Y"], "undo, redo"], [["Ctrl S"], "export corrections.json"],
    [["Esc"], "leave a tool, a field or this window"],
  ]],
];
const LEGEND = [
  ["filtered", "dotted ring: a candidate that was filtered"], ["benign", "ring: kept, benign"],
  ["unasked", "dashed ring: kept, malignancy not asked"], ["malignant", "double ring: kept, malignant"],
  ["truth", "square: a nodule of the truth"], ["missed", "square with a cross: missed"], ["added", "green: yours"],
];

function showHelp() {
  const dialog = byId("help");
  const terms = (pairs) => el("dl", {}, ...pairs.flatMap(([term, words]) => [el("dt", {}, ...term), el("dd", {}, words)]));
  const sections = HELP.map(([name, keys]) =>
    el("section", {}, el("h3", {}, name), terms(keys.map(([names, words]) => [names.map((key) => el("kbd", {}, key)), words]))));
  const marks = LEGEND.map(([kind, words]) => [[el("i", { class: `glyph ${kind}`, "aria-hidden": "true" })], words]);
  const about = `Slices count from 0 as in findings.csv. The pictures are lossy (JPEG of quality ${facts.quality}, HU in 256 steps): ` +
    "what is said of HU is approximate. Nothing is sent anywhere; your corrections stay in this browser until you export them.";
  const close = el("button", { type: "button", onclick: () => dialog.close() }, "Close", el("kbd", {}, "Esc"));
  dialog.replaceChildren(el("div", { class: "line" }, el("h2", { id: "help-title" }, "Keys and marks"), close),
    el("div", { class: "sections" }, ...sections, el("section", { class: "legend" }, el("h3", {}, "Marks"), terms(marks)),
      el("section", {}, el("h3", {}, "This page"), el("p", {}, about))));
  dialog.showModal();
}

function crossBy(right, down) {
  const { u, v, flip } = PLANES[state.focus];
  const at = [...state.at];
  at[u] = nearest(at[u]) + right;
  at[v] = nearest(at[v]) + (flip ? -down : down);
  moveTo(at);
}

const KEYS = {
  ArrowUp: () => scroll(state.focus, state.focus === "axial" ? 1 : -1),
  ArrowDown: () => scroll(state.focus, state.focus === "axial" ? -1 : 1),
  PageUp: () => scroll(state.focus, state.focus === "axial" ? 10 : -10),
  PageDown: () => scroll(state.focus, state.focus === "axial" ? -10 : 10),
  Home: () => scroll(state.focus, state.focus === "axial" ? 1e6 : -1e6),
  End: () => scroll(state.focus, state.focus === "axial" ? -1e6 : 1e6),
  1: () => setWindow(0),
  2: () => setWindow(1),
  3: () => setWindow(2),
  u: () => toggleLayer("mask"),
  c: () => toggleLayer("candidates"),
  k: () => toggleLayer("kept"),
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
  f: () => chooseNext(-1),
  l: () => list.box.focus(),
  w: () => setShow(SHOWS[(SHOWS.findIndex(([id]) => id === list.show) + 1) % SHOWS.length][0]),
  "/": () => byId("search").focus(),
  o: resetLimits,
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

function onKey(event) {
  if (document.querySelector("dialog[open]")) return;
  // For a moment what had the focus in a dialog keeps it, though the dialog is closed.
  const target = event.target instanceof Element && !event.target.closest("dialog") ? event.target : document.body;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const writes = target.matches("textarea, input:not([type=range])");
  if (writes && (key === "Escape" || (key === "Enter" && target.matches("input")))) {
    target.blur(); // which takes what was written
    if (target.id === "search") list.box.focus();
    return;
  }
  if (writes) return;
  const control = event.ctrlKey || event.metaKey;
  const action = control
    ? (event.shiftKey && key === "z" ? doRedo : event.shiftKey ? null : WITH_CONTROL[key])
    : event.altKey ? null : event.shiftKey ? SHIFTED[key] : KEYS[key];
  if (!action || (key === "Enter" && target.matches("button, [role=row]"))) return;
  event.preventDefault();
  action();
}

// ---- start
function firstPoint() {
  const [row] = findingRows.filter((each) => each.parts.some(kept));
  return row ? placeOf(row).at : SIZE.map((size) => nearest((size - 1) / 2));
}

async function start() {
  restore();
  showHeader();
  state.at = inside(firstPoint());
  makeViews();
  makeTools();
  makeThresholds();
  makeFilters();
  makeList();
  byId("stack").max = String(NZ - 1);
  byId("stack").addEventListener("input", () => {
    const at = [...state.at];
    at[2] = Number(byId("stack").value);
    moveTo(at);
  });
  document.addEventListener("keydown", onKey);
  byId("open-help").addEventListener("click", showHelp);
  byId("import-file").addEventListener("change", () => {
    const [file] = byId("import-file").files;
    if (file) importFile(file);
    byId("import-file").value = "";
  });
  window.addEventListener("storage", (event) => { // the same page in another tab
    if (event.key !== STORE_KEY) return;
    restore();
    refreshList();
    showDetail();
    showWork();
    draw();
  });
  showNotices();
  showLimits();
  showCounts();
  refreshList();
  showWork();
  showPlace();
  const first = list.rows.find((row) => row.parts.length) || list.rows[0];
  if (first) choose(first.id);
  else showDetail();
  const isTrue = await decodeSlices(nearest(state.at[2]), (z) => {
    if (times.firstPicture === null) times.firstPicture = performance.now();
    if (nearest(state.at[2]) === z) draw("axial");
    if (decodedCount % 16 === 0 || decodedCount === NZ) {
      decodedStage += 1;
      draw("coronal", "sagittal");
      byId("loading").textContent = decodedCount < NZ ? `${decodedCount} of ${NZ} slices loaded` : "";
    }
  });
  times.allSlices = performance.now();
  if (!isTrue) troubles.push("This browser changes what a page reads from its pictures: what is shown here is not true. Use another.");
  try {
    masks = await readMarks();
    times.marks = performance.now();
  } catch (error) {
    console.warn(error);
    troubles.push("This browser cannot unpack the U-Net's mask; everything else works. A newer one can.");
  }
  ready = true;
  document.body.dataset.ready = "";
  showNotices();
  draw();
}

// For tests: what is shown, to read only.
window.luna = Object.freeze({
  get ready() { return ready; },
  get times() { return { ...times }; },
  get frames() { return drawnFrames; },
  get state() { return JSON.parse(JSON.stringify({ ...state, scan: toScan(state.at.map(nearest)), show: list.show })); },
  get limits() { return JSON.parse(JSON.stringify(limits)); },
  get counts() { return opinions.map(({ o }) => countsOf(o)); },
  get rows() { return list.rows.map((row) => ({ id: row.id, kind: KIND_OF_ROW(row), status: statusOf(row) })); },
  get corrections() { return JSON.parse(JSON.stringify(Object.values(corrections()))); },
  get history() { return { now: reader.now, steps: reader.steps.length - 1 }; },
  huAt: (mm) => facts.level_hu[levelAt(toVoxel(mm))],
  // Pixels of CSS from the corner of a plane's canvas.
  screenOf: (name, mm) => toScreen(views[name], toVoxel(mm)),
});

start();
