// What does the reader say, and how does it leave the page and come back?

const CORRECTIONS_FORMAT = "luna-corrections";
const CORRECTIONS_VERSION = 1;
const ALIAS = /^[A-Za-z0-9._-]{1,32}$/;
const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$/;
const KINDS = ["accept", "reject", "relabel", "add", "note"];
const MOST_CORRECTIONS = 5000; // of a file
const FARTHEST_OUT = 1; // of the scan, voxels: places are rounded
const WIDEST_MM = 300; // a correction's diameter: as wide as a chest
const LONGEST_NOTE = 2000; // letters

// ---- one correction
function said(row, kind, more = {}) {
  const before = correctionOf(row);
  const base = before || blank(row);
  return { ...base, kind, time: utcNow(), label: null, ...more };
}

function blank(row) {
  if (row.added) return { ...row.added };
  const finding = row.parts.find(Boolean);
  return {
    kind: "note",
    time: utcNow(),
    finding: finding.n,
    center_xyz: finding.mm,
    diameter_mm: finding.diameter !== null && finding.diameter <= WIDEST_MM ? finding.diameter : null,
    label: null,
    text: "",
    ...(comparing ? { bundle: opinions[finding.o].bundle.bundle } : {}),
  };
}

function newAdd(mm, diameter) {
  return {
    kind: "add",
    time: utcNow(),
    finding: null,
    center_xyz: mm.map((v) => Math.round(v * 1e4) / 1e4),
    diameter_mm: Math.round(diameter * 10) / 10,
    label: null,
    text: "",
    ...(comparing ? { bundle: opinions[0].bundle.bundle } : {}),
  };
}

const newAddId = () => `add:${Date.now().toString(36)}${Math.random().toString(36).slice(2, 6)}`;

function addedRows() {
  return Object.entries(corrections())
    .filter(([, correction]) => correction.kind === "add")
    .map(([id, correction], k) => ({
      id,
      added: correction,
      number: k + 1,
      parts: [],
      at: toVoxel(correction.center_xyz),
      mm: correction.center_xyz,
      diameter: correction.diameter_mm,
    }));
}

function wordsOf(correction) {
  if (!correction) return "";
  if (correction.kind === "relabel") return `relabelled ${correction.label}`;
  const words = { accept: "accepted", reject: "rejected", add: "added by you", note: "note" }[correction.kind];
  return correction.kind === "add" && correction.label ? `${words}, ${correction.label}` : words;
}

// ---- the file that goes back
function exportText() {
  return (
    JSON.stringify(
      {
        format: CORRECTIONS_FORMAT,
        version: CORRECTIONS_VERSION,
        series_uid: reading.series_uid,
        bundle: reading.bundles[0].bundle,
        reading: reading.made,
        reader: reader.alias,
        exported: utcNow(),
        corrections: Object.values(corrections()),
      },
      null,
      1,
    ) + "\n"
  );
}

function exportFile() {
  const link = document.createElement("a");
  const url = URL.createObjectURL(new Blob([exportText()], { type: "application/json" }));
  link.href = url;
  link.download = "corrections.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  markExported();
}

// The corrections of a file by id, or an Error that says what is wrong with it.
function importText(text) {
  const file = JSON.parse(text);
  if (file === null || typeof file !== "object" || file.format !== CORRECTIONS_FORMAT) {
    throw new Error("this is no file of corrections");
  }
  if (file.version !== CORRECTIONS_VERSION) {
    throw new Error(`its version is ${file.version}, this page reads ${CORRECTIONS_VERSION}`);
  }
  if (file.series_uid !== reading.series_uid) throw new Error("it is about another scan");
  if (!Array.isArray(file.corrections)) throw new Error("it holds no list of corrections");
  if (file.corrections.length > MOST_CORRECTIONS) throw new Error(`it holds more than ${MOST_CORRECTIONS} corrections`);
  const added = new Map(addedRows().map((row) => [row.mm.join(), row.id])); // the same file may come twice
  const read = {};
  for (const [k, correction] of file.corrections.entries()) {
    const wrong = wrongWith(correction);
    if (wrong) throw new Error(`correction ${k + 1}: ${wrong}`);
    const bundle = correction.bundle === undefined ? file.bundle : correction.bundle;
    const o = reading.bundles.findIndex((each) => each.bundle === bundle);
    if (o < 0) throw new Error(`correction ${k + 1} was made on ${bundle}, which is not on this page`);
    const fields = {
      kind: correction.kind,
      time: correction.time,
      finding: correction.finding,
      center_xyz: correction.center_xyz,
      diameter_mm: correction.diameter_mm,
      label: correction.label,
      text: correction.text,
      ...(comparing ? { bundle } : {}),
    };
    if (correction.finding === null) {
      read[added.get(fields.center_xyz.join()) || `${newAddId()}${k}`] = fields;
      continue;
    }
    const finding = opinions[o].findings[correction.finding - 1];
    if (!finding) throw new Error(`correction ${k + 1} is of a finding that this reading has not`);
    if (between(finding.mm, correction.center_xyz) > 1) throw new Error(`correction ${k + 1} is of another place`);
    read[rowOf.get(finding).id] = fields;
  }
  return { read, alias: typeof file.reader === "string" && ALIAS.test(file.reader) ? file.reader : "" };
}

function wrongWith(correction) {
  if (correction === null || typeof correction !== "object" || !KINDS.includes(correction.kind)) return "unknown kind";
  const { kind, finding, center_xyz: mm, diameter_mm: diameter, label, text, time } = correction;
  if (!Array.isArray(mm) || mm.length !== 3 || !mm.every(Number.isFinite)) return "its place is not three numbers";
  const at = toVoxel(mm);
  if (between(at, inside(at)) > FARTHEST_OUT) return "its place is outside of the scan";
  if (diameter !== null && !(Number.isFinite(diameter) && diameter > 0 && diameter <= WIDEST_MM)) {
    return `its diameter is not above 0 and at most ${WIDEST_MM}`;
  }
  if (![null, "benign", "malignant"].includes(label)) return "unknown label";
  if (kind === "reject" && label !== null) return "what is rejected has no label";
  if (typeof text !== "string" || text.length > LONGEST_NOTE || /\p{Surrogate}/u.test(text)) {
    return `its text is not of at most ${LONGEST_NOTE} letters`;
  }
  if (typeof time !== "string" || !TIME.test(time) || Number.isNaN(Date.parse(time))) return "its time is none";
  if ((kind === "add") !== (finding === null)) return "only what was added has no number";
  if (finding !== null && !Number.isInteger(finding)) return "its number is none";
  if (kind === "add" && diameter === null) return "what was added has no diameter";
  if (kind === "relabel" && label === null) return "it has no label";
  return "";
}
