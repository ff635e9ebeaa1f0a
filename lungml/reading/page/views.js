// How does a person move through the planes, with a wheel, keys or a pointer?

// ---- moving
function goTo(at) {
  state.at = inside(at);
  draw();
  showPlace();
}

function stepSlices(name, steps) {
  const { w } = PLANES[name];
  const at = [...state.at];
  at[w] = clamp(nearest(at[w]) + steps, 0, SIZE[w] - 1);
  if (at[w] !== state.at[w]) goTo(at);
}

function zoomBy(view, factor, x = view.width / 2, y = view.height / 2) {
  const before = fromScreen(view, [x, y]);
  view.zoom = clamp(view.zoom * factor, 1, MOST_ZOOM);
  if (view.zoom === 1) view.center = middleOf(view.plane);
  else {
    const after = fromScreen(view, [x, y]);
    [view.plane.u, view.plane.v].forEach((axis, k) => {
      view.center[k] += (before[axis] - after[axis]) * SPACING[axis];
    });
  }
  draw(view.name);
}

function zoomAtCross(factor) {
  const view = views[state.focus];
  if (view.zoom * factor > 1) view.center = [view.plane.u, view.plane.v].map((axis) => state.at[axis] * SPACING[axis]);
  zoomBy(view, factor);
}

function resetViews() {
  for (const view of Object.values(views)) Object.assign(view, { zoom: 1, center: middleOf(view.plane) });
  draw();
}

function panBy(view, dx, dy) {
  if (view.zoom === 1) return;
  const k = scaleOf(view);
  view.center[0] -= dx / k;
  view.center[1] -= ((view.plane.flip ? -1 : 1) * dy) / k;
  draw(view.name);
}

// A place that lies outside of a zoomed view is brought into it.
function reveal(at) {
  for (const view of Object.values(views)) {
    const [x, y] = toScreen(view, at);
    if (view.zoom > 1 && (x < 40 || y < 40 || x > view.width - 40 || y > view.height - 40)) {
      view.center = [view.plane.u, view.plane.v].map((axis) => at[axis] * SPACING[axis]);
    }
  }
}

// ---- the pointer
function listen(view) {
  const { canvas } = view;
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  let drag = null;
  canvas.addEventListener("focus", () => {
    state.focus = view.name;
  });
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      if (event.ctrlKey || event.metaKey) {
        zoomBy(view, Math.exp(-clamp(event.deltaY, -60, 60) / 200), ...place(event));
        return;
      }
      const delta = event.deltaMode === 1 ? event.deltaY * WHEEL_STEP : event.deltaY;
      view.wheel += clamp(delta, -WHEEL_STEP, WHEEL_STEP);
      const steps = Math.trunc(view.wheel / WHEEL_STEP);
      view.wheel -= steps * WHEEL_STEP;
      // Down is to the feet, to the back, to the left.
      if (steps) stepSlices(view.name, view.name === "axial" ? -steps : steps);
    },
    { passive: false },
  );
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    if (event.button === 1) event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    const start = place(event);
    const pan = event.button !== 0 || event.shiftKey;
    drag = { start, last: start, moved: false, kind: pan ? "pan" : state.tool, at: inside(fromScreen(view, start)) };
    if (drag.kind === "add") state.draft = { at: drag.at, diameter: UNKNOWN_MM };
    if (drag.kind === "caliper") state.caliper = { plane: view.name, a: drag.at, b: drag.at };
    draw();
  });
  canvas.addEventListener("pointermove", (event) => {
    const point = place(event);
    showPointer(view, fromScreen(view, point));
    if (!drag) return;
    drag.moved = drag.moved || Math.hypot(point[0] - drag.start[0], point[1] - drag.start[1]) > CLICK_PX;
    const at = inside(fromScreen(view, point));
    if (drag.kind !== "move") at[view.plane.w] = drag.at[view.plane.w]; // a measure lies in one slice
    if (drag.kind === "pan") panBy(view, point[0] - drag.last[0], point[1] - drag.last[1]);
    else if (drag.kind === "move" && drag.moved) goTo(at);
    else if (drag.kind === "caliper" && state.caliper) state.caliper = { ...state.caliper, b: at };
    else if (drag.kind === "add" && state.draft && drag.moved) {
      state.draft = { at: drag.at, diameter: clamp(2 * caliperMm({ a: drag.at, b: at }), 1, WIDEST_MM) };
    }
    drag.last = point;
    draw(view.name);
  });
  const end = (event) => {
    if (!drag) return;
    const done = drag;
    drag = null;
    if (event.type === "pointercancel") state.draft = null;
    else if (done.kind === "move" && !done.moved) pick(view, done.start);
    else if (done.kind === "add" && state.draft)
      finishAdd(); // none is left where Esc came before
    else if (done.kind === "caliper" && state.caliper) finishCaliper(done.moved);
    draw();
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("pointerleave", () => showPointer(view, null));
}

// A click on a ring chooses its finding, anywhere else it moves the cross.
function pick(view, [x, y]) {
  const k = scaleOf(view);
  const slice = sliceOf(view.plane);
  const places = state.marks
    ? [
        ...shownFindings(view, slice).map((finding) => ({ row: rowOf.get(finding), place: finding })),
        ...addedRows()
          .filter((row) => touches(row, view.plane, slice))
          .map((row) => ({ row, place: row })),
      ]
    : [];
  const hit = places
    .map(({ row, place }) => {
      const [px, py] = toScreen(view, place.at);
      return { row, r: radiusOf(place) * k, away: Math.hypot(px - x, py - y) };
    })
    .filter(({ r, away }) => away <= Math.max(r, 3) + 4)
    .sort((a, b) => a.r - b.r)[0];
  if (hit) choose(hit.row.id, { move: false });
  goTo(inside(fromScreen(view, [x, y])));
}
