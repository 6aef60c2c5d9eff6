// What changed: two rollouts of one prompt from two steps, word by word.
const changes = { prompt: null, left: null, right: null, offered: "" };

const LARGEST_TABLE = 2e7; // pairs of words compared; longer texts are compared line by line

function unitsOf(left, right) {
  const words = [left, right].map((text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? []);
  return words[0].length * words[1].length <= LARGEST_TABLE ? words : [left, right].map((text) => text.split(/(?<=\n)/));
}

// The longest common subsequence of two lists as [kind, item] with kind "same", "gone" or "new".
function difference(left, right) {
  const width = right.length + 1, lengths = new Uint16Array((left.length + 1) * width);
  for (let i = left.length - 1; i >= 0; i -= 1) {
    for (let j = right.length - 1; j >= 0; j -= 1) {
      lengths[i * width + j] = left[i] === right[j]
        ? lengths[(i + 1) * width + j + 1] + 1
        : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
    }
  }
  const found = [];
  let i = 0, j = 0;
  while (i < left.length || j < right.length) {
    if (i < left.length && j < right.length && left[i] === right[j]) found.push(["same", left[i++], j++]);
    else if (j >= right.length || (i < left.length && lengths[(i + 1) * width + j] >= lengths[i * width + j + 1])) found.push(["gone", left[i++]]);
    else found.push(["new", right[j++]]);
  }
  return found;
}

// Prompts with rollouts of at least two steps, those first whose reward rose most from first to last.
function comparable(run) {
  const prompts = new Map();
  for (const one of run.rollouts) {
    const key = `${one.held_out} ${one.prompt_id}`;
    if (!prompts.has(key)) prompts.set(key, []);
    prompts.get(key).push(one);
  }
  const rise = (all) => scoreOf(all.at(-1)) - scoreOf(all[0]);
  return [...prompts]
    .map(([key, all]) => [key, all.sort(ORDERS.step)])
    .filter(([, all]) => all[0].step !== all.at(-1).step)
    .sort(([, a], [, b]) => b[0].held_out - a[0].held_out || (rise(b) || 0) - (rise(a) || 0));
}

function side(one, kinds, pairs, title) {
  return element("div", { class: "card side" }, element("h3", {}, title, element("b", {}, `reward ${format(one.score)}`)),
    element("div", { class: "tokens" }, pairs.filter(([kind]) => kinds.includes(kind)).map(([kind, text]) =>
      kind === "same" ? text : element(kind === "gone" ? "del" : "ins", {}, text))));
}

function drawChange(all) {
  const { left, right } = changes, pairs = difference(...unitsOf(left.text, right.text));
  const name = (one) => `step ${one.step}` + (one.held_out ? "" : ` · sample ${one.sample}`);
  const pick = (end) => choice(all.map((one, place) => [place, `${name(one)} · ${format(one.score)}`]), all.indexOf(changes[end]),
    (value) => { changes[end] = all[Number(value)]; drawChange(all); });
  const terms = Object.keys({ ...left.terms, ...right.terms }).filter((term) => left.terms[term] !== right.terms[term]);
  byId("change").replaceChildren(
    element("div", { class: "controls" }, labelled("from", Object.assign(pick("left"), { id: "from" })), labelled("to", Object.assign(pick("right"), { id: "to" }))),
    promptView(left.prompt),
    element("div", { class: "sides" }, side(left, ["same", "gone"], pairs, name(left)), side(right, ["same", "new"], pairs, name(right))),
    terms.length ? element("p", { class: "quiet" }, terms.map((term) => `${term} ${format(left.terms[term])} → ${format(right.terms[term])}`).join(" · ")) : "");
}

function showChange(key, prompts) {
  const all = new Map(prompts).get(key);
  Object.assign(changes, { prompt: key, left: all[0], right: all.at(-1) });
  drawChange(all);
}

function compare(one, others) {
  const prompts = comparable(inspectedRun()), all = new Map(prompts).get(`${one.held_out} ${one.prompt_id}`);
  const [left, right] = [one, others.at(others[0].step < one.step ? 0 : -1)].sort(ORDERS.step);
  Object.assign(changes, { prompt: `${one.held_out} ${one.prompt_id}`, left, right });
  byId("changed-prompt").value = changes.prompt;
  drawChange(all);
  byId("changes").scrollIntoView({ behavior: "smooth" });
}

// With keep, the reader's choice stays, and the page as it is where there is nothing new to choose from.
function setUpChanges({ keep = false } = {}) {
  const run = inspectedRun(), prompts = run ? comparable(run) : [];
  if (!prompts.length) return fill("changes");
  const all = new Map(prompts).get(changes.prompt), kept = keep && all?.includes(changes.left) && all.includes(changes.right);
  const offered = `${prompts.map(([key]) => key)} ${kept ? all.length : 0}`;
  if (kept && offered === changes.offered) return byId("changes");
  changes.offered = offered;
  const named = ([key, [first]]) => [key, `${first.held_out ? "held-out" : "training"}: ${promptText(first.prompt).slice(0, 80)}`];
  const select = choice(prompts.map(named), kept ? changes.prompt : prompts[0][0], (key) => showChange(key, prompts));
  fill("changes", heading("What changed", "one prompt at two steps"),
    element("div", { class: "controls" }, labelled("prompt", Object.assign(select, { id: "changed-prompt" }))), element("div", { id: "change" }));
  return kept ? drawChange(all) : showChange(prompts[0][0], prompts);
}
