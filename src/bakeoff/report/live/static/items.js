/* Test items of a study, a page at a time: contender, outcome and search choose, buttons turn. */
import { ask, make, number, put, signed } from "/static/common.js";

const at = (id) => document.getElementById(id);
const OUTCOMES = { wins: ["contender better", "better"], losses: ["control better", "worse"], both_right: ["both right", "equivalent"], both_wrong: ["both wrong", "inconclusive"], same: ["same score", "inconclusive"] };

const LONG = 800, SHORT = 300;

function text(value) {
  if (value === null || value === undefined) return make("span", { class: "muted" }, "(none)");
  const whole = make("p", { class: "said" }, value);
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
  const asked = make("dl", { class: "item-asked" },
    make("div", {}, make("dt", {}, "Asked"), make("dd", {}, text(row.prompt))),
    make("div", {}, make("dt", {}, "True answer"), make("dd", {}, text(row.reference))));
  const answers = make("div", { class: "answers" }, side(names.control, row.control), side(names.contender, row.contender));
  return make("li", {}, head, row.prompt === null ? null : asked, answers);
}

export class Items {
  constructor(study) {
    this.study = study;
    this.asked = 0;
    const wish = new URLSearchParams(location.search);
    this.contender = wish.get("contender") || "";
    this.page = Number(wish.get("page")) || 1;
    at("outcome").value = OUTCOMES[wish.get("outcome")] ? wish.get("outcome") : "";
    at("search").value = wish.get("q") || "";
    at("contender").addEventListener("change", () => { this.contender = at("contender").value; this.turn(1); });
    at("outcome").addEventListener("change", () => this.turn(1));
    at("search").addEventListener("input", () => {
      clearTimeout(this.waiting);
      this.waiting = setTimeout(() => this.turn(1), 250);
    });
    at("previous").addEventListener("click", () => this.turn(this.page - 1));
    at("next").addEventListener("click", () => this.turn(this.page + 1));
  }

  /* The study has other results now; `able`: it has answers to show. */
  changed(able) {
    if (able) this.load();
  }

  turn(page) {
    this.page = page;
    return this.load(true);
  }

  async load(keep = false) {
    const wish = new URLSearchParams();
    const values = { contender: this.contender, outcome: at("outcome").value, q: at("search").value.trim(), page: this.page > 1 ? this.page : "" };
    for (const [name, value] of Object.entries(values)) if (value) wish.set(name, value);
    if (keep) history.replaceState(null, "", `?${wish}${location.hash}`);
    const mine = (this.asked += 1);
    const found = await ask(`/api/studies/${this.study}/items?${wish}`);
    if (mine === this.asked) this.draw(found);  // an older answer may come later
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
