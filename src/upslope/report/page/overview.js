// Everything around curves and rollouts: header, summary, alarms, time, recipe, notes.
const EDGE = 5; // steps at either end whose mean stands for where a curve began and ended

function endsOf(run, name) {
  const known = (run.metrics[name] ?? []).filter((value) => value !== null);
  const width = Math.min(EDGE, Math.ceil(known.length / 2));
  return [mean(known.slice(0, width)), mean(known.slice(-width || undefined))];
}

const arrow = ([first, last]) => (first === null ? "–" : `${format(first)} → ${format(last)}`);
const trainSeconds = (run) => sum(run.metrics.step_s ?? []);
const progress = (run) => `${run.steps.at(-1) ?? 0}${run.total_steps ? ` of ${run.total_steps}` : ""}`;
const interval = ([, low, high]) => `[${format(low)}, ${format(high)}]`;

// The header's elements stay while its text changes: a button that is being pressed must not be replaced.
function setUpHeader() {
  fill("header",
    element("div", { class: "names" }, element("span", { class: "mark" }, "upslope"), element("h1", { id: "name" }),
      element("span", { id: "state", hidden: true }), element("span", { id: "said", class: "quiet" })),
    element("div", { class: "names" },
      data.live ? element("button", { id: "stop", class: "stop", disabled: true, onclick: askToStop }, "save and stop") : null,
      element("button", { id: "theme", onclick: () => { switchTheme(); redrawCurves(); }, title: "light or dark" }, "◐")));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawCurves);
}

function drawHeader() {
  const [run] = data.runs, single = data.runs.length === 1, state = single ? run.state : "";
  byId("name").textContent = single ? run.name : data.runs.length ? `${data.runs.length} runs` : "waiting";
  if (byId("state").textContent !== state) {
    byId("state").textContent = state;
    byId("state").className = `state ${state.split(" ")[0]}`;
    byId("state").hidden = !state;
    byId("said").textContent = "";
  }
  if (data.live) byId("stop").disabled = !state.startsWith("training");
}

function tile(name, value, detail) {
  return element("div", { class: "card tile", "data-name": name }, element("span", {}, name), element("b", {}, value), element("small", {}, detail ?? ""));
}

function tilesOf(run) {
  const rate = median(run.metrics["tokens_per_s/step"] ?? run.metrics.tokens_per_s ?? []);
  const trend = run.metrics.reward ? "reward" : "loss", gain = run.held_out.gain;
  return element("div", { class: "tiles" },
    gain ? tile("held-out metric", `${format(gain.before[0])} → ${format(gain.after[0])}`, `gain ${signed(gain.gain[0])}, 95% ${interval(gain.gain)}`) : null,
    tile(trend, arrow(endsOf(run, trend)), `mean of the first and last ${Math.min(EDGE, Math.ceil(run.steps.length / 2))} steps`),
    tile("steps", progress(run), trainSeconds(run) ? `${duration(trainSeconds(run))} of training` : ""),
    tile("speed", rate === null ? "–" : format(rate), "tokens a second, whole step, median"),
    tile("method", run.method ?? "–", [run.task, run.model].filter(Boolean).join(" · ")));
}

function tableOf(runs) {
  const head = ["", "run", "method", "task", "steps", "reward or loss", "held-out gain", "training", "state"];
  const row = (run) => {
    const shown = element("input", { type: "checkbox", checked: run.shown, "aria-label": `show ${run.name}`,
      onchange: () => { run.shown = shown.checked; drawCurves(); } });
    const gain = run.held_out.gain;
    return [element("span", {}, shown, swatch(run.colour)), run.name, run.method ?? "–", run.task ?? "–", progress(run),
      arrow(endsOf(run, run.metrics.reward ? "reward" : "loss")), gain ? `${signed(gain.gain[0])} ${interval(gain.gain)}` : "–",
      duration(trainSeconds(run)), run.state];
  };
  return element("div", { class: "card scroll" }, element("table", { class: "wide" },
    element("thead", {}, element("tr", {}, head.map((name) => element("th", {}, name)))),
    element("tbody", {}, runs.map((run) => element("tr", {}, row(run).map((cell) => element("td", {}, cell)))))));
}

