/* Shared helpers. Data only ever becomes text nodes, never markup. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name === "class") element.className = value;
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((c) => c !== null && c !== undefined));
  return element;
}

/* Fetch JSON from a path of this server, or return `{trouble: {code, cause, try}}`. */
export async function fetchJson(path) {
  try {
    const answer = await fetch(path, { credentials: "same-origin" });
    if (answer.status === 401) {
      return { trouble: { code: "no-token", cause: "The view was restarted.", try: "the address that it printed." } };
    }
    return await answer.json();
  } catch (error) {
    return { trouble: { code: "no-view", cause: "The view no longer responds.", try: "`bakeoff view`." } };
  }
}

export function troubled({ code, cause, try: hint }) {
  const badge = make("span", { class: "badge worse" }, code);
  return [make("p", {}, badge, ` ${cause}`), make("p", {}, make("strong", {}, "Try:"), ` ${hint}`)];
}

export function show(element, trouble) {
  element.hidden = !trouble;
  element.replaceChildren(...(trouble ? troubled(trouble) : []));
}

export const put = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

export function number(value, digits = 3) {
  return value === null || value === undefined ? "-" : Number(value.toPrecision(digits)).toString();
}

export const signed = (value, digits = 3) => (value > 0 ? "+" : "") + number(value, digits);
