// Curves: a chart for each kind of metric; one cursor and one zoom for all of them.
const HEIGHT = 176;
const curves = { zoom: null, smoothing: 0, axis: "step", drawn: new Map() };
const shownRuns = () => data.runs.filter((run) => run.shown);

// A run's place on the x axis: its steps, or minutes of training behind them.
function places(run) {
  if (curves.axis === "step") return run.steps;
  let total = 0;
  return (run.metrics.step_s ?? run.steps.map(() => 0)).map((seconds) => (total += (seconds ?? 0) / 60));
}

function placeOf(run, step) {
  if (curves.axis === "step") return step;
  const behind = run.steps.findLastIndex((other) => other <= step);
  return behind < 0 ? 0 : places(run)[behind];
}

// Charts with the names of their metrics spelt out; a metric that no chart claims gets one of its own.
function layout(names) {
  const left = new Set(names.filter((name) => !data.no_chart.includes(name)));
  const claims = (wanted, name) => (wanted.endsWith("/") ? name.startsWith(wanted) : name === wanted);
  const charts = data.charts.map((chart) => {
    const found = chart.names.flatMap((wanted) => names.filter((name) => claims(wanted, name)));
    found.forEach((name) => left.delete(name));
    return { ...chart, names: found, label: (name) => name.slice(name.indexOf("/") + 1) };
  });
  const others = [...left].map((name) => ({ title: name, unit: "", about: "", names: [name], label: (n) => n }));
  return [...charts.filter((chart) => chart.names.length), ...others];
}

// Exponential moving average, started without bias; gaps stay gaps.
function smooth(values, weight) {
  let level = 0, seen = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return null;
    level = weight * level + (1 - weight) * value;
    seen = weight * seen + (1 - weight);
    return level / seen;
  });
}

// One line: where it comes from, its points, and for held-out metrics the bounds of its intervals.
function linesOf(chart) {
  const several = shownRuns().length > 1;
  return shownRuns().flatMap((run) =>
    chart.names
      .map((name, place) => ({
        label: [several ? run.name : "", chart.names.length > 1 ? chart.label(name) : ""].filter(Boolean).join(" · "),
        colour: several ? run.colour : place,
        dash: several && place ? [[6, 3], [2, 3], [8, 3, 2, 3]][(place - 1) % 3] : [],
        x: places(run),
        y: run.metrics[name] ?? [],
      }))
      .filter((line) => line.y.some((value) => value !== null)),
  );
}

function heldOutLines() {
  return shownRuns()
    .filter((run) => run.held_out.curve.length > 2) // two are told by the table of before and after
    .map((run) => ({
      label: shownRuns().length > 1 ? run.name : "",
      colour: run.colour,
      dash: [],
      points: true,
      x: run.held_out.curve.map(([step]) => placeOf(run, step)),
      y: run.held_out.curve.map(([, estimate]) => estimate),
      bounds: [3, 2].map((place) => run.held_out.curve.map((row) => row[place])),
    }));
}

// Interquartile means over runs that differ by seed alone, while one of them is shown.
function seedLines() {
  const groups = (data.over_seeds ?? []).filter(({ runs, curve }) => curve.length > 1 && runs.some((place) => data.runs[place].shown));
  return groups.map(({ runs, curve }) => ({
    label: `${data.runs[runs[0]].name} and ${runs.length - 1} more`,
    colour: data.runs[runs[0]].colour,
    dash: [],
    points: true,
    x: curve.map(([step]) => placeOf(data.runs[runs[0]], step)),
    y: curve.map(([, estimate]) => estimate),
    bounds: [3, 2].map((place) => curve.map((row) => row[place])),
  }));
}