// Before and after as means with whiskers, on one scale for all runs.
function heldOutView(runs) {
  const rows = runs.filter((run) => run.held_out.gain).flatMap(({ name, colour: index, held_out: { gain } }) => [
    { name, index, shade: `var(--line-${index % NUM_COLOURS})`, label: `before, step ${gain.steps[0]}`, numbers: gain.before },
    { name, index, shade: `var(--line-${index % NUM_COLOURS})`, label: `after, step ${gain.steps[1]}`, numbers: gain.after },
    { name, index, shade: "var(--line-2)", label: `gain over ${gain.num_prompts} prompts`, numbers: gain.gain, gain: true },
  ]);
  if (!rows.length) return null;
  const ends = rows.flatMap(({ numbers }) => numbers), low = Math.min(0, ...ends), high = Math.max(...ends, low + 1e-9);
  const place = (value) => 1 + (98 * (value - low)) / (high - low || 1);
  return element("div", { class: "card heldout" }, element("table", {}, rows.map(({ name, index, shade, label, numbers, gain }) =>
    element("tr", {}, element("th", {}, runs.length > 1 ? [swatch(index), `${name} · `] : null, label),
      element("td", { class: "number" }, gain ? signed(numbers[0]) : format(numbers[0])), element("td", { class: "quiet" }, interval(numbers)),
      element("td", { class: "whisker" }, element("i", { class: "zero", style: `left: ${place(0)}%` }),
        element("i", { class: "bar", style: `left: ${place(numbers[1])}%; width: ${place(numbers[2]) - place(numbers[1])}%; background: ${shade}` }),
        element("i", { class: "dot", style: `left: ${place(numbers[0])}%; background: ${shade}` }))))));
}

function drawSummary() {
  const runs = data.runs;
  if (!runs.length) return fill("summary", element("p", { class: "quiet" }, "Waiting for the run to begin."));
  const damaged = runs.filter((run) => run.damaged).map((run) => `${run.damaged} lines of the logs of ${run.name} could not be read and are left out.`);
  const heldOut = heldOutView(runs);
  return fill("summary", runs.length === 1 ? tilesOf(runs[0]) : tableOf(runs),
    heldOut ? [heading("Held-out prompts", "mean of the metric with its 95% bootstrap interval; the gain is paired by prompt"), heldOut] : null,
    damaged.map((text) => element("p", { class: "warning" }, text)));
}

function drawAlarms() {
  const rows = data.runs.flatMap((run) => run.alarms.map((alarm) => ({ run, alarm })));
  const when = ({ begin, end }) => (end === null ? `since step ${begin}` : `steps ${begin} to ${end}`);
  fill("alarms", rows.length ? [heading("Alarms", "what training warned of; red bands in the curves"),
    element("div", { class: "card scroll" }, element("table", { class: "wide" }, rows.map(({ run, alarm }) =>
      element("tr", { class: alarm.end === null ? "open" : "" }, data.runs.length > 1 ? element("td", {}, run.name) : null,
        element("td", { class: "nowrap" }, when(alarm)), element("td", { class: "nowrap" }, element("b", {}, alarm.name)), element("td", {}, alarm.text)))))] : []);
}

function timeOf(run) {
  const parts = Object.keys(run.metrics).filter((name) => name.startsWith("time/"))
    .map((name, index) => ({ name: name.slice(5), index, seconds: run.metrics[name] })).filter(({ seconds }) => sum(seconds) > 0);
  const total = sum(parts.map(({ seconds }) => sum(seconds)));
  if (!total) return null;
  const share = ({ seconds }) => (100 * sum(seconds)) / total;
  return element("div", { class: "card" }, data.runs.length > 1 ? element("h3", {}, run.name) : null,
    element("div", { class: "stack" }, parts.map((part) => element("i", { title: `${part.name} ${share(part).toFixed(1)}%`, style: `width: ${share(part)}%; background: var(--line-${part.index % NUM_COLOURS})` }))),
    element("div", { class: "keys" }, parts.map((part) => element("span", { class: "key" }, swatch(part.index), part.name,
      element("b", {}, `${share(part).toFixed(1)}%`), element("small", {}, `${format(median(part.seconds))} s`)))));
}

function drawTime() {
  const views = data.runs.map(timeOf).filter(Boolean);
  fill("time", views.length ? [heading("Where the time went", "share of all steps, and median seconds of a step"), views] : []);
}

function drawRecipe() {
  const known = data.runs.filter((run) => run.recipe), recipes = JSON.stringify(known.map((run) => run.recipe));
  if (byId("recipe").dataset.shown === recipes) return; // what is unfolded stays so
  byId("recipe").dataset.shown = recipes;
  fill("recipe", known.length ? [heading("Recipe", "every setting as resolved"), known.map((run) => element("details", { class: "card" },
    element("summary", {}, `${run.folder}/recipe.toml`), element("pre", {}, run.recipe)))] : []);
}

function drawNotes() {
  const rows = data.runs.flatMap((run) => run.notes.map((note) => [run, ...note]));
  fill("notes", rows.length ? [heading("What else happened"), element("div", { class: "card scroll" }, element("table", { class: "wide" },
    rows.map(([run, step, what, details]) => element("tr", {}, data.runs.length > 1 ? element("td", {}, run.name) : null,
      element("td", { class: "nowrap" }, `step ${step}`), element("td", { class: "nowrap" }, element("b", {}, what)), element("td", {}, details)))))] : []);
}

function adopt(run, index, runs) {
  const alone = runs.filter((other) => other.name === run.name).length === 1;
  return { ...run, name: alone ? run.name : run.folder, colour: index, shown: true };
}
