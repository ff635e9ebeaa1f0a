// How do the parts become one page?

const times = { firstPicture: null, allSlices: null, marks: null };
let ready = false;
const troubles = [];

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
  byId("facts").replaceChildren(
    el("dl", {}, ...rows.map(([name, words]) => el("div", {}, el("dt", {}, name), el("dd", { title: words }, words)))),
  );
}

function showNotices() {
  const words = [...reading.scan.warnings];
  const phantoms = opinions.filter(({ bundle }) => bundle.origin === "phantom").map(({ bundle }) => bundle.bundle);
  if (phantoms.length)
    words.push(
      `${phantoms.join(" and ")} learned from phantoms, not from patients: what is said of a patient means nothing.`,
    );
  for (const { bundle } of opinions) {
    if (bundle.left_out)
      words.push(`${bundle.bundle}: ${bundle.left_out} places more were marked than a reading holds.`);
  }
  if (!reader.storage)
    words.push("This browser keeps nothing for this page: export your corrections before you close it.");
  words.push(...troubles);
  byId("notices").replaceChildren(...words.map((text) => el("p", { class: "notice" }, text)));
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
  const irc = toScan(state.at.map(nearest));
  for (const [name, plane] of Object.entries(PLANES)) {
    const slice = `${irc[2 - plane.w]} of ${SIZE[plane.w] - 1}`;
    views[name].canvas.setAttribute("aria-label", `${plane.name}, ${slice}; arrow keys scroll`);
  }
  byId("stack").setAttribute("aria-valuetext", `${irc[0]} of ${NZ - 1}`);
}

function showPointer(view, at) {
  const inPicture = at && at.every((value, axis) => value > -0.5 && value < SIZE[axis] - 0.5);
  byId("where").textContent = inPicture ? placeWords(inside(at), "Pointer") : placeWords(state.at, "Cross");
}

// ---- start
function firstPoint() {
  const [row] = findingRows.filter((each) => each.parts.some(kept));
  return row ? placeOf(row).at : SIZE.map((size) => nearest((size - 1) / 2));
}

async function startPage() {
  await storeIsThere();
  restore();
  showHeader();
  state.at = inside(firstPoint());
  makeViews();
  makeTools();
  makeThresholds();
  makeFilters();
  makeList();
  makeWork();
  byId("stack").max = String(NZ - 1);
  byId("stack").addEventListener("input", () => {
    const at = [...state.at];
    at[2] = Number(byId("stack").value);
    goTo(at);
  });
  byId("stack").addEventListener("focus", () => {
    state.focus = "axial"; // whose slices it scrolls
  });
  document.addEventListener("keydown", onKey);
  watchNotes();
  byId("open-help").addEventListener("click", showHelp);
  byId("import-file").addEventListener("change", () => {
    const [file] = byId("import-file").files;
    if (file) importFile(file);
    byId("import-file").value = "";
  });
  window.addEventListener("storage", (event) => {
    // the same page in another tab
    if (event.key !== STORE_KEY) return;
    restore();
    showLimits();
    showCounts();
    refreshList();
    showDetail();
    showWork();
    draw();
  });
  window.addEventListener("beforeunload", (event) => {
    if (!reader.storage && isUnsent()) event.preventDefault();
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
    if (nearest(state.at[2]) === z) {
      draw("axial");
      showPlace();
    }
    if (decodedCount % 16 === 0 || decodedCount === NZ) {
      decodedStage += 1;
      draw("coronal", "sagittal");
      byId("loading").textContent = decodedCount < NZ ? `${decodedCount} of ${NZ} slices loaded` : "";
    }
  });
  times.allSlices = performance.now();
  if (!isTrue)
    troubles.push(
      "This browser changes what a page reads from its pictures: what is shown here is not true. Use another.",
    );
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
  get ready() {
    return ready;
  },
  get times() {
    return { ...times };
  },
  get frames() {
    return drawnFrames;
  },
  get state() {
    return JSON.parse(JSON.stringify({ ...state, scan: toScan(state.at.map(nearest)), show: list.show }));
  },
  get limits() {
    return JSON.parse(JSON.stringify(limits));
  },
  get counts() {
    return opinions.map(({ o }) => countsOf(o));
  },
  get rows() {
    return list.rows.map((row) => ({ id: row.id, kind: KIND_OF_ROW(row), status: statusOf(row) }));
  },
  get corrections() {
    return JSON.parse(JSON.stringify(Object.values(corrections())));
  },
  get history() {
    return { now: reader.now, steps: reader.steps.length - 1 };
  },
  huAt: (mm) => facts.level_hu[levelAt(toVoxel(mm))],
  // Pixels of CSS from the corner of a plane's canvas.
  screenOf: (name, mm) => toScreen(views[name], toVoxel(mm)),
});

startPage().catch((error) => {
  troubles.push(`Something of this page cannot be read: ${error.message}. Write it again.`);
  showNotices();
  throw error;
});
