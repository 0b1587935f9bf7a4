/* Draws the charts from the JSON in the page, and adds selectable axes, sorting and filtering of
   tables, and CSV downloads. Data never becomes markup: text goes to textContent, or to Plotly with
   its pseudo-HTML escaped. */
(() => {
  "use strict";
  const charts = new Map();
  const drawn = new Map();
  const picks = new Map();  // a chart's key -> the axes that the reader chose, kept across updates
  const MARGIN = { l: 58, r: 14, t: 10, b: 46 };

  /* role -> colour variable, marker symbol, dash, marker size, line width */
  const ROLES = {
    "control": ["--ink", "diamond", "solid", 13, 2],
    "front": ["--front", "circle", "solid", 10, 2],
    "front-line": ["--front", "circle", "dot", 0, 1.5],
    "other": ["--other", "circle-open", "solid", 9, 2],
    "beyond": ["--other", "triangle-down", "solid", 10, 2],
    "beyond-up": ["--other", "triangle-up", "solid", 10, 2],
    "lost": ["--worse", "x-thin", "solid", 9, 2],
    "tried": ["--front", "circle-open", "solid", 8, 1.5],
    "chosen": ["--front", "circle", "solid", 10, 2],
    "reference": ["--band-line", "circle", "solid", 0, 4],
    "behind": ["--other", "circle", "solid", 0, 1],
    "rung": ["--other", "circle", "dot", 0, 1],
    "seed-0": ["--seed-0", "circle", "solid", 4, 2],
    "seed-1": ["--seed-1", "square", "dash", 4, 2],
    "seed-2": ["--seed-2", "diamond", "dot", 4, 2],
  };
  const colour = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const shorten = (text, n) => (text.length > n ? text.slice(0, n - 1) + "…" : text);
  const plain = (text) =>
    String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function axis(spec, more) {
    const scale = spec.log ? Math.log10 : (v) => v;
    const made = {
      title: { text: plain(shorten(spec.title, 60)), font: { size: 12 }, standoff: 8 },
      type: spec.log ? "log" : "linear",
      gridcolor: colour("--grid"), linecolor: colour("--rule"), zeroline: false,
      color: colour("--soft"), nticks: 6, fixedrange: matchMedia("(pointer: coarse)").matches,
      ...more,
    };
    if (spec.low !== null && spec.high !== null) made.range = [scale(spec.low), scale(spec.high)];
    if (spec.ticks.length) {
      Object.assign(made, { tickvals: spec.ticks, ticktext: spec.tick_text.map(plain) });
    }
    return made;
  }

  function trace(series, y, positions) {
    const [variable, symbol, dash, size, width] = ROLES[series.role] || ROLES.other;
    const line = series.draw !== "points", marks = series.draw !== "line" || size > 0;
    const modes = [line && "lines", marks && "markers", positions && "text"].filter(Boolean);
    const made = {
      type: "scatter", x: series.x, y: series.y, yaxis: y, mode: modes.join("+"), cliponaxis: true,
      name: plain(series.name), line: { color: colour(variable), dash, width },
      marker: { color: colour(variable), symbol, size, line: { width: 2, color: colour(variable) } },
      hoverinfo: series.hover.length ? "text" : "skip",
      hovertext: series.hover.map((lines) => lines.map((l) => plain(shorten(l, 80))).join("<br>")),
    };
    if (positions) {
      made.text = series.labels.map((t, i) => (positions[i] ? plain(shorten(t, 20)) : ""));
      made.textposition = positions.map((p) => p || "middle right");
      made.textfont = { color: colour("--ink"), size: 12 };
    }
    if (series.low.length) {
      const at = series.across ? series.x : series.y;
      const reach = (ends) => ends.map((e, i) => (e === null ? 0 : Math.abs(e - at[i])));
      made.error_y = {
        type: "data", symmetric: false, array: reach(series.high), arrayminus: reach(series.low),
        color: colour(variable), thickness: 1.25, width: 0,
      };
      if (series.across) [made.error_x, made.error_y] = [made.error_y, undefined];
    }
    return made;
  }

  /* Where each label goes: the first of eight places that meets no other dot, bar or label. A
     label that finds none is left to the hover text and the table. */
  function place(chart, pane, width, height) {
    const at = (spec, value, length) => {
      const scale = spec.log ? Math.log10 : (v) => v;
      return ((scale(value) - scale(spec.low)) / (scale(spec.high) - scale(spec.low))) * length;
    };
    const points = pane.series.flatMap((s, i) => s.labels.map((label, j) => ({
      i, j, important: s.role !== "other", w: 7 * shorten(label, 20).length + 4,
      x: at(chart.x, s.x[j], width), y: height - at(pane.y, s.y[j], height),
    })));
    const taken = points.map((p) => [p.x - 7, p.y - 7, p.x + 7, p.y + 7]);
    const bars = [];
    for (const s of pane.series.filter((s) => s.low.length)) {
      s.x.forEach((value, j) => {
        const end = (v) => (v === null ? (s.across ? value : s.y[j]) : v);
        const [x, y] = [at(chart.x, value, width), height - at(pane.y, s.y[j], height)];
        if (s.across) bars.push([at(chart.x, end(s.low[j]), width), y - 2, at(chart.x, end(s.high[j]), width), y + 2]);
        else bars.push([x - 2, height - at(pane.y, end(s.high[j]), height), x + 2, height - at(pane.y, end(s.low[j]), height)]);
      });
    }
    for (const s of pane.series.filter((s) => s.role === "front-line")) {
      const [xs, ys] = [s.x.map((v) => at(chart.x, v, width)), s.y.map((v) => height - at(pane.y, v, height))];
      for (let j = 1; j < xs.length; j += 1) {
        const steps = Math.ceil(Math.hypot(xs[j] - xs[j - 1], ys[j] - ys[j - 1]) / 6);
        for (let k = 1; k < steps; k += 1) {
          const [x, y] = [xs, ys].map((v) => v[j - 1] + (k / steps) * (v[j] - v[j - 1]));
          bars.push([x - 2, y - 2, x + 2, y + 2]);
        }
      }
    }
    const places = [["middle", "right"], ["middle", "left"], ["top", "right"], ["bottom", "right"],
      ["top", "left"], ["bottom", "left"], ["top", "center"], ["bottom", "center"]];
    const box = (p, [v, h]) => {
      const x = { right: p.x + 8, left: p.x - 8 - p.w, center: p.x - p.w / 2 }[h];
      const y = { top: p.y - 22, bottom: p.y + 8, middle: p.y - 7 }[v];
      return [x, y, x + p.w, y + 14];
    };
    const meet = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
    const result = pane.series.map((s) => (s.labels.length ? s.labels.map(() => null) : null));
    for (const p of [...points].sort((a, b) => b.important - a.important)) {
      const fits = (avoid) => (way) => {
        const b = box(p, way);
        const inside = b[0] >= 0 && b[1] >= 0 && b[2] <= width && b[3] <= height;
        return inside && !avoid.some((t) => meet(t, b));
      };
      // A label over an error bar is still legible; one over a point or another label is not.
      const free = places.find(fits([...taken, ...bars])) || places.find(fits(taken));
      if (free) {
        taken.push(box(p, free));
        result[p.i][p.j] = free.join(" ");
      }
    }
    return result;
  }

  function figure(chart, element) {
    const count = chart.panes.length, gap = count > 1 ? 0.08 : 0;
    const paper = "print" in document.documentElement.dataset;
    const full = paper ? (chart.size === "small" ? 320 : 640) : element.clientWidth;
    const width = full - MARGIN.l - MARGIN.r;
    const height = (element.clientHeight - MARGIN.t - MARGIN.b) / count;
    const layout = {
      width: full, height: element.clientHeight, margin: MARGIN, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", size: 12, color: colour("--ink") },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--rule"), font: { color: colour("--ink") }, align: "left" },
      hovermode: "closest", dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      showlegend: false,  // the section's lead says what the marks mean, also on paper
      xaxis: axis(chart.x, { anchor: count > 1 ? `y${count}` : "y" }),
    };
    const data = [];
    chart.panes.forEach((pane, i) => {
      const n = i ? String(i + 1) : "", share = (1 - gap * (count - 1)) / count;
      const top = 1 - i * (share + gap);
      layout[`yaxis${n}`] = axis(pane.y, { domain: [Math.max(0, top - share), top], nticks: count > 1 ? 4 : 7 });
      const labelled = pane.series.some((s) => s.labels.length);
      const places = labelled ? place(chart, pane, width, height) : [];
      pane.series.forEach((s, j) => {
        data.push(trace(s, `y${n}`, places[j]));
      });
    });
    return { data, layout };
  }

  /* The chart of two chosen axes. Its front uses the point estimates; probabilities exist only
     against the first axis (the score), because other pairs were not resampled. */
  function picked(chart, x, y) {
    const { axes, points } = chart.picker, [across, up] = [axes[x], axes[y]];
    const good = (p, i) => axes[i].sign * p.values[i];
    const there = points.filter((p) => p.values[x] !== null && p.values[y] !== null);
    const beaten = (p) => there.some((q) => good(q, x) >= good(p, x) && good(q, y) >= good(p, y)
      && (good(q, x) > good(p, x) || good(q, y) > good(p, y)));
    const front = there.filter((p) => !beaten(p)).sort((a, b) => a.values[x] - b.values[x]);
    const chance = (p) => (x === 0 ? p.chances[y] : y === 0 ? p.chances[x] : null);
    const far = (p) => p.values[y] < up.y.low || p.values[y] > up.y.high;
    const label = (p) => {
      const end = p.mark + (chance(p) === null ? "" : ` ${Math.round(100 * chance(p))} %`);
      return shorten(p.title, 20 - end.length) + end;
    };
    const hover = (p) => [p.title + p.mark, p.texts[y], p.texts[x],
      chance(p) !== null && `on this front with probability ${Math.round(100 * chance(p))} %`].filter(Boolean);
    const marks = (name, role, chosen) => {
      const bars = x === 0 || y === 0;
      return {
        name, role, draw: "points", across: x === 0, x: chosen.map((p) => p.values[x]), y: chosen.map((p) => p.values[y]),
        low: bars ? chosen.map((p) => p.lows[0]) : [], high: bars ? chosen.map((p) => p.highs[0]) : [],
        labels: chosen.map(label), hover: chosen.map(hover),
      };
    };
    const near = there.filter((p) => !far(p));
    const line = { ...marks("Pareto front", "front-line", front), draw: "line", low: [], high: [], labels: [], hover: [] };
    const series = [line,
      marks("not on the front", "other", near.filter((p) => !front.includes(p) && !p.control)),
      marks("on the front", "front", near.filter((p) => front.includes(p) && !p.control)),
      marks("control", "control", near.filter((p) => p.control))];
    for (const [role, share, side] of [["beyond", 0.05, (p) => p.values[y] < up.y.low], ["beyond-up", 0.95, (p) => p.values[y] > up.y.high]]) {
      const out = marks("outside the plot", role, there.filter((p) => far(p) && side(p)));
      const edge = up.y.low + share * (up.y.high - up.y.low);
      series.push({ ...out, y: out.y.map(() => edge), low: [], high: [],
        labels: there.filter((p) => far(p) && side(p)).map((p) => `${p.title}${p.mark} ${p.values[y].toPrecision(3)}`) });
    }
    const names = front.map((p) => p.title).join(", ") || "none";
    return {
      ...chart, x: across.x, panes: [{ y: up.y, series: series.filter((s) => s.x.length) }],
      title: `${up.name} against ${across.name.toLowerCase()}`,
      description: `${there.length} methods; on the front: ${names}`
        + (x && y ? ". A front without the score is not resampled and has no probabilities" : ""),
    };
  }

  function current(key) {
    const chart = charts.get(key), pick = picks.get(key);
    const same = !pick || (pick[0] === chart.picker.x && pick[1] === chart.picker.y);
    return same ? chart : picked(chart, ...pick);
  }

  /* Two axis selectors above a chart; choosing the same axis twice swaps them. */
  function pickable(box) {
    const key = box.dataset.pick, { picker } = charts.get(key);
    const plot = box.parentElement.querySelector("[data-chart]"), caption = box.parentElement.querySelector("figcaption");
    const choose = ["Vertical axis", "Horizontal axis"].map((name) => labelled(box, name, "select"));
    if (picks.has(key) && Math.max(...picks.get(key)) >= picker.axes.length) picks.delete(key);
    const state = picks.get(key) || [picker.x, picker.y];
    const say = () => {
      const chart = current(key);
      caption.querySelector("strong").textContent = chart.title;
      caption.querySelector("span").textContent = chart.description;
      plot.setAttribute("aria-label", `${chart.title}: ${chart.description}`);
      choose.forEach((select, i) => { select.value = String(state[1 - i]); });
    };
    caption.setAttribute("aria-live", "polite");
    choose.forEach((select, i) => {
      select.append(...picker.axes.map((axis, n) => new Option(shorten(axis.name, 40), String(n))));
      select.addEventListener("change", () => {
        const before = state[1 - i];
        state[1 - i] = Number(select.value);
        if (state[0] === state[1]) state[i] = before;
        picks.set(key, state);
        say();
        draw(plot);
      });
    });
    say();
  }

  function labelled(box, name, tag) {
    const label = document.createElement("label"), field = document.createElement(tag);
    field.name = name;
    label.append(Object.assign(document.createElement("span"), { textContent: name }), field);
    box.append(label);
    return field;
  }

  function draw(element) {
    const chart = current(element.dataset.chart);
    try {
      const { data, layout } = figure(chart, element);
      // not Plotly.react, which never redraws a label that was once empty
      Plotly.newPlot(element, data, layout, {
        displaylogo: false, displayModeBar: false, responsive: false,
      });
      drawn.set(element, element.clientWidth);
    } catch (error) {
      element.replaceChildren(Object.assign(document.createElement("p"), {
        className: "broken", textContent: "This chart could not be drawn.",
      }));
      console.error(error);
    }
  }

  const all = () => [...document.querySelectorAll("[data-chart]")];
  const redraw = () => [...drawn.keys()].forEach(draw);

  /* Draw one chart per task, so that a page with fifty methods stays responsive meanwhile. */
  const queue = [];
  const next = () => {
    if (queue.length) {
      draw(queue.shift());
      setTimeout(next);
    }
  };

  let waiting = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => {
      for (const [element, width] of drawn) if (element.clientWidth !== width) draw(element);
    });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  /* Paper is white and has no scrolling: light colours, every chart. */
  addEventListener("beforeprint", () => {
    document.documentElement.dataset.print = "";
    all().forEach(draw);
  });
  addEventListener("afterprint", () => {
    delete document.documentElement.dataset.print;
    redraw();
  });

  function sortBy(table, index, header) {
    const up = header.getAttribute("aria-sort") === "descending";
    const body = table.tBodies[0], rows = [...body.rows].filter((r) => !r.className.includes("pinned"));
    const value = (row) => {
      const cell = row.cells[index];
      if (cell.dataset.sort !== undefined) return Number(cell.dataset.sort);
      return header.classList.contains("number") ? null : cell.textContent.trim();
    };
    rows.sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === null || y === null) return (x === null) - (y === null);  // missing values stay last
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return up ? order : -order;
    });
    body.append(...rows);
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
  }

  function sortable(table) {
    [...table.tHead.rows[0].cells].forEach((header, index) => {
      const label = header.querySelector("span"), button = document.createElement("button");
      button.type = "button";
      button.textContent = label.textContent;
      label.replaceWith(button);
      button.addEventListener("click", () => sortBy(table, index, header));
    });
  }

  /* A text filter, a choice for each facet, and the number of visible rows; pinned rows always stay. */
  function filterable(box) {
    const table = box.nextElementSibling.querySelector("table"), rows = [...table.tBodies[0].rows];
    const heads = [...table.tHead.rows[0].cells];
    const field = labelled(box, "Filter rows", "input");
    Object.assign(field, { type: "search", autocomplete: "off" });
    const facets = heads.flatMap((head, index) => {
      if (!("facet" in head.dataset)) return [];
      const title = (head.querySelector("span, button") || head).textContent;
      const select = labelled(box, title, "select");
      const values = [...new Set(rows.map((row) => row.cells[index].textContent.trim()))].sort();
      select.append(new Option("all", ""), ...values.map((v) => new Option(shorten(v, 40), v)));
      return [[select, index]];
    });
    const count = document.createElement("output");
    count.setAttribute("aria-live", "polite");
    box.append(count);
    const apply = () => {
      const wanted = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !row.classList.contains("pinned") && !(wanted.every((w) => text.includes(w))
          && facets.every(([s, i]) => !s.value || row.cells[i].textContent.trim() === s.value));
      }
      count.textContent = `${rows.filter((r) => !r.hidden).length} of ${rows.length} rows shown`;
    };
    [field, ...facets.map(([select]) => select)].forEach((e) => e.addEventListener("input", apply));
    apply();
  }

  /* A file made in the page, without a request. The byte order mark tells spreadsheets UTF-8. */
  function downloadable(box) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Download CSV";
    button.setAttribute("aria-label", `Download CSV: ${box.dataset.name}`);
    button.addEventListener("click", () => {
      const sheet = box.closest("section").querySelector(`template[data-sheet="${box.dataset.csv}"]`);
      const blob = new Blob(["\ufeff", sheet.content.textContent], { type: "text/csv;charset=utf-8" });
      const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: box.dataset.file });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
    box.append(button);
  }

  /* Make the markup of sections interactive, in the page or added later: `newCharts` are the charts
     below `root`. Elements that are interactive already are kept; charts are drawn again. */
  function mount(root, newCharts) {
    for (const chart of newCharts) charts.set(chart.key, chart);
    for (const element of drawn.keys()) if (!element.isConnected) drawn.delete(element);
    const enhance = (selector, add) => root.querySelectorAll(selector).forEach((element) => {
      if ("live" in element.dataset) return;
      element.dataset.live = "";
      element.hidden = false;
      add(element);
    });
    enhance("[data-pick]", pickable);
    queue.push(...root.querySelectorAll("[data-chart]"));
    next();
    enhance("[data-filter]", filterable);
    enhance("table[data-sortable]", sortable);
    enhance("[data-csv]", downloadable);
  }

  mount(document, JSON.parse(document.getElementById("charts").textContent));
  window.bakeoff = { mount };
})();
