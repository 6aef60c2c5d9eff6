// The page put together; and, where it is served while a run trains, kept up to date.
function drawAll() {
  for (const draw of [drawHeader, drawSummary, drawAlarms, drawCurves, drawReliability, drawTime, drawRecipe, drawNotes]) draw();
}

// New steps go behind those that are there; everything else is as the update says.
function merge(known, run) {
  const length = known.steps.length, added = run.steps.length;
  const metrics = {};
  for (const name of new Set([...Object.keys(known.metrics), ...Object.keys(run.metrics)])) {
    metrics[name] = [...(known.metrics[name] ?? Array(length).fill(null)), ...(run.metrics[name] ?? Array(added).fill(null))];
  }
  return { ...known, ...run, metrics, steps: [...known.steps, ...run.steps], rollouts: [...known.rollouts, ...run.rollouts] };
}

function take({ whole, run, problem }) {
  if (problem) byId("said").textContent = problem;
  if (!run) return;
  const before = data.runs[0], had = before?.rollouts.length ?? 0;
  data.runs = [whole || !before ? run : merge(before, run)].map(adopt);
  drawAll();
  if (whole || !had) setUpInspector();
  else if (run.rollouts.length) applyFilters({ keep: true });
  if (whole || run.rollouts.length) setUpChanges({ keep: !whole });
}

async function askToStop() {
  if (!confirm("Save after the step in progress, and stop training?")) return;
  const answer = await fetch("stop", { method: "POST" });
  const said = await answer.json();
  byId("said").textContent = said.problem ?? "asked to save and stop";
}

function listen() {
  const source = new EventSource("events");
  source.onmessage = (event) => take(JSON.parse(event.data));
  source.onopen = () => { byId("said").textContent = ""; };
  source.onerror = () => { byId("said").textContent = "not connected: upslope watch has ended, or is out of reach"; };
}

data.runs = data.runs.map(adopt);
setUpHeader();
setUpCurves();
drawAll();
if (data.live) {
  listen();
} else {
  setUpInspector();
  setUpChanges();
}
