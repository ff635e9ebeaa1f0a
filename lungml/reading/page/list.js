// Which findings are there, in what order, and which one is looked at?

const ROW_PX = 46; // as the style sheet has it
const SPARE_ROWS = 6;

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== ""));
  return node;
}

const list = { show: "kept", sort: "rank", down: true, text: "", rows: [], box: null, space: null };

const SHOWS = [
  ["kept", "Kept", "What the thresholds keep, what is missed and what you added"],
  ["all", "All", "Every candidate, filtered ones as well"],
  ["filtered", "Filtered", "Only what the thresholds filter out"],
  ["mine", "Yours", "Only what you said something of"],
];

const numberIn = (row, o, field) => (row.parts[o] ? row.parts[o][field] : null);
const placeOf = (row) => row.parts.find(kept) || row.parts.find(Boolean) || row;

function columns() {
  const probability = (o, field, name) => ({ id: `${field}${o}`, name, value: (row) => numberIn(row, o, field) });
  const perOpinion = comparing
    ? opinions.flatMap(({ o, letter }) => [probability(o, "nodule", `${letter} nod.`),
      probability(o, "malignant", `${letter} mal.`)])
    : [probability(0, "nodule", "Nodule"), probability(0, "malignant", "Malignant")];
  return [
    { id: "rank", name: "No.", value: (row) => -row.rank },
    ...perOpinion,
    { id: "diameter", name: "\u2300 mm", value: (row) => placeOf(row).diameter },
    { id: "slice", name: "Slice", value: (row) => toScan(placeOf(row).at)[facts.axes[0]] },
  ];
}

findingRows.forEach((row, k) => {
  row.rank = k + 1;
});

function missRows() {
  return opinions.flatMap(({ o }) => missesOf(o).map((miss) => ({ id: `miss:${o}:${miss.nodule.n}`, miss, parts: [],
    at: miss.nodule.at, mm: miss.nodule.mm, diameter: miss.nodule.diameter })));
}

const anyRow = (id) => rowById.get(id) || addedRows().find((row) => row.id === id) ||
  missRows().find((row) => row.id === id) || null;

function chosenPlace() {
  const row = anyRow(state.chosen);
  return row ? placeOf(row) : null;
}

const rowNumber = (row) => (row.added ? `+${row.number}` : row.miss ? "missed" : row.parts.filter(Boolean).map(nameOf).join(" "));

function statusOf(row) {
  if (row.added) return row.added.text ? `added by you: ${row.added.text}` : wordsOf(row.added);
  if (row.miss) {
    const by = comparing ? ` by ${opinions[row.miss.o].letter}` : "";
    const kind = { true: ", malignant", false: ", benign", null: "" }[row.miss.nodule.malignant];
    return `nodule${kind} missed${by}: ${row.miss.why}`;
  }
  const lead = leadOf(row);
  const words = [];
  if (comparing) words.push(agreementOf(row));
  words.push(`${STAGE_WORDS[stageOf(lead)]}: ${reasonOf(lead)}`);
  return words.join(" \u00b7 ");
}

function tagsOf(row) {
  const tags = [];
  const verdicts = [...new Set(row.parts.filter(Boolean).map(verdictOf).filter(Boolean))];
  for (const verdict of verdicts) tags.push([verdict, verdict === "hit" ? "truth" : verdict.startsWith("nodule") ? "missed" : "plain"]);
  const mine = row.added ? "" : wordsOf(correctionOf(row));
  if (mine) tags.push([mine, "reader"]);
  return tags;
}

const KIND_OF_ROW = (row) => (row.added ? "added" : row.miss ? "missed" : stageOf(leadOf(row)));

function visibleRows() {
  const text = list.text.trim().toLowerCase();
  const passes = {
    kept: (row) => row.parts.some(kept),
    all: () => true,
    filtered: (row) => !row.parts.some(kept),
    mine: (row) => correctionOf(row) !== null,
  }[list.show];
  const first = [...addedRows(), ...(list.show === "filtered" || list.show === "mine" ? [] : missRows())];
  const rows = [...(list.show === "filtered" ? [] : first), ...findingRows.filter(passes)];
  const column = columns().find(({ id }) => id === list.sort) || columns()[0];
  const worth = new Map(rows.map((row) => [row, row.rank ? column.value(row) : column.id === "rank" ? Infinity : column.value(row)]));
  const sign = list.down ? -1 : 1;
  // What has no number is last, whichever way round; equal ones stay ranked.
  const known = rows.filter((row) => worth.get(row) !== null).sort((a, b) => {
    const [p, q] = [worth.get(a), worth.get(b)];
    return p === q ? 0 : sign * (p - q);
  });
  const ordered = column.id === "rank" && !list.down
    ? [...known.filter((row) => worth.get(row) !== Infinity), ...known.filter((row) => worth.get(row) === Infinity)]
    : known;
  const whole = [...ordered, ...rows.filter((row) => worth.get(row) === null)];
  return text
    ? whole.filter((row) => `${rowNumber(row)} ${statusOf(row)} ${tagsOf(row).map(([tag]) => tag).join(" ")}`.toLowerCase().includes(text))
    : whole;
}