// uPlot's columns and series: each line raw (faint where it is smoothed), then smoothed, then its bounds.
function columns(lines) {
  const tables = [], series = [{}], bands = [];
  lines.forEach((line, index) => {
    const stroke = lineColour(line.colour), smoothed = curves.smoothing > 0 && !line.points;
    const table = [line.x, line.y];
    series.push({ stroke, dash: line.dash, width: smoothed ? 1 : 1.75, alpha: smoothed ? 0.28 : 1, spanGaps: true,
      points: { show: line.points ?? false, size: 7, fill: stroke } });
    line.column = series.length - 1;
    if (smoothed) {
      table.push(smooth(line.y, curves.smoothing));
      series.push({ stroke, dash: line.dash, width: 1.75, spanGaps: true, points: { show: false } });
      line.column = series.length - 1;
    }
    for (const bound of line.bounds ?? []) {
      table.push(bound);
      series.push({ stroke: "transparent", width: 0, points: { show: false } });
    }
    if (line.bounds) bands.push({ series: [series.length - 2, series.length - 1], fill: stroke + "2a" });
    tables.push(table);
  });
  return { table: tables.length ? uPlot.join(tables) : [[]], series, bands };
}

// The range of y: a little air around the values, none below 0 where all are at or above it.
function rangeOfY(_, low, high) {
  if (low === null || low === undefined) return [0, 1];
  const air = (high - low || Math.abs(high) || 1) * 0.08;
  return [low >= 0 && low - air < 0 ? 0 : low - air, high + air];
}

function rangeOfX() {
  const ends = shownRuns().flatMap((run) => {
    const steps = places(run), first = run.held_out.curve.length ? placeOf(run, run.held_out.curve[0][0]) : steps[0];
    return steps.length ? [Math.min(first, steps[0]), steps.at(-1)] : [];
  });
  const low = Math.min(...ends), high = Math.max(...ends);
  return ends.length ? (low < high ? [low, high] : [low - 0.5, high + 0.5]) : [0, 1];
}

function setZoom(range) {
  curves.zoom = range;
  const [min, max] = range ?? rangeOfX();
  for (const { plot } of curves.drawn.values()) plot.setScale("x", { min, max });
  byId("unzoom").hidden = range === null;
}

