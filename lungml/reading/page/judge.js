// What does the reader see of the chosen finding, and say of it?

function detailLines(row) {
  const place = placeOf(row);
  const irc = toScan(place.at).map((v) => v.toFixed(1));
  const diameter = place.diameter === null ? "diameter not known" : `${place.diameter.toFixed(1)} mm`;
  const lines = [
    ["Place", `x ${place.mm[0].toFixed(1)}, y ${place.mm[1].toFixed(1)}, z ${place.mm[2].toFixed(1)} mm (LPS)`],
    ["Voxel", `index ${irc[0]}, row ${irc[1]}, col ${irc[2]}; ${diameter}`],
  ];
  const correction = row.added || row.miss ? null : correctionOf(row);
  if (correction && correction.diameter_mm !== blank(row).diameter_mm) {
    lines.push(["Yours", correction.diameter_mm === null ? "no diameter" : `${correction.diameter_mm.toFixed(1)} mm`]);
  }
  for (const { o, letter, bundle } of comparing && row.parts.length ? opinions : []) {
    const part = row.parts[o];
    lines.push([
      letter,
      part ? `${STAGE_WORDS[stageOf(part)]}: ${reasonOf(part)}` : `no candidate here (${bundle.bundle})`,
    ]);
  }
  if (!comparing && row.parts.length) {
    const [finding] = row.parts;
    lines.push(["Why", `${STAGE_WORDS[stageOf(finding)]}: ${reasonOf(finding)}`]);
    if (finding.segmentation !== null)
      lines.push(["U-Net", `${short(finding.segmentation)}, mean of the voxels marked`]);
  }
  for (const { o, why } of row.miss ? row.miss.by : []) lines.push([comparing ? opinions[o].letter : "Why", why]);
  return lines;
}

let detailWaits = false; // until what is pressed in it is clicked

function showDetail() {
  const box = document.getElementById("detail");
  detailWaits = pressedNode !== null && box.contains(pressedNode);
  if (detailWaits) return;
  const row = anyRow(state.chosen);
  if (!row) {
    renew(
      box,
      el("p", { class: "none" }, "Choose a finding: click a row or a ring, or press ", el("kbd", {}, "J"), "."),
    );
    return;
  }
  const correction = row.added || (row.miss ? null : correctionOf(row));
  const heading = row.added
    ? `Added nodule ${rowNumber(row)}`
    : row.miss
      ? "Missed nodule"
      : `Finding ${rowNumber(row)}`;
  const kind = correction
    ? correction.kind === "relabel" || (row.added && correction.label)
      ? correction.label
      : correction.kind
    : "";
  const press = (name, key, on, action) =>
    el(
      "button",
      {
        type: "button",
        id: `act-${name.toLowerCase()}`,
        "aria-pressed": String(on),
        "aria-keyshortcuts": key,
        class: "act",
        onclick: action,
      },
      name,
      el("kbd", {}, key.replace("Shift+", "\u21e7")),
    );
  const lines = el("dl", {}, ...detailLines(row).flatMap(([name, words]) => [el("dt", {}, name), el("dd", {}, words)]));
  const parts = [el("h2", {}, heading, el("span", { class: "state" }, wordsOf(correction))), lines];
  if (!row.miss) {
    const buttons = row.added
      ? [
          press("Benign", "Shift+B", kind === "benign", () => judge("benign")),
          press("Malignant", "Shift+M", kind === "malignant", () => judge("malignant")),
          press("Remove", "Delete", false, () => clearOpinion()),
        ]
      : [
          press("Accept", "A", kind === "accept", () => judge("accept")),
          press("Reject", "R", kind === "reject", () => judge("reject")),
          press("Benign", "Shift+B", kind === "benign", () => judge("benign")),
          press("Malignant", "Shift+M", kind === "malignant", () => judge("malignant")),
        ];
    const note = el("textarea", {
      id: "note",
      rows: "1",
      maxlength: String(LONGEST_NOTE),
      "aria-label": "Note on this finding",
      placeholder: "Note (E)",
    });
    note.defaultValue = correction ? correction.text : "";
    note.dataset.row = row.id;
    note.addEventListener("change", () => pressedNode || keepNote());
    note.addEventListener("keydown", (event) => {
      if (event.key === "Escape" || (event.key === "Enter" && (event.ctrlKey || event.metaKey))) {
        event.preventDefault();
        event.stopPropagation();
        note.blur();
        list.grid.focus({ preventScroll: true });
      }
    });
    parts.push(el("div", { class: "acts" }, ...buttons), note);
    const measured = state.caliper ? Math.round(caliperMm(state.caliper) * 10) / 10 : 0;
    if (measured >= 0.5 && measured <= WIDEST_MM && !(correction && correction.diameter_mm === measured)) {
      parts.push(
        el(
          "button",
          {
            type: "button",
            id: "use-measured",
            class: "act measured",
            "aria-keyshortcuts": "S",
            onclick: () => takeMeasured(),
          },
          `Use ${measured.toFixed(1)} mm as its diameter`,
          el("kbd", {}, "S"),
        ),
      );
    }
  }
  renew(box, ...parts);
}

// What is drawn anew keeps the focus, and a note what is typed: else the next letters would be commands.
function renew(box, ...nodes) {
  const focused = box.contains(document.activeElement) ? document.activeElement : null;
  const wasNote = focused && focused.id === "note";
  box.replaceChildren(...nodes);
  if (!focused) return;
  const again = focused.id && byId(focused.id);
  if (!again || again.disabled) {
    list.grid.focus({ preventScroll: true });
    return;
  }
  again.focus({ preventScroll: true });
  if (wasNote && again.dataset.row === focused.dataset.row && focused.value !== focused.defaultValue) {
    again.value = focused.value;
    again.setSelectionRange(focused.selectionStart, focused.selectionEnd);
  }
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

// Keeping a note draws the panel anew, and a button that is drawn anew while it is pressed is never clicked: a note
// that a click ends is kept with the click, before whatever was clicked does its work.
let pressedNode = null; // what the pointer is down on

function watchNotes() {
  const released = () => {
    pressedNode = null;
    if (document.activeElement !== byId("note")) keepNote(); // a click in the note moves the caret
    if (detailWaits) showDetail();
  };
  document.addEventListener("pointerdown", (event) => (pressedNode = event.target), true);
  for (const end of ["pointerup", "pointercancel"]) document.addEventListener(end, () => setTimeout(released), true);
  document.addEventListener("click", released, true);
  window.addEventListener("pagehide", () => {
    keepNote();
    storeWaiting();
  });
}

function keepNote() {
  const note = byId("note");
  if (note) setNote(note.dataset.row, note.value);
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
  choose(id);
}

function takeMeasured() {
  const row = anyRow(state.chosen);
  if (!row || row.miss || !state.caliper) return say("Choose a finding and measure it first.");
  const diameter = Math.round(caliperMm(state.caliper) * 10) / 10;
  if (diameter < 0.5 || diameter > WIDEST_MM) return say("No nodule is of that size; measure it first.");
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
  change(`diameter of ${rowNumber(row)}`, row.id, {
    ...row.added,
    diameter_mm: Math.round(diameter * 10) / 10,
    time: utcNow(),
  });
  afterChange(`${rowNumber(row)}: ${diameter.toFixed(1)} mm`);
}