// Only the rows that are in sight are made: a scan has up to 2000.
function makeList() {
  list.box = document.getElementById("rows");
  list.space = document.getElementById("space");
  list.box.addEventListener("scroll", () => showRows());
  new ResizeObserver(() => showRows()).observe(list.box);
  list.box.addEventListener("keydown", (event) => {
    const move = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -1e6, End: 1e6 }[event.key];
    if (move && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      event.stopPropagation();
      chooseNext(move);
    } else if (event.key === "Enter") {
      event.preventDefault();
      event.stopPropagation();
      if (state.chosen) choose(state.chosen);
      else chooseNext(1);
    }
  });
}

function refreshList() {
  list.rows = visibleRows();
  list.box.parentNode.setAttribute("aria-rowcount", list.rows.length + 1);
  list.space.style.height = `${list.rows.length * ROW_PX}px`;
  showHead();
  showRows();
}

function showHead() {
  const head = document.getElementById("list-head");
  const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.sort : null;
  const cells = columns().map(({ id, name }) => {
    const sorted = list.sort === id;
    const button = el("button", { type: "button", "data-sort": id, onclick: () => sortBy(id) }, name,
      el("span", { "aria-hidden": "true", class: "arrow" }, sorted ? (list.down ? "\u25be" : "\u25b4") : ""));
    return el("div", { role: "columnheader", "aria-sort": sorted ? (list.down ? "descending" : "ascending") : "none" }, button);
  });
  head.replaceChildren(el("div", { role: "row", class: "cells", "aria-rowindex": "1" }, ...cells));
  const again = focused && head.querySelector(`[data-sort="${focused}"]`);
  if (again) again.focus();
}

function sortBy(id) {
  if (list.sort === id) list.down = !list.down;
  else Object.assign(list, { sort: id, down: true });
  refreshList();
}

function showRows() {
  const from = Math.max(0, Math.floor(list.box.scrollTop / ROW_PX) - SPARE_ROWS);
  const to = Math.min(list.rows.length, Math.ceil((list.box.scrollTop + list.box.clientHeight) / ROW_PX) + SPARE_ROWS);
  const all = columns();
  list.space.replaceChildren(...list.rows.slice(from, to).map((row, k) => rowNode(row, from + k, all)));
  if (!list.rows.length) {
    const none = list.text ? "Nothing in the list matches." : list.show === "kept" ? "Nothing is kept at these thresholds."
      : list.show === "mine" ? "You have said nothing yet." : "No candidates.";
    list.space.append(el("p", { class: "none" }, none));
  }
  const shown = list.rows.slice(from, to).some((row) => row.id === state.chosen);
  if (shown) list.box.setAttribute("aria-activedescendant", domId(state.chosen));
  else list.box.removeAttribute("aria-activedescendant");
}

const domId = (id) => `row-${id.replace(/[^A-Za-z0-9]/g, "-")}`;

function rowNode(row, k, all) {
  const kind = KIND_OF_ROW(row);
  const cells = all.map(({ id, value }) => {
    if (id === "rank") {
      return el("span", { role: "gridcell", class: "number" }, el("i", { class: `glyph ${kind}`, "aria-hidden": "true" }), rowNumber(row));
    }
    const number = row.rank ? value(row) : id === "diameter" || id === "slice" ? value(row) : undefined;
    const words = number === undefined ? "" : id === "diameter" ? (number === null ? "\u2013" : number.toFixed(1))
      : id === "slice" ? String(nearest(number))
        : number === null ? (row.parts[Number(id.at(-1))] ? (comparing ? "n/a" : "not asked") : "\u2013") : short(number);
    const quiet = number === null ? "quiet" : "";
    return el("span", { role: "gridcell", class: quiet, title: words === "n/a" ? "not asked" : null }, words);
  });
  const place = placeOf(row);
  const mm = place.mm.map((v) => v.toFixed(0)).join(", ");
  const node = el("div", { role: "row", id: domId(row.id), class: `row ${kind}`, "aria-selected": String(row.id === state.chosen),
    "aria-rowindex": String(k + 2), "data-id": row.id },
  el("div", { class: "cells", role: "presentation" }, ...cells),
  el("div", { class: "words", role: "gridcell" }, ...tagsOf(row).map(([tag, look]) => tagNode(tag, look)),
    el("span", { class: "status", title: statusOf(row) }, statusOf(row)), el("span", { class: "mm" }, `${mm} mm`)));
  node.style.top = `${k * ROW_PX}px`;
  node.addEventListener("click", () => choose(row.id));
  return node;
}

