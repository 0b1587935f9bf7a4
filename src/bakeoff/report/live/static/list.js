/* The list of studies, with sorting, filtering and the choice of two to compare. Verdicts appear
   one by one, as each is computed from its study's database. */
import { fetchJson, make, put } from "/static/common.js";

const at = (id) => document.getElementById(id);
const body = at("studies").tBodies[0];
const picked = new Set();
let studies = [];
let computing = false;
let source = null;
let sort = { key: "when", up: false };

const time = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

function words(study) {
  const parts = [study.name, study.folder, study.base, study.task, study.state, study.verdict, study.best, study.control];
  return [...parts, ...(study.contenders || [])].filter(Boolean).join(" ").toLowerCase();
}

function compared(a, b) {
  const [x, y] = [a[sort.key], b[sort.key]];
  const absent = (v) => v === null || v === undefined;
  if (absent(x) || absent(y)) return absent(x) - absent(y);
  const order = typeof x === "number" ? x - y : String(x).localeCompare(String(y));
  return sort.up ? order : -order;
}

function verdict(study) {
  if (study.trouble) {
    return make("td", { class: "wrap verdict" }, make("span", { class: "badge error" }, study.trouble.code),
      ` ${study.trouble.cause}`, make("small", {}, `Try: ${study.trouble.try}`));
  }
  return make("td", { class: "wrap verdict" }, study.verdict || (study.state === null ? "…" : "-"));
}

function row(study) {
  const box = make("input", { type: "checkbox", checked: picked.has(study.id), "aria-label": `Compare ${study.name}` });
  box.addEventListener("change", () => pick(study.id, box.checked));
  const link = make("a", { href: `/studies/${study.id}` }, study.name);
  const folder = study.folder === study.name ? null : make("small", {}, ` ${study.folder}`);
  const trials = study.planned === null || study.planned === undefined ? "-" : `${study.done} of ${study.planned}`;
  return make("tr", { "data-id": study.id },
    make("th", { scope: "row" }, link, folder),
    make("td", {}, box),
    make("td", {}, make("span", { class: `badge ${study.state || ""}` }, study.state || "…")),
    make("td", { class: "number" }, trials),
    verdict(study),
    make("td", { class: "wrap" }, study.best || "-"),
    make("td", { class: "wrap" }, study.base || "-"),
    make("td", {}, study.task || "-"),
    make("td", { class: "wrap" }, make("strong", {}, study.control || "-"), study.contenders ? `, ${study.contenders.join(", ")}` : ""),
    make("td", {}, make("time", { dateTime: study.when }, time.format(new Date(study.when)))));
}

function draw() {
  const wanted = at("filter").value.trim().toLowerCase();
  const shown = studies.filter((s) => words(s).includes(wanted)).sort(compared);
  const held = document.activeElement && document.activeElement.closest("tr[data-id]");
  const focus = held && [held.dataset.id, document.activeElement.tagName];
  body.replaceChildren(...shown.map(row));
  if (focus) {
    const again = [...body.rows].find((r) => r.dataset.id === focus[0]);
    if (again) again.querySelector(focus[1].toLowerCase())?.focus();
  }
  const all = `${studies.length} ${studies.length === 1 ? "study" : "studies"}`;
  put(at("count"), shown.length === studies.length ? all : `${shown.length} of ${all}`);
  at("empty").hidden = studies.length > 0;
  at("compare").disabled = picked.size !== 2;
}

function pick(id, on) {
  if (on) picked.add(id);
  else picked.delete(id);
  at("compare").disabled = picked.size !== 2;
}

async function load() {
  const found = await fetchJson("/api/studies");
  at("note").hidden = !found.trouble;
  if (found.trouble) {
    put(at("note"), `${found.trouble.cause} Try: ${found.trouble.try}`);
    return;
  }
  studies = found.studies;
  draw();
  await complete();
}

/* Compute one study at a time; `computing` prevents a second loop from starting meanwhile. */
async function complete() {
  if (computing) return;
  computing = true;
  let study;
  while ((study = studies.find((s) => s.stale && !s.trouble))) {
    const whole = await fetchJson(`/api/studies/${study.id}`);
    replace(whole.id ? { ...whole, stale: false } : { ...study, stale: false });
  }
  computing = false;
}

function replace(study) {
  const there = studies.some((s) => s.id === study.id);
  studies = there ? studies.map((s) => (s.id === study.id ? study : s)) : [...studies, study];
  draw();
}

/* Follow changes of studies while the page is visible: a browser has few connections. */
function listen() {
  if (source) return;
  source = new EventSource("/api/events");
  source.addEventListener("open", load);  // catch up with changes since the last connection
  source.addEventListener("study", (event) => {
    replace(JSON.parse(event.data));
    complete();
  });
}

document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") listen();
  else if (source) {
    source.close();
    source = null;
  }
});

for (const header of at("studies").tHead.rows[0].cells) {
  const button = header.querySelector("button");
  if (!button) continue;
  button.addEventListener("click", () => {
    const key = header.dataset.key;
    sort = { key, up: sort.key === key ? !sort.up : key !== "when" };
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", sort.up ? "ascending" : "descending");
    draw();
  });
}
at("filter").addEventListener("input", draw);
at("again").addEventListener("click", load);
at("compare").addEventListener("click", () => {
  const [first, second] = [...picked];
  location.assign(`/compare?first=${first}&second=${second}`);
});
load().then(listen);
