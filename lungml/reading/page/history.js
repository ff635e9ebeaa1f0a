// What was done, how is it undone, and where is it kept?

// Undone is what costs work: what was said of a finding, and where a threshold was set. Windows, layers, zoom and the
// order of rows are ways of looking, which the same key takes back. The alias is who reads, not what was read: a step
// back never changes under whose name the next file goes out.
const STORED_STEPS = 60; // of the history, so that what is stored stays small
const STORED_CORRECTIONS = 6000; // in all of those steps
const STORE_AFTER_MS = 300; // a slider moves sixty times a second
const STORE_KEY = ["luna", reading.series_uid, ...reading.bundles.map((b) => b.bundle), reading.made].join("|");
const ALIAS_KEY = "luna|reader";

const reader = {
  alias: "",
  // Every state since the start: what led to it, corrections by id and how many changes made them, limits.
  steps: [{ what: "start", change: 0, corrections: {}, limits: limitsNow() }],
  now: 0,
  changes: 0, // of corrections, also those that were undone and overwritten
  exported: 0, // the change that was exported last
  exportedAs: "", // and by whom
  storage: true,
};
let moving = ""; // the slider whose moves are one step
let storeTimer = 0;

const stepNow = () => reader.steps[reader.now];
const corrections = () => stepNow().corrections;
const correctionOf = (row) => corrections()[row.id] || null;
const utcNow = () => new Date().toISOString().replace(/\.\d+Z$/, "Z");

function limitsNow() {
  return limits.map((each) => ({ ...each }));
}

function change(what, id, correction) {
  const next = { ...corrections() };
  if (correction) next[id] = correction;
  else delete next[id];
  addStep(what, next);
}

function addStep(what, next) {
  endMove();
  reader.changes += 1;
  push({ what, change: reader.changes, corrections: next, limits: limitsNow() });
  store();
}

function push(step) {
  reader.steps = [...reader.steps.slice(0, reader.now + 1), step];
  reader.now = reader.steps.length - 1;
}

// Thresholds were moved by a slider: its moves are one step until `endMove`, or each is one where no slider is named.
function addMove(what, slider = "") {
  if (slider !== moving) endMove();
  const step = { ...stepNow(), what, limits: limitsNow() };
  if (slider && slider === moving) reader.steps[reader.now] = step;
  else push(step);
  moving = slider;
  storeSoon();
}

function endMove() {
  if (!moving) return;
  moving = "";
  const before = reader.steps[reader.now - 1];
  if (JSON.stringify(before.limits) !== JSON.stringify(stepNow().limits)) return;
  reader.steps.pop(); // it was moved there and back
  reader.now -= 1;
  storeSoon();
}

// The step that was undone and the rows that it said something of, or null.
function undo() {
  endMove();
  return reader.now > 0 ? goToStep(reader.now - 1, stepNow()) : null;
}

function redo() {
  endMove();
  return reader.now + 1 < reader.steps.length ? goToStep(reader.now + 1, reader.steps[reader.now + 1]) : null;
}

function goToStep(now, { what }) {
  const [before, after] = [corrections(), reader.steps[now].corrections];
  reader.now = now;
  takeLimits();
  store();
  const ids = [...new Set([...Object.keys(before), ...Object.keys(after)])];
  return { what, ids: ids.filter((id) => JSON.stringify(before[id]) !== JSON.stringify(after[id])) };
}

function takeLimits() {
  stepNow().limits.forEach((each, o) => Object.assign(limits[o], each));
}

function markExported() {
  Object.assign(reader, { exported: stepNow().change, exportedAs: reader.alias });
  store();
}

// Whether something was said that the last file does not hold, or not by that name.
function isUnsent() {
  const sent = reader.exported === stepNow().change && reader.exportedAs === reader.alias;
  return !sent && (Object.keys(corrections()).length > 0 || reader.exported !== 0);
}

// ---- in this browser
// Chromium refuses a `file://` page its store when it is asked for before the browser has taken note of the page, which
// a busy machine does late; for as long as it is open such a page has another one, empty and forgotten with it. By the
// second frame the browser has taken note; a page that is opened out of sight draws none, so that a second is enough.
const STORE_WITHIN_MS = 1000;

function storeIsThere() {
  const frames = new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return Promise.race([frames, new Promise((done) => setTimeout(done, STORE_WITHIN_MS))]);
}

function store() {
  clearTimeout(storeTimer);
  storeTimer = 0;
  const before = reader.storage;
  const count = Object.keys(corrections()).length;
  const most = clamp(Math.floor(STORED_CORRECTIONS / Math.max(1, count)), 1, STORED_STEPS);
  reader.storage = storeSteps(most) || storeSteps(1); // without the history, where there is no room for it
  if (reader.storage !== before) showNotices(); // export before the page is closed
}

function storeSoon() {
  clearTimeout(storeTimer);
  storeTimer = setTimeout(store, STORE_AFTER_MS);
}

function storeWaiting() {
  if (storeTimer) store();
}

function storeSteps(most) {
  const from = clamp(reader.steps.length - most, 0, reader.now);
  const steps = reader.steps.slice(from, from + most);
  const { now, changes, exported, exportedAs } = reader;
  try {
    localStorage.setItem(STORE_KEY, JSON.stringify({ steps, now: now - from, changes, exported, exportedAs }));
    localStorage.setItem(ALIAS_KEY, reader.alias);
    return true;
  } catch {
    return false;
  }
}

function restore() {
  clearTimeout(storeTimer);
  storeTimer = 0;
  moving = "";
  let text = null;
  try {
    const alias = localStorage.getItem(ALIAS_KEY) || "";
    reader.alias = ALIAS.test(alias) ? alias : "";
    text = localStorage.getItem(STORE_KEY);
    reader.storage = true;
  } catch {
    reader.storage = false;
  }
  if (text === null) return;
  const saved = savedIn(text);
  if (saved) {
    Object.assign(reader, saved);
    takeLimits();
  } else troubles.push("What this browser kept of your corrections cannot be read; import your last export.");
}

// The history in a stored text, or null where any of it is not as this page writes it.
function savedIn(text) {
  const known = (id, correction) => (correction.kind === "add" ? !rowById.has(id) : rowById.has(id));
  const isRight = (step) =>
    typeof step.what === "string" &&
    Number.isInteger(step.change) &&
    Object.entries(step.corrections).every(([id, each]) => wrongWith(each) === "" && known(id, each)) &&
    opinions.every(({ o }) =>
      STEPS.every((name) => step.limits[o][name] === limitWithin(o, name, step.limits[o][name])),
    );
  try {
    const { steps, now, changes, exported, exportedAs } = JSON.parse(text);
    if (!steps.every(isRight) || !Number.isInteger(now) || !steps[now]) return null;
    if (![changes, exported].every(Number.isInteger) || typeof exportedAs !== "string") return null;
    return { steps, now, changes, exported, exportedAs };
  } catch {
    return null;
  }
}
