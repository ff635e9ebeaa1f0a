// Which rows are there, in what order, and what does each say?

const SHOWS = [
  ["kept", "Kept", "What the thresholds keep, what is missed and what you added"],
  ["all", "All", "Every candidate, filtered ones as well"],
  ["filtered", "Filtered", "Only what the thresholds filter out"],
  ["mine", "Yours", "Only what you said something of"],
];

const numberIn = (row, o, field) => (row.parts[o] ? row.parts[o][field] : null);
const placeOf = (row) => row.parts.find(kept) || row.parts.find(Boolean) || row;

function listColumns() {
  const titles = {
    nodule: "Probability of being a nodule",
    malignant: "Probability of malignancy, given that it is a nodule",
  };
  const probability = (o, field, name) => ({
    id: `${field}${o}`,
    name,
    title: titles[field],
    value: (row) => numberIn(row, o, field),
  });
  const perOpinion = comparing
    ? opinions.flatMap(({ o, letter }) => [
        probability(o, "nodule", `${letter} nod.`),
        probability(o, "malignant", `${letter} mal.`),
      ])
    : [probability(0, "nodule", "Nodule"), probability(0, "malignant", "Malignant")];
  return [
    { id: "rank", name: "No.", value: (row) => row.rank },
    ...perOpinion,
    { id: "diameter", name: "\u2300 mm", value: (row) => placeOf(row).diameter },
    { id: "slice", name: "Slice", value: (row) => toScan(placeOf(row).at)[0] },
  ];
}

findingRows.forEach((row, k) => {
  row.rank = k + 1;
});

function missRows() {
  const misses = opinions.flatMap(({ o }) => missesOf(o));
  return truths
    .map((nodule) => ({ nodule, by: misses.filter((miss) => miss.nodule === nodule) }))
    .filter(({ by }) => by.length)
    .map(({ nodule, by }) => ({
      id: `miss:${nodule.n}`,
      miss: { nodule, by },
      parts: [],
      at: nodule.at,
      mm: nodule.mm,
      diameter: nodule.diameter,
    }));
}

const missedBy = ({ by }) => (comparing ? ` by ${by.map(({ o }) => opinions[o].letter).join(" and ")}` : "");

const anyRow = (id) =>
  rowById.get(id) || addedRows().find((row) => row.id === id) || missRows().find((row) => row.id === id) || null;

function chosenPlace() {
  const row = anyRow(state.chosen);
  return row ? placeOf(row) : null;
}

const rowNumber = (row) =>
  row.added ? `+${row.number}` : row.miss ? "missed" : row.parts.filter(Boolean).map(nameOf).join(" ");

function statusOf(row) {
  if (row.added) return row.added.text ? `added by you: ${row.added.text}` : wordsOf(row.added);
  if (row.miss) {
    const kind = { true: "malignant nodule", false: "benign nodule", null: "nodule" }[row.miss.nodule.malignant];
    return `${kind} missed${missedBy(row.miss)}: ${[...new Set(row.miss.by.map(({ why }) => why))].join("; ")}`;
  }
  const lead = leadOf(row);
  const words = [];
  if (comparing) words.push(agreementOf(row));
  if (row.parts.filter(kept).some((finding) => stageOf(finding) !== stageOf(lead))) {
    const by = (finding) => `${STAGE_WORDS[stageOf(finding)]} by ${opinions[finding.o].letter}`;
    words.push(row.parts.map(by).join(", "));
  } else words.push(`${STAGE_WORDS[stageOf(lead)]}: ${reasonOf(lead)}`);
  return words.join(" \u00b7 ");
}

function tagsOf(row) {
  const tags = [];
  const verdicts = [...new Set(row.parts.filter(Boolean).map(verdictOf).filter(Boolean))];
  for (const verdict of verdicts)
    tags.push([verdict, verdict === "hit" ? "truth" : verdict.startsWith("nodule") ? "missed" : "plain"]);
  const mine = row.added ? "" : wordsOf(correctionOf(row));
  if (mine) tags.push([mine, "reader"]);
  return tags;
}

const KIND_OF_ROW = (row) => (row.added ? "added" : row.miss ? "missed" : stageOf(leadOf(row)));

function visibleRows() {
  const passes = {
    kept: (row) => row.parts.some(kept),
    all: () => true,
    filtered: (row) => !row.parts.some(kept),
    mine: (row) => correctionOf(row) !== null,
  }[list.show];
  const added = list.show === "filtered" ? [] : addedRows();
  const missed = list.show === "kept" || list.show === "all" ? missRows() : [];
  const rows = [...added, ...missed, ...sorted(findingRows.filter(passes))];
  const text = list.text.trim().toLowerCase();
  return text ? rows.filter((row) => wordsOfRow(row).toLowerCase().includes(text)) : rows;
}

const wordsOfRow = (row) =>
  `${rowNumber(row)} ${statusOf(row)} ${tagsOf(row)
    .map(([tag]) => tag)
    .join(" ")}`;

// What has no number is last, whichever way round; equal ones stay ranked. What is added or missed stays above.
function sorted(rows) {
  const { value } = listColumns().find(({ id }) => id === list.sort) || listColumns()[0];
  const sign = list.down ? -1 : 1;
  const known = rows.filter((row) => value(row) !== null).sort((a, b) => sign * (value(a) - value(b)));
  return [...known, ...rows.filter((row) => value(row) === null)];
}
