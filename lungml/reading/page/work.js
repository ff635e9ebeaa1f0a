// What becomes of the reader's work: how much is there, by whom, undone, exported, imported?

// Made once and changed in place: a button that is drawn anew while it is pressed is never clicked.
function makeWork() {
  const alias = el("input", {
    id: "alias",
    maxlength: "32",
    placeholder: "reader alias",
    "aria-label": "Reader alias, not your name",
    title: "Letters, digits, . _ - and not your name",
    autocomplete: "off",
    spellcheck: "false",
  });
  alias.addEventListener("change", () => setAlias(alias));
  const button = (id, name, key, action, look = null) =>
    el("button", { type: "button", id, "aria-keyshortcuts": key, onclick: action, class: look }, name);
  byId("work").replaceChildren(
    el(
      "div",
      { class: "line" },
      el("b", { id: "said" }),
      el("span", { id: "history", class: "soft" }),
      button("undo", "Undo", "Control+Z", doUndo),
      button("redo", "Redo", "Control+Y", doRedo),
    ),
    el(
      "div",
      { class: "line" },
      alias,
      el("span", { id: "sent", class: "soft" }),
      button("import", "Import", null, () => byId("import-file").click()),
      button("export", "Export", "Control+S", doExport, "main"),
    ),
  );
}

function showWork() {
  const count = Object.keys(corrections()).length;
  const { steps, now } = reader;
  byId("said").textContent = `${count} correction${count === 1 ? "" : "s"}`;
  byId("history").textContent = now ? `last: ${steps[now].what}` : "";
  byId("history").title = `step ${now} of ${steps.length - 1}`;
  allow("undo", now > 0, `Undo: ${steps[now].what}`);
  allow("redo", now + 1 < steps.length, `Redo: ${now + 1 < steps.length ? steps[now + 1].what : ""}`);
  const alias = byId("alias");
  if (alias !== document.activeElement) alias.value = reader.alias;
  byId("sent").textContent = isUnsent() ? "not exported" : count ? "exported" : "";
}

// A button that can do no more gives the focus away: else the next keys would be lost.
function allow(id, can, title) {
  const button = byId(id);
  if (!can && button === document.activeElement) list.grid.focus({ preventScroll: true });
  button.disabled = !can;
  button.title = can ? title : "";
}

function doUndo() {
  afterStep(undo(), "Undone", "Nothing to undo");
}

function doRedo() {
  afterStep(redo(), "Done again", "Nothing to do again");
}

// What was undone is looked at: a step back that nobody sees is worse than none.
function afterStep(step, done, nothing) {
  showLimits();
  showCounts();
  afterChange(step ? `${done}: ${step.what}` : nothing);
  if (step && step.ids.length === 1 && step.ids[0] !== state.chosen) choose(step.ids[0]);
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
  showWork();
}

function doExport() {
  if (!reader.alias) return askAlias();
  exportFile();
  return afterChange("corrections.json exported");
}

function askAlias() {
  const dialog = byId("ask-alias");
  const input = el("input", {
    id: "alias-asked",
    maxlength: "32",
    autocomplete: "off",
    spellcheck: "false",
    "aria-labelledby": "alias-title",
    "aria-describedby": "alias-rule",
  });
  const form = el(
    "form",
    { method: "dialog" },
    el("h2", { id: "alias-title" }, "Who reads?"),
    el(
      "p",
      { id: "alias-rule" },
      "An alias, not your name: letters, digits, dots, underscores and hyphens, 32 at most.",
    ),
    input,
    el(
      "div",
      { class: "line" },
      el("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
      el("button", { type: "submit", class: "main" }, "Export"),
    ),
  );
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
    if (!reader.alias) reader.alias = alias;
    addStep(`import ${Object.keys(read).length}`, { ...corrections(), ...read });
    afterChange(`${Object.keys(read).length} corrections imported`);
    trouble("");
  } catch (error) {
    trouble(`${file.name} was not imported: ${error instanceof SyntaxError ? "it is no JSON" : error.message}`);
  }
}

function trouble(words) {
  troubles.splice(
    0,
    troubles.length,
    ...troubles.filter((each) => !each.includes("was not imported")),
    ...(words ? [words] : []),
  );
  showNotices();
  if (words) say(words);
}
