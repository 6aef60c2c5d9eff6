// The data, and how it becomes elements. Whatever a run holds is written as text, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

// element("td", { class: "number", onclick: f }, "text", child, ...)
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (typeof value === "string") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function fill(id, ...children) {
  const section = byId(id);
  section.replaceChildren(...children.flat(Infinity).filter((child) => child !== null));
  section.hidden = !section.childNodes.length;
  return section;
}

function labelled(text, control, title) {
  return element("label", { title }, element("span", {}, text), control);
}

function choice(options, chosen, onchange) {
  const select = element("select", { onchange: () => onchange(select.value) });
  for (const [value, text] of options) select.append(element("option", { value: String(value) }, text));
  if (chosen !== null && chosen !== undefined) select.value = String(chosen);
  return select;
}

const heading = (text, about) => element("h2", {}, text, about ? element("small", {}, about) : null);

// A number in at most four significant digits: 0.7344, 12.5, 5.55e-11.
function format(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size < 1e-3 || size >= 1e6) return value.toExponential(2).replace("e+", "e");
  if (Number.isInteger(value)) return String(value);
  return value.toFixed(size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : 3);
}

const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + format(Math.abs(value));

function duration(seconds) {
  const whole = Math.round(seconds), pad = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  return hours ? `${hours}:${pad(minutes)}:${pad(whole % 60)} h` : `${minutes}:${pad(whole % 60)} min`;
}

const sum = (values) => values.reduce((total, value) => total + (value ?? 0), 0);
const mean = (values) => (values.length ? sum(values) / values.length : null);
function median(values) {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  return sorted.length ? (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2 : null;
}

// Colours stand in the style sheet, once for light and once for dark.
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const NUM_COLOURS = 10;
const lineColour = (index) => colour(`--line-${index % NUM_COLOURS}`);
const swatch = (index) => element("i", { class: "swatch", style: `background: var(--line-${index % NUM_COLOURS})` });

function switchTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
}

function promptView(prompt) {
  if (typeof prompt === "string") return element("div", { class: "prompt", dir: "auto" }, prompt);
  return element("div", { class: "prompt" }, prompt.map(([role, content]) =>
    element("div", { dir: "auto" }, element("span", { class: "role" }, role), content)));
}
