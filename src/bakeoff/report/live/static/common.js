/* What the pages share. Data becomes text nodes and nothing else: no markup is made from it. */
export function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name === "class") made.className = value;
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((c) => c !== null && c !== undefined));
  return made;
}

/* The JSON behind a path of ours, or `{trouble: {code, cause, try}}`. */
export async function ask(path) {
  try {
    const answer = await fetch(path, { credentials: "same-origin" });
    if (answer.status === 401) {
      return { trouble: { code: "no-token", cause: "The view was started anew.", try: "the address that it printed." } };
    }
    return await answer.json();
  } catch (error) {
    return { trouble: { code: "no-view", cause: "The view does not answer any more.", try: "`bakeoff view`." } };
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
