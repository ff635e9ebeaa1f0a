// Which windows, layers, tools, thresholds and rows are switched on?

const byId = (id) => document.getElementById(id);

function say(words) {
  byId("live").textContent = "";
  byId("live").textContent = words;
}

// ---- tools
const LAYERS = [
  ["mask", "U-Net mask", "U"],
  ["candidates", "Candidates", "C"],
  ["kept", "Kept", "B"],
  ["malignant", "Malignant", "M"],
  ["truth", "Truth", "T"],
];
const TOOLS = [
  ["move", "Look", "V"],
  ["add", "Add nodule", "N"],
  ["caliper", "Caliper", "D"],
];

function toolButton(name, key, id, action) {
  return el("button", { type: "button", id, "aria-keyshortcuts": key, onclick: action }, name, el("kbd", {}, key));
}

function makeTools() {
  WINDOWS.forEach(({ name, key }, k) =>
    byId("windows").append(toolButton(name, key, `window-${key}`, () => setWindow(k))),
  );
  for (const [name, words, key] of LAYERS) {
    if (name === "truth" && !reading.truth) continue;
    const button = toolButton(words, key, `layer-${name}`, () => toggleLayer(name));
    button.prepend(
      el("i", {
        class: `glyph ${{ mask: "mask", candidates: "filtered", kept: "benign" }[name] || name}`,
        "aria-hidden": "true",
      }),
    );
    byId("layers").append(button);
  }
  byId("layers").append(toolButton("All marks", "H", "marks", toggleMarks));
  for (const [name, words, key] of TOOLS)
    byId("modes").append(toolButton(words, key, `tool-${name}`, () => setTool(name)));
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
  say(
    {
      move: "Click moves the cross.",
      add: "Click adds a nodule of 6 mm; drag from its centre for another size; Enter adds one at the cross.",
      caliper: "Drag from edge to edge; Enter sets both ends at the cross, one after the other.",
    }[name],
  );
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
const LIMIT_KEYS = { ArrowDown: -0.01, ArrowUp: 0.01, PageDown: -0.1, PageUp: 0.1 };
const SLIDER_KEYS = { ...LIMIT_KEYS, ArrowLeft: -0.01, ArrowRight: 0.01, Home: -1, End: 1 };

function makeThresholds() {
  const boxes = opinions.map(({ o, letter, bundle, defaults }) => {
    const sliders = STEPS.map((name) => {
      const id = `limit-${o}-${name}`;
      const words = `${comparing ? `${letter}: ` : ""}${LIMIT_NAMES[name]} threshold`;
      const least = name === "segmentation" ? defaults.segmentation : 0;
      const range = el("input", { type: "range", id, min: String(least), max: "1", step: "any", "aria-label": words });
      if (name === "segmentation") range.title = `of what lies below ${digits(least)} the bundle keeps nothing`;
      const number = el("input", {
        type: "number",
        id: `${id}-number`,
        min: String(least),
        max: "1",
        step: "any",
        "aria-label": `${words}, exactly`,
      });
      range.addEventListener("input", () => setLimit(o, name, Math.round(Number(range.value) * 100) / 100, id));
      for (const end of ["change", "blur"]) range.addEventListener(end, afterMove);
      number.addEventListener("blur", afterMove);
      const step = (event, by, from) => {
        if (!by || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
        event.preventDefault();
        event.stopPropagation();
        setLimit(o, name, Math.round((from + by) * 100) / 100, id);
      };
      range.addEventListener("keydown", (event) => step(event, SLIDER_KEYS[event.key], limits[o][name]));
      // A browser's own step of a number is 1: everything, or nothing.
      number.addEventListener("keydown", (event) => step(event, LIMIT_KEYS[event.key], Number(number.value)));
      number.addEventListener("change", () =>
        setLimit(o, name, number.value === "" ? defaults[name] : Number(number.value)),
      );
      const tick = el("span", { class: "tick", title: `the bundle's own: ${digits(defaults[name])}` });
      tick.style.left = `calc(7px + (100% - 14px) * ${(defaults[name] - least) / Math.max(1 - least, 1e-9)})`;
      return el(
        "div",
        { class: "limit" },
        el("label", { for: id }, LIMIT_NAMES[name]),
        el("span", { class: "track" }, range, tick),
        number,
      );
    });
    const moved = el("span", { id: `moved-${o}`, class: "by-you" });
    const title = comparing
      ? el("h2", { title: bundle.bundle }, `${letter}  ${bundle.bundle} `, moved)
      : el("h2", {}, "Thresholds", moved);
    return el(
      "div",
      { class: "limits", role: "group", "aria-label": comparing ? `Thresholds of ${letter}` : "Thresholds" },
      title,
      ...sliders,
    );
  });
  const reset = el(
    "button",
    {
      type: "button",
      id: "reset",
      "aria-keyshortcuts": "Q",
      title: "The bundle's own thresholds",
      onclick: () => resetLimits(),
    },
    "Reset",
    el("kbd", {}, "Q"),
  );
  byId("thresholds").replaceChildren(...boxes);
  byId("filters").append(reset);
  byId("thresholds").classList.toggle("two", comparing);
}

function showLimits() {
  for (const opinion of opinions) {
    const { o, defaults } = opinion;
    byId(`moved-${o}`).textContent = !areMoved(opinion) ? "" : comparing ? "moved" : "moved by you";
    for (const name of STEPS) {
      byId(`limit-${o}-${name}`).value = String(limits[o][name]);
      byId(`limit-${o}-${name}`).setAttribute(
        "aria-valuetext",
        `${digits(limits[o][name])}${limits[o][name] === defaults[name] ? ", the bundle's own" : ""}`,
      );
      const number = byId(`limit-${o}-${name}-number`);
      number.value = number.dataset.shown = digits(limits[o][name]);
      number.title = `exactly ${limits[o][name]}`;
      byId(`limit-${o}-${name}`)
        .closest(".limit")
        .classList.toggle("moved", limits[o][name] !== defaults[name]);
    }
  }
  byId("reset").disabled = !opinions.some(areMoved);
}

function setLimit(o, name, value, slider = "") {
  const next = limitWithin(o, name, value);
  if (next === limits[o][name]) return showLimits();
  limits[o][name] = next;
  addMove(`${comparing ? `${opinions[o].letter}: ` : ""}${LIMIT_NAMES[name]} \u2265 ${digits(next)}`, slider);
  return afterLimits();
}

const areMoved = ({ o, defaults }) => STEPS.some((name) => limits[o][name] !== defaults[name]);

function resetLimits() {
  if (!opinions.some(areMoved)) return;
  opinions.forEach(({ o, defaults }) => Object.assign(limits[o], defaults));
  addMove("thresholds reset");
  afterLimits();
}

function afterMove() {
  endMove();
  showWork();
}

let limitFrame = 0;
function afterLimits() {
  showLimits(); // at once: a frame later it would write over what is typed next
  limitFrame =
    limitFrame ||
    requestAnimationFrame(() => {
      limitFrame = 0;
      showCounts();
      refreshList();
      showDetail();
      showWork();
      draw();
    });
}

function showCounts() {
  byId("counts").replaceChildren(
    ...opinions.map(({ o, letter }) => {
      const counts = countsOf(o);
      const words = [`${counts.kept} of ${counts.all} kept`, `${counts.malignant} malignant`];
      if (counts.unasked) words.push(`${counts.unasked} not asked`);
      if (reading.truth) words.push(`${counts.hits} of ${truths.length} hit`, `${counts.falsePositives} false`);
      return el(
        "span",
        {},
        el("b", {}, `${comparing ? `${letter}: ` : ""}${words[0]}`),
        ` \u00b7 ${words.slice(1).join(" \u00b7 ")}`,
      );
    }),
  );
}

// ---- rows
function makeFilters() {
  byId("which").replaceChildren(
    ...SHOWS.map(([id, name, title]) =>
      el("button", { type: "button", id: `show-${id}`, title, onclick: () => setShow(id) }, name),
    ),
  );
  byId("search").addEventListener("input", () => {
    list.text = byId("search").value;
    list.grid.scrollTop = 0;
    refreshList();
  });
  showFilters();
}

function showFilters() {
  for (const [id] of SHOWS) byId(`show-${id}`).setAttribute("aria-pressed", String(id === list.show));
}

function setShow(id) {
  list.show = id;
  list.grid.scrollTop = 0;
  if (id === "all" || id === "filtered") state.layers.candidates = true; // what is listed is seen
  showFilters();
  showTools();
  refreshList();
  draw();
}