function tagNode(words, look) {
  const shorter = { "false positive": "FP" }[words];
  return el("b", { class: `tag ${look}`, title: shorter ? words : null, "aria-label": shorter ? words : null, role: shorter ? "img" : null }, shorter || words);
}

function chooseNext(steps) {
  if (!list.rows.length) return;
  const now = list.rows.findIndex((row) => row.id === state.chosen);
  const from = now >= 0 ? now : steps > 0 ? -1 : list.rows.length;
  choose(list.rows[clamp(from + steps, 0, list.rows.length - 1)].id);
}

function choose(id, { move = true } = {}) {
  const row = anyRow(id);
  if (!row) return;
  state.chosen = id;
  const place = placeOf(row);
  if (move) {
    reveal(place.at);
    moveTo(place.at);
  }
  const k = list.rows.findIndex((each) => each.id === id);
  if (k >= 0) {
    const top = k * ROW_PX;
    if (top < list.box.scrollTop) list.box.scrollTop = top;
    else if (top + ROW_PX > list.box.scrollTop + list.box.clientHeight) {
      list.box.scrollTop = top + ROW_PX - list.box.clientHeight;
    }
  }
  showRows();
  showDetail();
  draw();
}

// ---- the chosen one, and what the reader says of it
function detailLines(row) {
  const place = placeOf(row);
  const irc = toScan(place.at).map((v) => v.toFixed(1));
  const diameter = place.diameter === null ? "diameter not known" : `${place.diameter.toFixed(1)} mm`;
  const lines = [["Place", `x ${place.mm[0].toFixed(1)}, y ${place.mm[1].toFixed(1)}, z ${place.mm[2].toFixed(1)} mm (LPS)`],
    ["Voxel", `index ${irc[0]}, row ${irc[1]}, col ${irc[2]}; ${diameter}`]];
  for (const { o, letter, bundle } of comparing && row.parts.length ? opinions : []) {
    const part = row.parts[o];
    lines.push([letter, part ? `${STAGE_WORDS[stageOf(part)]}: ${reasonOf(part)}` : `no candidate here (${bundle.bundle})`]);
  }
  if (!comparing && row.parts.length) {
    const [finding] = row.parts;
    lines.push(["Why", `${STAGE_WORDS[stageOf(finding)]}: ${reasonOf(finding)}`]);
    if (finding.segmentation !== null) lines.push(["U-Net", `${short(finding.segmentation)}, mean of the voxels marked`]);
  }
  if (row.miss) lines.push(["Missed", row.miss.why]);
  return lines;
}

function showDetail() {
  const box = document.getElementById("detail");
  const row = anyRow(state.chosen);
  if (!row) {
    box.replaceChildren(el("p", { class: "none" }, "Choose a finding: click a row or a ring, or press ", el("kbd", {}, "J"), "."));
    return;
  }
  const correction = row.added || (row.miss ? null : correctionOf(row));
  const heading = row.added ? `Added nodule ${rowNumber(row)}` : row.miss ? "Missed nodule" : `Finding ${rowNumber(row)}`;
  const kind = correction ? (correction.kind === "relabel" || (row.added && correction.label) ? correction.label : correction.kind) : "";
  const press = (name, key, on, action) => el("button", { type: "button", "aria-pressed": String(on), "aria-keyshortcuts": key,
    class: "act", onclick: action }, name, el("kbd", {}, key.replace("Shift+", "\u21e7")));
  const facts_ = el("dl", {}, ...detailLines(row).flatMap(([name, words]) => [el("dt", {}, name), el("dd", {}, words)]));
  const parts = [el("h2", {}, heading, el("span", { class: "state" }, wordsOf(correction))), facts_];
  if (!row.miss) {
    const buttons = row.added
      ? [press("Benign", "Shift+B", kind === "benign", () => judge("benign")),
        press("Malignant", "Shift+M", kind === "malignant", () => judge("malignant")),
        press("Remove", "Delete", false, () => clearOpinion())]
      : [press("Accept", "A", kind === "accept", () => judge("accept")),
        press("Reject", "R", kind === "reject", () => judge("reject")),
        press("Benign", "Shift+B", kind === "benign", () => judge("benign")),
        press("Malignant", "Shift+M", kind === "malignant", () => judge("malignant"))];
    const note = el("textarea", { id: "note", rows: "1", maxlength: String(LONGEST_NOTE), "aria-label": "Note on this finding",
      placeholder: "Note (E)" });
    note.value = correction ? correction.text : "";
    note.addEventListener("change", () => setNote(row.id, note.value));
    note.addEventListener("keydown", (event) => {
      if (event.key === "Escape" || (event.key === "Enter" && (event.ctrlKey || event.metaKey))) {
        event.preventDefault();
        event.stopPropagation();
        note.blur();
        list.box.focus();
      }
    });
    parts.push(el("div", { class: "acts" }, ...buttons), note);
    if (state.caliper && caliperMm(state.caliper) >= 0.5) {
      parts.push(el("button", { type: "button", class: "act measured", "aria-keyshortcuts": "S", onclick: () => takeMeasured() },
        `Use ${caliperMm(state.caliper).toFixed(1)} mm as its diameter`, el("kbd", {}, "S")));
    }
  }
  box.replaceChildren(...parts);
}

