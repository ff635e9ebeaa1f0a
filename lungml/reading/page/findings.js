// What did each bundle say of a place, and where does it end at these thresholds?

const UNKNOWN_MM = 6; // drawn where no diameter is known, and a missed nodule until somebody measures it
const STEPS = ["segmentation", "nodule", "malignant"];

const opinions = reading.bundles.map((bundle, o) => ({
  o,
  letter: "AB"[o],
  bundle,
  defaults: {
    segmentation: facts.marks[o].floor,
    nodule: bundle.nodule_threshold,
    malignant: bundle.malignant_threshold,
  },
  findings: bundle.findings.map((finding) => ({
    o,
    n: finding.finding,
    at: toVoxel(finding.center_xyz),
    mm: finding.center_xyz,
    diameter: finding.diameter_mm,
    segmentation: finding.prob_segmentation,
    nodule: finding.prob_nodule,
    malignant: finding.prob_malignant,
    truth: finding.truth || null,
  })),
}));
const comparing = opinions.length > 1;
// A threshold as it may be: of what lies below the least that the U-Net's kept, nothing is there to show.
function limitWithin(o, name, value) {
  const { defaults } = opinions[o];
  return Number.isFinite(value) ? clamp(value, name === "segmentation" ? defaults[name] : 0, 1) : defaults[name];
}
const limits = opinions.map(({ defaults }) => ({ ...defaults }));
const truths = reading.truth
  ? reading.truth.nodules.map((nodule, n) => ({
      n,
      at: toVoxel(nodule.center_xyz),
      mm: nodule.center_xyz,
      diameter: nodule.diameter_mm,
      malignant: nodule.malignant,
    }))
  : [];

const nameOf = (finding) => (comparing ? opinions[finding.o].letter : "") + finding.n;
const radiusOf = (place) => (place.diameter || UNKNOWN_MM) / 2;

// The least that is allowed lets everything pass: no candidate was made of less.
function stageOf(finding) {
  const limit = limits[finding.o];
  const floor = opinions[finding.o].defaults.segmentation;
  if (limit.segmentation > floor && finding.segmentation !== null && finding.segmentation < limit.segmentation) {
    return "filtered";
  }
  if (finding.nodule < limit.nodule) return "filtered";
  if (finding.malignant === null) return "unasked";
  return finding.malignant < limit.malignant ? "benign" : "malignant";
}

const kept = (finding) => finding !== null && finding !== undefined && stageOf(finding) !== "filtered";

const STAGE_WORDS = {
  filtered: "filtered",
  benign: "benign",
  malignant: "malignant",
  unasked: "malignancy not asked",
};

function reasonOf(finding) {
  const limit = limits[finding.o];
  const stage = stageOf(finding);
  if (stage === "filtered") {
    return finding.nodule < limit.nodule
      ? `nodule ${against(finding.nodule, "<", limit.nodule)}`
      : `U-Net ${against(finding.segmentation, "<", limit.segmentation)}`;
  }
  if (stage === "unasked") return "the bundle filtered it out";
  return `malignancy ${against(finding.malignant, stage === "benign" ? "<" : "\u2265", limit.malignant)}`;
}

// As short as both still differ: 0.4999999 < 0.5 is not written as 0.50 < 0.50.
function against(value, sign, limit) {
  let [one, other] = [value, limit].map(short);
  for (let digits = 3; one === other && value !== limit && digits <= 17; digits++) {
    [one, other] = [value, limit].map((each) => String(Number(each.toPrecision(digits))));
  }
  return `${one} ${sign} ${other}`;
}

// Two digits, three near an end; never 0 or 1 of what is neither.
function short(value) {
  if (value === null) return "not asked";
  if (value === 0 || value === 1) return String(value);
  if (value < 0.001) return "<0.001";
  if (value > 0.999) return ">0.999";
  return value.toFixed(value < 0.095 || value > 0.985 ? 3 : 2);
}

// What truth says of a finding that is kept, or would be.
function verdictOf(finding) {
  if (!finding.truth) return "";
  if (finding.truth.kind === "nodule") return kept(finding) ? "hit" : "nodule, filtered out";
  if (!kept(finding)) return "";
  return finding.truth.kind === "excluded" ? "neither hit nor false" : "false positive";
}

// Nodules that an opinion does not keep, each with why.
function missesOf(o) {
  return truths.flatMap((nodule) => {
    const near = opinions[o].findings.filter(
      (f) => f.truth && f.truth.kind === "nodule" && f.truth.nodule === nodule.n,
    );
    if (near.some(kept)) return [];
    const why = near.length ? `filtered out as ${nameOf(near[0])}: ${reasonOf(near[0])}` : "never a candidate";
    return [{ nodule, o, why, finding: near[0] || null }];
  });
}

// ---- rows: a place on each, with what either opinion says of it
function pairUp(a, b) {
  const close = [];
  for (const one of a) {
    for (const two of b) {
      const away = between(one.mm, two.mm);
      if (away < Math.max(radiusOf(one), radiusOf(two))) close.push({ one, two, away });
    }
  }
  close.sort((p, q) => p.away - q.away);
  const partner = new Map();
  for (const { one, two } of close) {
    if (partner.has(one) || partner.has(two)) continue;
    partner.set(one, two);
    partner.set(two, one);
  }
  return partner;
}

const rankOf = (row) => Math.max(...row.parts.filter(Boolean).map((finding) => finding.nodule));

function makeRows() {
  const [a, b] = opinions.map(({ findings }) => findings);
  if (!comparing) return a.map((finding) => ({ id: `0:${finding.n}`, parts: [finding] }));
  const partner = pairUp(a, b);
  const rows = a.map((finding) => ({ id: `0:${finding.n}`, parts: [finding, partner.get(finding) || null] }));
  rows.push(...b.filter((f) => !partner.has(f)).map((f) => ({ id: `1:${f.n}`, parts: [null, f] })));
  return rows.sort((p, q) => rankOf(q) - rankOf(p));
}

const findingRows = makeRows();
const rowOf = new Map(findingRows.flatMap((row) => row.parts.filter(Boolean).map((finding) => [finding, row])));
const rowById = new Map(findingRows.map((row) => [row.id, row]));
// Of two opinions the graver one stands for the row.
const leadOf = (row) =>
  row.parts.find((finding) => finding && stageOf(finding) === "malignant") ||
  row.parts.find(kept) ||
  row.parts.find(Boolean);

function agreementOf(row) {
  const [a, b] = row.parts.map(kept);
  return a && b ? "both" : a ? "only A" : b ? "only B" : "neither";
}

function countsOf(o) {
  const counts = { all: opinions[o].findings.length, kept: 0, malignant: 0, benign: 0, unasked: 0, filtered: 0 };
  for (const finding of opinions[o].findings) {
    const stage = stageOf(finding);
    counts[stage] += 1;
    if (stage !== "filtered") counts.kept += 1;
  }
  if (reading.truth) {
    const keptOnes = opinions[o].findings.filter(kept);
    counts.hits = truths.length - missesOf(o).length;
    counts.misses = truths.length - counts.hits;
    counts.falsePositives = keptOnes.filter((finding) => finding.truth && finding.truth.kind === "none").length;
  }
  return counts;
}