// Behind the lines: alarms as bands from where they began to where they ended; places where the run was resumed as dashed lines.
function drawMarks(plot) {
  const { ctx, bbox } = plot, at = (place) => plot.valToPos(place, "x", true);
  const inside = (x) => Math.max(bbox.left, Math.min(bbox.left + bbox.width, x));
  ctx.save();
  for (const run of shownRuns()) {
    const end = run.steps.at(-1) ?? 0;
    for (const alarm of run.alarms) {
      const left = inside(at(placeOf(run, alarm.begin))), right = inside(at(placeOf(run, alarm.end ?? end)));
      ctx.fillStyle = colour("--alarm-band");
      ctx.fillRect(left, bbox.top, Math.max(right - left, 2), bbox.height);
      ctx.fillStyle = colour("--alarm");
      ctx.fillRect(left, bbox.top, Math.max(right - left, 2), 2 * devicePixelRatio);
    }
    ctx.strokeStyle = colour("--faint");
    ctx.setLineDash([4, 4]);
    for (const [step] of run.notes.filter(([step, what]) => what === "resume" && step > 0)) {
      const x = at(placeOf(run, step));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
  }
  ctx.restore();
}

// The numbers beside a chart's title: those under the cursor, else the last ones.
function readOut(drawn) {
  const { plot, lines, values, where } = drawn, [steps] = plot.data;
  const index = plot.cursor.idx ?? null;
  lines.forEach((line, place) => {
    const column = plot.data[line.column];
    let at = index ?? column.length - 1;
    while (at > 0 && (column[at] === null || column[at] === undefined)) at -= 1;
    values[place].textContent = format(column[at]);
  });
  where.textContent = index === null ? "" : `${curves.axis} ${format(steps[index])}`;
}

// Labels of an axis: as many decimals as the distance between two ticks asks for.
function axisLabels(_, ticks, __, ___, distance) {
  const size = Math.max(...ticks.map(Math.abs)), whole = (number) => Math.abs(number - Math.round(number)) < 1e-6;
  const decimals = [0, 1, 2, 3, 4, 5].find((count) => whole(distance * 10 ** count)) ?? 6;
  const label = (tick) => (size < 1e-3 || size >= 1e6 ? tick.toExponential(1).replace("e+", "e") : tick.toFixed(decimals));
  return ticks.map((tick) => (tick === 0 ? "0" : label(tick)));
}

const axisStyle = () => ({ stroke: () => colour("--muted"), grid: { stroke: () => colour("--grid"), width: 1 }, ticks: { show: false },
  font: "11px system-ui, sans-serif" });

function options(drawn, { series, bands }, width) {
  const axis = axisStyle();
  return {
    width, height: HEIGHT, padding: [8, 10, 0, 0], series, bands,
    legend: { show: false },
    scales: { x: { time: false, auto: false }, y: { range: rangeOfY } },
    axes: [{ ...axis, size: 26, gap: 3 }, { ...axis, size: 50, gap: 4, values: axisLabels }],
    cursor: {
      y: false,
      points: { size: 7 },
      drag: { x: true, y: false, setScale: false },
      sync: { key: "steps", scales: ["x", null], setSeries: false, filters: { pub: (kind) => kind === "mousemove" || kind === "mouseleave" } },
      bind: { dblclick: () => () => setZoom(null) },
    },
    hooks: {
      drawClear: [drawMarks],
      setCursor: [() => drawn.plot && readOut(drawn)],
      setSelect: [(plot) => {
        if (plot.select.width < 4) return;
        const ends = [plot.select.left, plot.select.left + plot.select.width].map((x) => plot.posToVal(x, "x"));
        plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        setZoom(ends);
      }],
    },
  };
}

function drawChart(grid, chart, lines) {
  const values = lines.map(() => element("b", {}));
  const where = element("span", { class: "where" });
  const keys = lines.map((line, place) =>
    element("span", { class: "key" }, lines.length > 1 || line.label ? swatch(line.colour) : null, line.label, values[place]));
  const body = element("div", { class: "plot" });
  grid.append(element("figure", { class: "card chart", "data-title": chart.title },
    element("figcaption", { title: chart.about },
      element("strong", {}, chart.title), element("small", {}, chart.unit), where, element("span", { class: "keys" }, keys)),
    body));
  const drawn = { lines, values, where, body };
  const made = columns(lines);
  drawn.plot = new uPlot(options(drawn, made, body.clientWidth || 320), made.table, body);
  body.addEventListener("click", () => curves.axis === "step" && showStep(drawn.plot.data[0][drawn.plot.cursor.idx]));
  curves.drawn.set(chart.title, drawn);
  readOut(drawn);
}

function chartsToDraw() {
  const names = [...new Set(shownRuns().flatMap((run) => Object.keys(run.metrics)))];
  const charts = layout(names).map((chart) => ({ chart, lines: linesOf(chart) }));
  const heldOut = { title: "Held-out metric", unit: "", about: "mean and 95% bootstrap interval", names: [] };
  const overSeeds = { title: "Held-out metric over seeds", unit: "", about: "interquartile mean and 95% bootstrap interval over runs", names: [] };
  return [{ chart: overSeeds, lines: seedLines() }, { chart: heldOut, lines: heldOutLines() }, ...charts].filter(({ lines }) => lines.length);
}

// New values go into the charts that stand; where charts or lines come or go, all are drawn anew.
function drawCurves() {
  const wanted = chartsToDraw();
  const flat = wanted.filter(({ lines }) => lines.every(({ y }) => y.every((value) => !value)));
  const live = wanted.filter((one) => !flat.includes(one));
  const signature = JSON.stringify([live.map(({ chart, lines }) => [chart.title, lines.map((line) => [line.label, line.colour])]),
    curves.smoothing, curves.axis]);
  const grid = byId("grid");
  if (signature !== curves.signature) {
    curves.drawn.forEach(({ plot }) => plot.destroy());
    curves.drawn.clear();
    grid.replaceChildren();
    live.forEach(({ chart, lines }) => drawChart(grid, chart, lines));
    curves.signature = signature;
  } else {
    for (const { chart, lines } of live) {
      const drawn = curves.drawn.get(chart.title), made = columns(lines);
      drawn.lines = lines;
      drawn.plot.setData(made.table, false);
      readOut(drawn);
    }
  }
  drawOverOptimisation(grid);
  byId("flat").textContent = flat.length ? `Zero at every step: ${flat.map(({ chart }) => chart.title.toLowerCase()).join(", ")}.` : "";
  setZoom(curves.zoom);
}

// Reward and gold over the square root of the KL, each on an axis of its own: where gold turns down, the reward is over-optimised.
function drawOverOptimisation(grid) {
  curves.over?.plot.destroy();
  curves.over?.figure.remove();
  const runs = shownRuns().filter((run) => run.over_optimisation.length > 2), several = runs.length > 1;
  curves.over = null;
  if (!runs.length) return;
  const lines = runs.flatMap((run) => ["reward", "gold"].map((name, place) => ({ name, label: several ? `${run.name} · ${name}` : name,
    colour: several ? run.colour : place, x: run.over_optimisation.map(([x]) => x), y: run.over_optimisation.map((point) => point[place + 1]) })));
  const body = element("div", { class: "plot" }), values = lines.map(() => element("b", {}));
  const figure = element("figure", { class: "card chart", "data-title": "Over-optimisation" },
    element("figcaption", { title: "means of equally many steps of neighbouring KL; reward on the left axis, gold on the right" },
      element("strong", {}, "Reward and gold over √KL"), element("small", {}, "nats a row"),
      element("span", { class: "keys" }, lines.map(({ label, colour: index }, place) => element("span", { class: "key" }, swatch(index), label, values[place])))), body);
  const gold = curves.drawn.get("Gold");
  if (gold) gold.body.parentElement.after(figure);
  else grid.append(figure);
  const axis = { ...axisStyle(), size: 50, gap: 4, values: axisLabels };
  const drawn = { lines: lines.map((line, place) => ({ ...line, column: place + 1 })), values, where: element("i") };
  drawn.plot = new uPlot({
    width: body.clientWidth || 320, height: HEIGHT, padding: [8, 10, 0, 0], legend: { show: false },
    series: [{}, ...lines.map(({ name, colour: index }) => ({ scale: name, stroke: lineColour(index), width: 1.75, spanGaps: true,
      dash: several && name === "gold" ? [6, 3] : [], points: { show: true, size: 5 } }))],
    scales: { x: { time: false }, reward: { range: rangeOfY }, gold: { range: rangeOfY } },
    axes: [{ ...axisStyle(), size: 26, gap: 3, values: axisLabels }, { ...axis, scale: "reward" }, { ...axis, scale: "gold", side: 1, grid: { show: false } }],
    cursor: { y: false, drag: { x: false, y: false } }, hooks: { setCursor: [() => drawn.plot && readOut(drawn)] },
  }, uPlot.join(lines.map(({ x, y }) => [x, y])), body);
  readOut(drawn);
  curves.over = { plot: drawn.plot, figure, body };
}

// In other colours.
function redrawCurves() {
  curves.signature = null;
  drawCurves();
}

function setUpCurves() {
  const smoothing = element("input", { type: "range", min: "0", max: "0.95", step: "0.05", value: "0", id: "smoothing",
    oninput: () => { curves.smoothing = Number(smoothing.value); drawCurves(); } });
  const axis = choice([["step", "step"], ["minute", "minute of training"]], "step", (value) => {
    Object.assign(curves, { axis: value, zoom: null });
    drawCurves();
  });
  const unzoom = element("button", { id: "unzoom", onclick: () => setZoom(null) }, "whole range");
  fill("curves", heading("Curves", "drag to zoom, double-click to see all, click for the rollouts of a step"),
    element("div", { class: "controls" }, labelled("over", axis), labelled("smoothing", smoothing), unzoom),
    element("div", { id: "grid" }), element("p", { id: "flat", class: "quiet" }));
  new ResizeObserver(() => {
    for (const { plot, body } of [...curves.drawn.values(), ...(curves.over ? [curves.over] : [])]) {
      if (body.clientWidth && body.clientWidth !== plot.width) plot.setSize({ width: body.clientWidth, height: HEIGHT });
    }
  }).observe(byId("grid"));
}
