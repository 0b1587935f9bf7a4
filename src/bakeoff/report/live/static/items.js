/* Test items of a study, page by page, filtered by contender, outcome and search. */
import { fetchJson, make, number, put, signed } from "/static/common.js";

const at = (id) => document.getElementById(id);
const OUTCOMES = { wins: ["contender better", "better"], losses: ["control better", "worse"], both_right: ["both right", "equivalent"], both_wrong: ["both wrong", "inconclusive"], same: ["same score", "inconclusive"] };

const LONG = 800, SHORT = 300;

function text(value) {
  if (value === null || value === undefined) return make("span", { class: "muted" }, "(none)");
  const whole = make("p", { class: "prediction" }, value);
  if (value.length <= LONG) return whole;
  return make("details", { class: "folded-text" }, make("summary", {}, `${value.slice(0, SHORT)} …`), whole);
}

function side(name, found) {
  const rows = found.answers.map((a) => make("li", {}, make("span", {}, `seed ${a.seed}: ${number(a.score)}`), text(a.answer)));
  return make("div", {}, make("h3", {}, `${name}, mean ${number(found.mean)}`), make("ul", {}, ...rows));
}

function card(row, names) {
  const [word, tone] = OUTCOMES[row.outcome];
  const head = make("p", { class: "item-head" }, make("strong", {}, `Item ${row.item}`),
    make("span", { class: `badge ${tone}` }, word), make("span", {}, `gain ${signed(row.gain)}`));
  const texts = make("dl", { class: "item-texts" },
    make("div", {}, make("dt", {}, "Prompt"), make("dd", {}, text(row.prompt))),
    make("div", {}, make("dt", {}, "Reference"), make("dd", {}, text(row.reference))));
  const answers = make("div", { class: "answers" }, side(names.control, row.control), side(names.contender, row.contender));
  return make("li", {}, head, row.prompt === null ? null : texts, answers);
}

export class Items {
  constructor(study) {
    this.study = study;
    this.requests = 0;
    const query = new URLSearchParams(location.search);
    this.contender = query.get("contender") || "";
    this.page = Number(query.get("page")) || 1;
    at("outcome").value = OUTCOMES[query.get("outcome")] ? query.get("outcome") : "";
    at("search").value = query.get("q") || "";
    at("contender").addEventListener("change", () => { this.contender = at("contender").value; this.turn(1); });
    at("outcome").addEventListener("change", () => this.turn(1));
    at("search").addEventListener("input", () => {
      clearTimeout(this.waiting);
      this.waiting = setTimeout(() => this.turn(1), 250);
    });
    at("previous").addEventListener("click", () => this.turn(this.page - 1));
    at("next").addEventListener("click", () => this.turn(this.page + 1));
  }

  /* Called when the study's results change; `hasItems`: it has predictions to show. */
  changed(hasItems) {
    if (hasItems) this.load();
  }

  turn(page) {
    this.page = page;
    return this.load(true);
  }

  async load(keep = false) {
    const query = new URLSearchParams();
    const values = { contender: this.contender, outcome: at("outcome").value, q: at("search").value.trim(), page: this.page > 1 ? this.page : "" };
    for (const [name, value] of Object.entries(values)) if (value) query.set(name, value);
    if (keep) history.replaceState(null, "", `?${query}${location.hash}`);
    const request = (this.requests += 1);
    const found = await fetchJson(`/api/studies/${this.study}/items?${query}`);
    if (request === this.requests) this.draw(found);  // ignore a late response to an older request
  }

  draw(found) {
    at("items-tools").hidden = Boolean(found.trouble) && !this.contender;
    at("turning").hidden = Boolean(found.trouble);
    if (found.trouble || !found.rows) {
      put(at("items-note"), found.trouble ? `${found.trouble.cause} Try: ${found.trouble.try}` : "No items.");
      at("item-list").replaceChildren();
      return;
    }
    this.page = found.page;
    this.contender = found.chosen;
    this.choose(found);
    const noun = found.total === 1 ? "item" : "items";
    put(at("items-note"), found.total === found.items ? `${found.total} ${noun}.` : `${found.total} of ${found.items} items.`);
    put(at("page"), `Page ${found.page} of ${found.pages}`);
    at("previous").disabled = found.page <= 1;
    at("next").disabled = found.page >= found.pages;
    at("item-list").replaceChildren(...found.rows.map((row) => card(row, found)));
  }

  choose(found) {
    const select = at("contender");
    const names = found.contenders.map((c) => c.method).join("\n");
    if (names !== this.names) {
      this.names = names;
      select.replaceChildren(...found.contenders.map((c) => make("option", { value: c.method }, c.title)));
    }
    select.value = found.chosen;
    for (const option of at("outcome").options) {
      const count = found.counts[option.value];
      const word = option.value ? OUTCOMES[option.value][0] : "all items";
      put(option, count === undefined ? word : `${word} (${count})`);
      option.hidden = count === 0 && !option.selected;
    }
  }
}
