/* Two studies: verdicts side by side, and the differences between them. */
import { fetchJson, make, number, put, show, signed } from "/static/common.js";

const at = (id) => document.getElementById(id);
const { first, second } = document.body.dataset;
const SIDES = ["first", "second"];

const plain = (value) => (value === null || value === undefined ? "-" : typeof value === "string" ? value : JSON.stringify(value));

function interval(difference, unit) {
  if (!difference) return "-";
  const [scale, sign] = unit === "fraction" ? [100, " points"] : [1, ""];
  const [low, high] = [difference.low, difference.high].map((v) => (v === null ? "-" : signed(scale * v)));
  return `${signed(scale * difference.estimate)}${sign} (${low} to ${high})`;
}

const headers = (...names) => make("tr", {}, ...names.map((n) => make("th", { scope: "col" }, n)));

function verdictCells(method, side, unit) {
  const known = method[side];
  if (!known) return [make("td", {}, "-"), make("td", {}, "-")];
  return [make("td", {}, make("span", { class: `badge ${known.verdict}` }, known.verdict)),
    make("td", {}, interval(known.difference, unit))];
}

function draw(found) {
  const names = found.studies.map((s) => (found.studies[0].name === found.studies[1].name ? s.folder : s.name));
  document.querySelectorAll("main section").forEach((s) => { s.hidden = false; });
  put(document.querySelector("h1"), names.join(" and "));
  at("cautions").replaceChildren(...found.cautions.map((c) => make("li", { class: "text warning" }, c)));
  at("verdicts").tHead.replaceChildren(headers("Method", ...names.flatMap((n) => [n, "Difference to the control (95 %)"]), "Verdicts"));
  at("verdicts").tBodies[0].replaceChildren(...found.methods.map((m) => make("tr", {},
    make("th", { scope: "row" }, m.title),
    ...SIDES.flatMap((side, i) => verdictCells(m, side, found.studies[i].unit)),
    make("td", {}, m.agreement.replaceAll("_", " ")))));
  at("differences").tHead.replaceChildren(headers("Key", "Of", ...names));
  at("differences").tBodies[0].replaceChildren(...found.differences.map((d) => make("tr", {},
    make("th", { scope: "row" }, d.key), make("td", {}, d.what),
    ...SIDES.map((side) => make("td", {}, typeof d[side] === "number" ? number(d[side], 6) : plain(d[side]))))));
  at("same").hidden = found.differences.length > 0;
  at("differing").hidden = found.differences.length === 0;
}

const found = await fetchJson(`/api/compare?${new URLSearchParams({ first, second })}`);
at("waiting").hidden = true;
if (found.trouble) show(at("trouble"), found.trouble);
else draw(found);
