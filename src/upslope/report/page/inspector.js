// Rollouts: filtered in a list of which only the visible part is drawn, one shown token by token.
const ROW_HEIGHT = 30;
const SPARE_ROWS = 8;
const inspector = { run: 0, found: [], chosen: null, shade: null, filters: {} };
const inspectedRun = () => data.runs[inspector.run];

const scoreOf = (rollout) => rollout.score ?? -Infinity;
const ended = (rollout) => rollout.stop_reason !== "length";

// The best and the worst rollout of each step, training and held-out apart.
function extremes(rollouts) {
  const ends = new Map();
  for (const one of rollouts) {
    const key = `${one.step} ${one.held_out}`, known = ends.get(key);
    if (one.score === null) continue;
    if (!known) ends.set(key, [one, one]);
    else if (one.score > known[0].score) known[0] = one;
    else if (one.score < known[1].score) known[1] = one;
  }
  return new Set([...ends.values()].flat());
}

function matches(one, filters) {
  const between = (value, low, high) => (low === null || value >= low) && (high === null || value <= high);
  return between(one.step, filters.from, filters.to)
    && between(scoreOf(one), filters.low, filters.high)
    && (filters.group === null || one.group === filters.group)
    && (filters.source === "all" || one.held_out === (filters.source === "held_out"))
    && (filters.ending === "all" || ended(one) === (filters.ending === "ended"))
    && (!filters.words || `${promptText(one.prompt)}\n${one.text}`.toLowerCase().includes(filters.words));
}

const ORDERS = {
  step: (a, b) => a.step - b.step,
  newest: (a, b) => b.step - a.step,
  best: (a, b) => scoreOf(b) - scoreOf(a),
  worst: (a, b) => scoreOf(a) - scoreOf(b),
};

function readFilters() {
  const number = (id) => (byId(id).value.trim() === "" ? null : Number(byId(id).value));
  return { from: number("step-from"), to: number("step-to"), low: number("reward-from"), high: number("reward-to"),
    group: number("group"), source: byId("source").value, ending: byId("ending").value,
    words: byId("words").value.trim().toLowerCase(), extremes: byId("extremes").checked, order: byId("order").value };
}

function applyFilters({ keep = false } = {}) {
  const run = inspectedRun(), filters = readFilters();
  let found = run.rollouts.filter((one) => matches(one, filters));
  if (filters.extremes) {
    const kept = extremes(found);
    found = found.filter((one) => kept.has(one));
  }
  inspector.found = found.sort(ORDERS[filters.order]);
  byId("count").textContent = `${found.length} of ${run.rollouts.length} rollouts`;
  byId("rows").style.height = `${found.length * ROW_HEIGHT}px`;
  if (!keep) byId("list").scrollTop = 0;
  if (!found.includes(inspector.chosen)) inspector.chosen = found[0] ?? null;
  drawRows();
  if (!keep || !byId("detail").childNodes.length) showRollout(inspector.chosen);
}

function drawRows() {
  const list = byId("list"), first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - SPARE_ROWS);
  const last = first + Math.ceil((list.clientHeight || 480) / ROW_HEIGHT) + 2 * SPARE_ROWS;
  byId("rows").replaceChildren(...inspector.found.slice(first, last).map((one, place) => {
    const tag = element("span", { class: "tag" }, one.held_out ? "held-out" : `group ${one.group}`);
    const preview = [element("em", {}, promptText(one.prompt).slice(-60)), ` ${one.text.slice(0, 160)}`];
    const row = element("button", { class: "row", role: "option", "aria-selected": String(one === inspector.chosen), onclick: () => choose(one) },
      element("span", { class: "step" }, String(one.step)), scoreView(one), tag, element("span", { class: "preview" }, preview));
    row.style.top = `${(first + place) * ROW_HEIGHT}px`;
    return row;
  }));
}

// A reward as a number on a bar from the run's lowest to its highest.
function scoreView(one) {
  const [low, high] = rewardRange(inspectedRun());
  const share = one.score === null || high === low ? 0 : (one.score - low) / (high - low);
  return element("span", { class: "score", title: "reward" },
    element("i", { style: `width: ${(100 * share).toFixed(1)}%` }), element("b", {}, format(one.score)));
}

function rewardRange(run) {
  if (run.range?.count !== run.rollouts.length) {
    let low = Infinity, high = -Infinity;
    for (const { score } of run.rollouts) if (score !== null) [low, high] = [Math.min(low, score), Math.max(high, score)];
    run.range = { count: run.rollouts.length, ends: [low, high] };
  }
  return run.range.ends;
}

function choose(rollout) {
  inspector.chosen = rollout;
  drawRows();
  showRollout(rollout);
}

function moveChoice(event) {
  const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!move || !inspector.found.length) return;
  event.preventDefault();
  const place = Math.max(0, Math.min(inspector.found.length - 1, inspector.found.indexOf(inspector.chosen) + move));
  const list = byId("list"), top = place * ROW_HEIGHT;
  list.scrollTop = Math.max(top + ROW_HEIGHT - list.clientHeight, Math.min(top, list.scrollTop));
  choose(inspector.found[place]);
}

function facts(one) {
  const pairs = [["step", one.step], ["reward", format(one.score)], ["tokens", one.ids.length],
    ["ended", { eos: "by itself", stop: "at a stop string", length: "no, it was cut" }[one.stop_reason] ?? one.stop_reason]];
  if (!one.held_out) pairs.push(["group", `${one.group}, sample ${one.sample}`], ["weights of step", one.version]);
  if (Array.isArray(one.kl) || one.kl !== null) pairs.push(["KL of the row", format(Array.isArray(one.kl) ? sum(one.kl) : one.kl * one.ids.length)]);
  if (one.failure) pairs.push(["not scored", one.failure]);
  const list = (kind, entries) => element("dl", { class: kind }, entries.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, String(value)))));
  const terms = Object.entries(one.terms).map(([name, value]) => [name, format(value)]);
  return [list("facts", pairs), terms.length ? list("facts terms", terms) : null];
}

