// One rollout, token by token: shaded by what each token was given, with all its numbers under the cursor.
const SHADES = {
  advantages: "advantage",
  logprobs: "log-probability",
  kl: "KL from the reference",
  values: "value",
  rewards: "reward",
};

// A column is one number where all its numbers are equal.
const at = (column, index) => (Array.isArray(column) ? column[index] : column);
const shadesOf = (run) => Object.keys(SHADES).filter((name) => run.rollouts.some((one) => one[name] !== null));

// The size at which a shade is full: the 98th percentile of some 20,000 of the run's numbers.
function fullShade(run, name) {
  run.scales ??= {};
  const known = run.scales[name];
  if (known?.count === run.rollouts.length) return known.size;
  const stride = Math.max(1, Math.floor(sum(run.rollouts.map((one) => one.ids.length)) / 20000));
  const sizes = [];
  let place = 0;
  for (const one of run.rollouts) {
    for (let index = 0; index < one.ids.length; index += 1, place += 1) {
      if (place % stride) continue;
      const value = at(one[name], index);
      if (value) sizes.push(Math.abs(value));
    }
  }
  sizes.sort((a, b) => a - b);
  const size = sizes[Math.floor(0.98 * (sizes.length - 1))] || 1;
  run.scales[name] = { count: run.rollouts.length, size };
  return size;
}

function background(value, size) {
  if (!value) return "";
  const strength = Math.min(1, Math.abs(value) / size);
  return `rgb(var(${value > 0 ? "--above" : "--below"}) / ${(0.08 + 0.62 * strength).toFixed(3)})`;
}

// Line ends are shown and kept; a token within a character has no text of its own.
function visible(piece) {
  return piece === "" ? "·" : piece.replaceAll("\n", "↵\n").replaceAll("\t", "⇥\t");
}

function tokenView(run, rollout, shade) {
  if (rollout.pieces === null) {
    return element("div", {},
      element("p", { class: "quiet" }, "This run stored no token texts (it was made by an earlier version), so its text stands without shades."),
      element("div", { class: "tokens" }, rollout.text));
  }
  const size = fullShade(run, shade), view = element("div", { class: "tokens" });
  rollout.pieces.forEach((piece, index) => {
    const special = /^<[^>]+>$/.test(piece) ? " special" : "";
    const token = element("span", { class: "token" + special, "data-index": String(index) }, visible(piece));
    token.style.background = background(at(rollout[shade], index), size);
    view.append(token);
  });
  view.addEventListener("pointermove", (event) => showTip(event, rollout));
  view.addEventListener("pointerdown", (event) => showTip(event, rollout));
  view.addEventListener("pointerleave", hideTip);
  return view;
}

function tipRows(rollout, index) {
  const logprob = at(rollout.logprobs, index);
  const share = logprob === null || logprob === undefined ? "" : ` (${format(100 * Math.exp(logprob))}%)`;
  const rows = [
    ["token", `${JSON.stringify(rollout.pieces[index])}  #${rollout.ids[index]}, ${index + 1} of ${rollout.ids.length}`],
    ["log-probability", format(logprob) + share],
  ];
  for (const name of ["value", "kl", "advantage", "reward"]) {
    const column = rollout[{ value: "values", kl: "kl", advantage: "advantages", reward: "rewards" }[name]];
    if (column !== null) rows.push([name === "kl" ? "KL" : name, format(at(column, index))]);
  }
  return rows;
}

function showTip(event, rollout) {
  const token = event.target.closest(".token"), tip = byId("tip");
  if (!token) return hideTip();
  const rows = tipRows(rollout, Number(token.dataset.index));
  tip.replaceChildren(element("table", {}, rows.map(([name, value]) => element("tr", {}, element("th", {}, name), element("td", {}, value)))));
  tip.hidden = false;
  const box = token.getBoundingClientRect(), { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(event.clientX - width / 2, innerWidth - width - 8))}px`;
  tip.style.top = `${box.top - height - 8 > 0 ? box.top - height - 8 : box.bottom + 8}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}

function shadeLegend(run, shade) {
  const size = fullShade(run, shade);
  return element("div", { class: "legend" }, `${SHADES[shade]} `, element("span", {}, format(-size)),
    element("i", { class: "ramp" }), element("span", {}, `+${format(size)}`));
}

const promptText = (prompt) => (typeof prompt === "string" ? prompt : prompt.at(-1)?.[1] ?? "");
