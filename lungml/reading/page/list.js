// How are the rows shown, walked along and chosen?

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

const list = { show: "kept", sort: "rank", down: false, text: "", rows: [], grid: null, head: null, space: null };

// Only the rows that are in sight are made: a scan has up to 2000.
function makeList() {
  list.grid = document.getElementById("list");
  list.head = document.getElementById("list-head");
  list.space = document.getElementById("rows");
  list.grid.addEventListener("scroll", () => showRows());
  // A row may be drawn anew while the button is down on it, as where the press ends what is written in a field: then
  // there is no click, and what was pressed is what is meant.
  let pressed = null;
  list.space.addEventListener("pointerdown", (event) => {
    const row = event.target.closest(".row");
    pressed = row && event.pointerType === "mouse" && event.button === 0 ? row.dataset.id : null;
  });
  list.space.addEventListener("pointerup", () => {
    if (pressed) choose(pressed);
    pressed = null;
  });
  list.space.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row && row.dataset.id !== state.chosen) choose(row.dataset.id);
  });
  new ResizeObserver(() => showRows()).observe(list.grid);
  list.grid.addEventListener("keydown", (event) => {
    if (event.target.closest("button")) return;
    const move = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -1e6, End: 1e6 }[event.key];
    if (move && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      event.stopPropagation();
      chooseNext(move);
    } else if (event.key === "Enter" && state.tool === "move") {
      event.preventDefault();
      event.stopPropagation();
      if (state.chosen) choose(state.chosen);
      else chooseNext(1);
    }
  });
}

function refreshList() {
  list.rows = visibleRows();
  list.grid.setAttribute("aria-rowcount", list.rows.length + 1);
  list.space.style.height = `${list.rows.length * ROW_PX}px`;
  showHead();
  showRows();
}

function showHead() {
  const { head } = list;
  const shown = `${list.sort} ${list.down}`;
  if (head.dataset.shown === shown) return;
  head.dataset.shown = shown;
  const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.sort : null;
  const cells = listColumns().map(({ id, name, title = null }) => {
    const isSorted = list.sort === id;
    const button = el(
      "button",
      { type: "button", "data-sort": id, title, onclick: () => sortBy(id) },
      name,
      el("span", { "aria-hidden": "true", class: "arrow" }, isSorted ? (list.down ? "\u25be" : "\u25b4") : ""),
    );
    return el(
      "div",
      { role: "columnheader", "aria-sort": isSorted ? (list.down ? "descending" : "ascending") : "none" },
      button,
    );
  });
  head.replaceChildren(el("div", { role: "row", class: "cells", "aria-rowindex": "1" }, ...cells));
  const again = focused && head.querySelector(`[data-sort="${focused}"]`);
  if (again) again.focus();
}

function sortBy(id) {
  if (list.sort === id) list.down = !list.down;
  else Object.assign(list, { sort: id, down: id !== "rank" }); // the largest first, but number 1
  refreshList();
}

const NOTHING = {
  kept: "Nothing is kept at these thresholds.",
  all: "No candidates.",
  filtered: "Nothing is filtered out.",
  mine: "You have said nothing yet.",
};

function showRows() {
  const from = Math.max(0, Math.floor(list.grid.scrollTop / ROW_PX) - SPARE_ROWS);
  const to = Math.min(
    list.rows.length,
    Math.ceil((list.grid.scrollTop + list.grid.clientHeight) / ROW_PX) + SPARE_ROWS,
  );
  const all = listColumns();
  list.space.replaceChildren(...list.rows.slice(from, to).map((row, k) => rowNode(row, from + k, all)));
  if (!list.rows.length) {
    list.space.append(el("p", { class: "none" }, list.text ? "Nothing in the list matches." : NOTHING[list.show]));
  }
  const shown = list.rows.slice(from, to).some((row) => row.id === state.chosen);
  if (shown) list.grid.setAttribute("aria-activedescendant", domId(state.chosen));
  else list.grid.removeAttribute("aria-activedescendant");
}

const domId = (id) => `row-${id.replace(/[^A-Za-z0-9]/g, "-")}`;

// The words of a cell, and whether they stand back.
function cellWords(row, id, number) {
  if (id === "diameter") return number === null ? ["\u2013", true] : [number.toFixed(1), false];
  if (id === "slice") return [String(nearest(number)), false];
  if (!row.parts.length) return ["", false];
  if (number !== null) return [short(number), false];
  const part = row.parts[Number(id.at(-1))];
  return [part ? (comparing ? "n/a" : "not asked") : "\u2013", true];
}

function rowNode(row, k, all) {
  const kind = KIND_OF_ROW(row);
  const glyph = el("i", { class: `glyph ${kind}`, "aria-hidden": "true" });
  const cells = all.map(({ id, value }) => {
    if (id === "rank") return el("span", { role: "gridcell", class: "number" }, glyph, rowNumber(row));
    const [words, quiet] = cellWords(row, id, value(row));
    return el(
      "span",
      { role: "gridcell", class: quiet ? "quiet" : null, title: words === "n/a" ? "not asked" : null },
      words,
    );
  });
  const mm = placeOf(row)
    .mm.map((v) => v.toFixed(0))
    .join(", ");
  const node = el(
    "div",
    {
      role: "row",
      id: domId(row.id),
      class: `row ${kind}`,
      "aria-selected": String(row.id === state.chosen),
      "aria-rowindex": String(k + 2),
      "data-id": row.id,
    },
    el("div", { class: "cells", role: "presentation" }, ...cells),
    el(
      "div",
      { class: "words", role: "gridcell" },
      ...tagsOf(row).map(([tag, look]) => tagNode(tag, look)),
      el("span", { class: "status", title: statusOf(row) }, statusOf(row)),
      el("span", { class: "mm" }, `${mm} mm`),
    ),
  );
  node.style.top = `${k * ROW_PX}px`;
  return node;
}

function tagNode(words, look) {
  const shorter = { "false positive": "FP" }[words];
  return el(
    "b",
    {
      class: `tag ${look}`,
      title: shorter ? words : null,
      "aria-label": shorter ? words : null,
      role: shorter ? "img" : null,
    },
    shorter || words,
  );
}

function chooseNext(steps) {
  if (!list.rows.length) return;
  const now = list.rows.findIndex((row) => row.id === state.chosen);
  const from = now >= 0 ? now : steps > 0 ? -1 : list.rows.length;
  choose(list.rows[clamp(from + steps, 0, list.rows.length - 1)].id);
}

function choose(id, { move = true } = {}) {
  keepNote(); // of the one that was chosen before
  const row = anyRow(id);
  if (!row) return;
  state.chosen = id;
  const place = placeOf(row);
  if (move) {
    reveal(place.at);
    goTo(place.at);
  }
  const k = list.rows.findIndex((each) => each.id === id);
  if (k >= 0) {
    const top = k * ROW_PX;
    const inSight = list.grid.clientHeight - list.head.offsetHeight;
    if (top < list.grid.scrollTop) list.grid.scrollTop = top;
    else if (top + ROW_PX > list.grid.scrollTop + inSight) {
      list.grid.scrollTop = top + ROW_PX - inSight;
    }
  }
  showRows();
  showDetail();
  draw();
}