function afterChange(words) {
  say(words);
  refreshList();
  showDetail();
  showWork();
  draw();
}

function judge(verdict) {
  const row = anyRow(state.chosen);
  if (!row || row.miss) return say("Choose a finding first.");
  if (row.added) {
    if (verdict === "reject") return clearOpinion();
    const label = verdict === "accept" ? null : verdict;
    change(`${verdict} ${rowNumber(row)}`, row.id, { ...row.added, label, time: utcNow() });
    return afterChange(`Added nodule ${rowNumber(row)}: ${verdict}`);
  }
  const label = verdict === "benign" || verdict === "malignant" ? verdict : null;
  const before = correctionOf(row);
  const kind = label ? "relabel" : verdict;
  if (before && before.kind === kind && before.label === label) return clearOpinion(); // pressed again: taken back
  change(`${label ? `relabel ${label}` : verdict} ${rowNumber(row)}`, row.id, said(row, kind, { label }));
  return afterChange(`Finding ${rowNumber(row)} ${wordsOf(correctionOf(row))}`);
}

// What was said is taken back; a note stays, for it has to be emptied to go.
function clearOpinion() {
  const row = anyRow(state.chosen);
  const before = row && (row.added || correctionOf(row));
  if (!before) return;
  const note = !row.added && before.text && before.kind !== "note" ? { ...blank(row), text: before.text } : null;
  change(`clear ${rowNumber(row)}`, row.id, note);
  if (row.added) state.chosen = null;
  afterChange(`${rowNumber(row)}: nothing said`);
}

function setNote(id, text) {
  const row = anyRow(id);
  if (!row) return;
  const before = row.added || correctionOf(row);
  const words = text.trim();
  if (words === (before ? before.text : "")) return;
  const empty = !words && (!before || before.kind === "note");
  change(`note ${rowNumber(row)}`, id, empty ? null : { ...(before || blank(row)), text: words, time: utcNow() });
  afterChange(words ? `Note on ${rowNumber(row)} kept` : `Note on ${rowNumber(row)} removed`);
}

function addAt(at, diameter) {
  const id = newAddId();
  change("add a nodule", id, newAdd(toPatient(at), diameter));
  state.chosen = id;
  if (list.show === "filtered") setShow("kept");
  afterChange(`Nodule of ${diameter.toFixed(1)} mm added`);
  choose(id, { move: false });
}

function takeMeasured() {
  const row = anyRow(state.chosen);
  if (!row || row.miss || !state.caliper) return say("Choose a finding and measure it first.");
  const diameter = Math.round(caliperMm(state.caliper) * 10) / 10;
  if (diameter < 0.5) return say("Measure it first.");
  const before = row.added || correctionOf(row);
  if (before && before.kind === "reject") return say("It is rejected; accept it to give it a diameter.");
  const next = !before || before.kind === "note" ? said(row, "accept") : before;
  change(`diameter of ${rowNumber(row)}`, row.id, { ...next, diameter_mm: diameter, time: utcNow() });
  return afterChange(`${rowNumber(row)}: ${diameter.toFixed(1)} mm`);
}

function resizeAdded(step) {
  const row = anyRow(state.chosen);
  if (!row || !row.added) return;
  const diameter = clamp(row.added.diameter_mm + step, 1, 200);
  change(`diameter of ${rowNumber(row)}`, row.id, { ...row.added, diameter_mm: Math.round(diameter * 10) / 10, time: utcNow() });
  afterChange(`${rowNumber(row)}: ${diameter.toFixed(1)} mm`);
}