// The other rows that were logged of the same group: what its baseline was made of.
function groupView(one) {
  const others = inspectedRun().rollouts.filter((other) => other !== one && other.step === one.step && !other.held_out && other.group === one.group);
  if (one.held_out || !others.length) return null;
  return element("div", { class: "others" }, element("h3", {}, "Others of its group"), others.map((other) =>
    element("button", { onclick: () => choose(other) }, scoreView(other), element("span", { class: "preview" }, other.text.slice(0, 160)))));
}

function showRollout(one) {
  hideTip();
  const detail = byId("detail"), run = inspectedRun();
  if (!one) return detail.replaceChildren(element("p", { class: "quiet" }, "No rollout matches."));
  const shade = one[inspector.shade] !== null ? inspector.shade : "logprobs";
  const others = run.rollouts.filter((other) => other.prompt_id === one.prompt_id && other.step !== one.step);
  detail.replaceChildren(
    element("div", { class: "detail-head" },
      element("strong", {}, `${one.held_out ? "Held-out" : "Training"} prompt ${one.prompt_id}`),
      others.length ? element("button", { onclick: () => compare(one, others) }, "compare with another step") : null),
    ...facts(one).filter(Boolean), promptView(one.prompt), tokenView(run, one, shade),
    one.pieces === null ? "" : shadeLegend(run, shade), groupView(one) ?? "");
}

// From a click on a curve: that step's rollouts, or those of the last step before it that has any.
function showStep(step) {
  if (step === undefined || step === null || !byId("step-from")) return;
  const before = (known, one) => (one.step <= step && one.step > known ? one.step : known);
  byId("step-from").value = byId("step-to").value = String(inspectedRun().rollouts.reduce(before, 0));
  applyFilters();
  byId("rollouts").scrollIntoView({ behavior: "smooth" });
}

function clearFilters() {
  for (const id of ["step-from", "step-to", "reward-from", "reward-to", "group", "words"]) byId(id).value = "";
  [byId("source").value, byId("ending").value] = [usualSource(inspectedRun()), "all"];
  byId("extremes").checked = false;
  applyFilters();
}

const SOURCES = [["training", "training"], ["held_out", "held-out"], ["all", "both"]];
const usualSource = (run) => (run.rollouts.some((one) => !one.held_out) ? "training" : "all");

function filterControls() {
  const number = (id, hint) => element("input", { id, type: "number", step: "any", placeholder: hint, oninput: () => applyFilters() });
  const pick = (id, choices) => Object.assign(choice(choices, choices[0][0], () => applyFilters()), { id });
  const range = (text, one, other) => element("span", { class: "pair" }, element("span", {}, text), one, "–", other);
  const run = data.runs.length > 1
    ? labelled("run", choice(data.runs.map((one, place) => [place, one.name]), inspector.run, (value) => { inspector.run = Number(value); setUpInspector(); setUpChanges(); }))
    : null;
  const shades = shadesOf(inspectedRun());
  if (!shades.includes(inspector.shade)) inspector.shade = shades[0] ?? "logprobs";
  const shade = choice(shades.map((name) => [name, SHADES[name]]), inspector.shade, (value) => { inspector.shade = value; showRollout(inspector.chosen); });
  return element("div", { class: "controls" }, run,
    range("step", number("step-from", "first"), number("step-to", "last")),
    range("reward", number("reward-from", "min"), number("reward-to", "max")),
    labelled("group", number("group", "any")),
    labelled("of", pick("source", SOURCES)),
    labelled("ended", pick("ending", [["all", "either way"], ["ended", "by itself"], ["cut", "cut"]])),
    labelled("order", pick("order", [["step", "by step"], ["newest", "newest first"], ["best", "best first"], ["worst", "worst first"]])),
    element("input", { id: "words", type: "search", placeholder: "words in prompt or text", oninput: () => applyFilters() }),
    element("label", { class: "check" }, element("input", { id: "extremes", type: "checkbox", onchange: () => applyFilters() }), "best and worst of each step"),
    labelled("shade by", Object.assign(shade, { id: "shade" })),
    element("button", { onclick: clearFilters }, "clear"));
}

function setUpInspector() {
  if (!data.runs.length) return fill("rollouts");
  if (!inspectedRun().rollouts.length) {
    return fill("rollouts", heading("Rollouts"), data.runs.length > 1 ? filterControlsOfNothing() : null,
      element("p", { class: "quiet" }, "This run has logged no rollouts; run.samples_per_step says how many of each step are kept."));
  }
  inspector.chosen = null;
  fill("rollouts", heading("Rollouts", "each token shaded; put the cursor on one for its numbers"), filterControls(),
    element("div", { class: "inspector" },
      element("div", { class: "card listing" }, element("div", { id: "count", class: "quiet" }),
        element("div", { id: "list", role: "listbox", tabIndex: 0, onscroll: drawRows, onkeydown: moveChoice }, element("div", { id: "rows" }))),
      element("div", { id: "detail", class: "card" })));
  byId("source").value = usualSource(inspectedRun());
  applyFilters();
}

// Where one of several runs has no rollouts, another can still be chosen.
function filterControlsOfNothing() {
  return element("div", { class: "controls" }, labelled("run", choice(data.runs.map((one, place) => [place, one.name]), inspector.run,
    (value) => { inspector.run = Number(value); setUpInspector(); setUpChanges(); })));
}
