// Ratings by keyboard: one question at a time, and none is left before its rating is on the disk.
const VERDICTS = data.stars
  ? [1, 2, 3, 4, 5].map((stars) => [String(stars), stars, "★".repeat(stars), `${stars} of 5 stars`])
  : [["ArrowLeft", "left", "← left", "the left answer is better"], ["t", "tie", "T tie", "both are equally good"],
    ["ArrowRight", "right", "right →", "the right answer is better"]];
VERDICTS.push(["s", "skip", "S skip", "cannot say"]);

const asked = { question: null, last: null, busy: false };
const watch = { seconds: 0, since: null };

// Time in which the question could be seen: a tab in the background looks at nothing.
function runWatch() {
  watch.since = document.hidden ? null : performance.now();
}

function stopWatch() {
  if (watch.since !== null) watch.seconds += (performance.now() - watch.since) / 1000;
  watch.since = null;
}

function say(text, isProblem = false) {
  byId("said").textContent = text;
  byId("said").className = isProblem ? "warning" : "quiet";
}

// Ask the server and show what it answers. What cannot be reached has saved nothing: the question stays.
async function ask(path, posted) {
  if (asked.busy) return null;
  asked.busy = true;
  try {
    const answer = await fetch(path, posted && { method: "POST", body: JSON.stringify(posted) });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.problem);
    show(found);
    return found;
  } catch (error) {
    const lost = error instanceof TypeError || error instanceof SyntaxError;
    say(lost ? "nothing was saved: upslope rate has ended, or is out of reach" : error.message, true);
    return null;
  } finally {
    asked.busy = false;
  }
}

async function rate(verdict) {
  if (!asked.question) return;
  stopWatch();
  const seconds = watch.seconds, [, , , meaning] = VERDICTS.find(([, each]) => each === verdict);
  const found = await ask("rate", { question: asked.question.id, verdict, seconds });
  if (found) say(found.fresh ? `${meaning} · U takes it back` : "this was rated before, in another window; the first rating stands");
  else runWatch();
}

async function undo() {
  if (asked.last && (await ask("undo", { question: asked.last }))) say("taken back");
}

function answerView(answer, name) {
  return element("article", { class: "card answer" }, name ? element("h3", {}, name) : null,
    answer.text.trim() ? element("div", { class: "text", dir: "auto", tabIndex: 0 }, answer.text)
      : element("div", { class: "text quiet" }, answer.text ? "(blank space only)" : "(empty)"),
    answer.cut ? element("small", {}, "cut at the length limit") : null);
}

const undoButton = () => element("button", { title: "take the last rating back", "data-verdict": "undo", disabled: !asked.last, onclick: undo }, "U undo");

function verdictButtons() {
  return element("div", { class: "verdicts" }, VERDICTS.map(([, verdict, label, title]) =>
    element("button", { title, "data-verdict": String(verdict), onclick: () => rate(verdict) },
      data.stars && verdict !== "skip" ? [element("b", {}, String(verdict)), ` ${label}`] : label)), undoButton());
}

function endView(total) {
  const options = `path = ${JSON.stringify(data.path)}${data.stars ? ", stars = true" : ""}, held_out = 0.2`;
  const loss = data.stars ? '\n\n[reward_model]\nloss = "regression"' : "";
  return [element("p", {}, total === 1 ? "The one question is answered." : `All ${total} questions are answered.`,
    ` The ratings stand in ${data.path}; a reward model learns from them by`),
  element("pre", { class: "card" }, `method = "reward_model"\n\n[task]\nname = "ratings"\noptions = { ${options} }${loss}`), element("div", { class: "verdicts" }, undoButton())];
}

function show({ question, rated, total, last }) {
  Object.assign(asked, { question, last });
  Object.assign(watch, { seconds: 0, since: null });
  byId("progress").textContent = `${rated} of ${total}`;
  byId("bar").style.width = `${(100 * rated) / total}%`;
  if (!question) return fill("asked", endView(total));
  const names = data.stars ? [""] : ["left", "right"];
  fill("asked", promptView(question.prompt),
    element("div", { class: data.stars ? "" : "sides" }, question.answers.map((answer, place) => answerView(answer, names[place]))), verdictButtons());
  scrollTo(0, 0);
  runWatch();
}

// A key that is held down rates once; keys with Ctrl or Alt are the browser's.
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const found = VERDICTS.find(([own]) => own === key);
  if (!found && key !== "u") return;
  event.preventDefault();
  if (found) rate(found[1]);
  else undo();
});
document.addEventListener("visibilitychange", () => {
  stopWatch();
  if (asked.question) runWatch();
});

fill("header",
  element("div", { class: "names" }, element("span", { class: "mark" }, "upslope"),
    element("h1", {}, data.stars ? "How good is this answer?" : "Which answer is better?"),
    element("span", { id: "said", class: "quiet", role: "status" })),
  element("div", { class: "names nowrap" }, element("span", { class: "quiet" }, data.rater), element("span", { id: "progress" }),
    element("button", { id: "theme", onclick: switchTheme, title: "light or dark" }, "◐")));
byId("header").append(element("i", { class: "bar" }, element("i", { id: "bar" })));
ask("next");
