/* One study, live. The server sends the sections that changed; `window.bakeoff.mount` of
   report.js makes them interactive, as in the report. */
import { put, show } from "/static/common.js";
import { Items } from "/static/items.js";

const at = (id) => document.getElementById(id);
const study = document.body.dataset.study;
const report = at("report");
const shown = new Map();
const FOCUS = "a, button, summary, input, select, [tabindex]";
let source = null;

function seconds(left) {
  if (left === null || left === undefined) return "";
  const minutes = Math.round(left / 60);
  const text = left < 90 ? `${Math.round(left)} s` : minutes < 90 ? `${minutes} min` : `${(left / 3600).toFixed(1)} h`;
  return `about ${text} left in this phase`;
}

function showStatus(found) {
  const state = at("state");
  put(state, found.state || "reading");
  state.className = `badge ${found.state || ""}`;
  put(at("name"), found.name);
  put(at("trials"), found.planned === null ? "" : `${found.done} of ${found.planned} planned trials`);
  put(at("phase"), found.phase ? `${found.phase}: ${found.phase_done} of ${found.phase_total}` : "");
  put(at("left"), seconds(found.seconds_left));
  put(at("message"), found.message || "");
}

/* Save the reader's state of a section (open details, sorting, ...), to restore it after an update. */
function saveState(section) {
  return {
    open: [...section.querySelectorAll("details")].map((d) => d.open),
    sorted: [...section.querySelectorAll("table")].map((t) => {
      const headers = t.tHead ? [...t.tHead.rows[0].cells] : [];
      const index = headers.findIndex((h) => h.hasAttribute("aria-sort"));
      return index < 0 ? null : [index, headers[index].getAttribute("aria-sort")];
    }),
    fields: [...section.querySelectorAll("input, select")].map((f) => f.value),
    scrolled: [...section.querySelectorAll(".scroll")].map((s) => s.scrollLeft),
    focus: [...section.querySelectorAll(FOCUS)].indexOf(document.activeElement),
  };
}

function restore(section, before) {
  section.querySelectorAll("details").forEach((d, i) => { if (before.open[i] !== undefined) d.open = before.open[i]; });
  section.querySelectorAll("table").forEach((table, i) => {
    const [index, way] = before.sorted[i] || [];
    const header = index === undefined || !table.tHead ? null : table.tHead.rows[0].cells[index];
    const button = header && header.querySelector("button");
    for (let n = 0; button && n < 2 && header.getAttribute("aria-sort") !== way; n += 1) button.click();
  });
  section.querySelectorAll("input, select").forEach((field, i) => {
    if (before.fields[i] === undefined || before.fields[i] === field.value) return;
    field.value = before.fields[i];
    for (const kind of ["input", "change"]) field.dispatchEvent(new Event(kind, { bubbles: true }));
  });
  section.querySelectorAll(".scroll").forEach((s, i) => { s.scrollLeft = before.scrolled[i] || 0; });
  if (before.focus >= 0) section.querySelectorAll(FOCUS)[before.focus]?.focus({ preventScroll: true });
}

/* A section's markup comes from the server with all text escaped, as in the report file. */
function build(section) {
  const parsed = new DOMParser().parseFromString(section.html, "text/html");
  return document.importNode(parsed.body.firstElementChild, true);
}

function place(section) {
  const old = shown.get(section.key);
  if (old && old.digest === section.digest) return;
  const element = build(section);
  if (old) {
    const before = saveState(old.element);
    old.element.querySelectorAll("[data-chart]").forEach((c) => window.Plotly?.purge(c));
    old.element.replaceWith(element);
    window.bakeoff.mount(element, section.charts);
    restore(element, before);
  } else {
    report.append(element);
    window.bakeoff.mount(element, section.charts);
  }
  shown.set(section.key, { element, digest: section.digest, title: section.title });
}

function sections({ order, changed, items: hasItems }) {
  const first = shown.size === 0;
  show(at("trouble"), null);
  at("waiting").hidden = true;
  changed.forEach(place);
  for (const [key, old] of shown) {
    if (!order.includes(key)) {
      old.element.remove();
      shown.delete(key);
    }
  }
  order.forEach((key, i) => {
    const element = shown.get(key).element;
    if (report.children[i] !== element) report.insertBefore(element, report.children[i] || null);
  });
  navigate(order);
  items.changed(hasItems);
  if (first && location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

function navigate(order) {
  const links = order.map((key) => [`#${key}`, shown.get(key).title]);
  const now = [...at("sections").children].map((a) => [a.getAttribute("href"), a.textContent]);
  const wanted = [...links, ["#all-items", "All items"]];
  if (JSON.stringify(now) === JSON.stringify(wanted)) return;
  at("sections").replaceChildren(...wanted.map(([href, title]) => {
    const link = document.createElement("a");
    link.href = href;
    link.textContent = title;
    return link;
  }));
}

function trouble(found) {
  at("waiting").hidden = true;
  show(at("trouble"), found);
}

function listen() {
  if (source) return;
  source = new EventSource(`/api/studies/${study}/events`);
  const hear = (name, act) => source.addEventListener(name, (event) => act(JSON.parse(event.data)));
  hear("status", showStatus);
  hear("sections", sections);
  hear("trouble", trouble);
  source.addEventListener("error", () => {
    put(at("state"), "no connection");  // until the next status event
    at("state").className = "badge error";
    if (source && source.readyState === EventSource.CLOSED) {
      trouble({ code: "no-view", cause: "The view no longer responds.", try: "`bakeoff view`, and open the address that it prints." });
    }
  });
}

/* A browser opens at most six connections to a server: hidden pages close theirs. */
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") listen();
  else if (source) {
    source.close();
    source = null;
  }
});

const items = new Items(study);
listen();
