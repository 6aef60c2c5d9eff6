// A reward model on held-out pairs: how often it orders them right against how sure it is, and what length would give.
function reliabilityPlot(bins) {
  const size = 230, edge = 30, scale = size - 2 * edge, most = Math.max(...bins.map(([, , count]) => count));
  const x = (sure) => edge + 2 * (sure - 0.5) * scale, y = (right) => size - edge - right * scale;
  const text = (at, words, side) => svg("text", { x: at[0], y: at[1], "text-anchor": side, "font-size": 11, fill: "var(--muted)" }, words);
  const dots = bins.map(([sure, right, count]) => svg("circle", { cx: x(sure), cy: y(right), r: 2 + 8 * Math.sqrt(count / most), fill: "var(--accent)", "fill-opacity": 0.65 },
    svg("title", {}, `confidence ${format(sure)}, accuracy ${format(right)}, ${count} pairs`)));
  return svg("svg", { viewBox: `0 0 ${size} ${size}`, width: size, height: size, role: "img", "aria-label": "accuracy against confidence" },
    svg("rect", { x: edge, y: edge, width: scale, height: scale, fill: "none", stroke: "var(--line)" }),
    svg("line", { x1: x(0.5), y1: y(0.5), x2: x(1), y2: y(1), stroke: "var(--faint)", "stroke-dasharray": 4 }), ...dots,
    text([x(0.5), size - edge + 14], "0.5", "start"), text([x(0.75), size - edge + 14], "confidence", "middle"), text([x(1), size - edge + 14], "1", "end"),
    text([edge - 4, y(0) + 3], "0", "end"), text([edge - 4, y(1) + 8], "1", "end"), text([edge, edge - 8], "accuracy", "start"));
}

function reliabilityOf(run) {
  const found = run.reliability;
  if (!found) return null;
  const fact = (name, value) => [element("dt", {}, name), element("dd", {}, value)];
  return element("div", { class: "card" }, data.runs.length > 1 ? element("h3", {}, run.name) : null,
    element("dl", { class: "facts" }, [
      ["ordered right", `${format(found.accuracy)} [${format(found.accuracy_low)}, ${format(found.accuracy_high)}]`],
      ["by length alone", format(found.length_baseline)], ["expected calibration error", format(found.expected_calibration_error)],
      ["pairs", format(found.pairs)], ["step", format(found.step)]].map((both) => element("div", {}, fact(...both)))),
    reliabilityPlot(found.bins));
}

function drawReliability() {
  const views = data.runs.map(reliabilityOf).filter(Boolean);
  fill("reliability", views.length ? [heading("Held-out pairs", "on the diagonal the reward model is as often right as it says"), views] : []);
}
