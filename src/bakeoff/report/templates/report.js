/* Draws the charts from the JSON in the page and lets tables be sorted. No markup is ever made from
   data: text goes to textContent, or to Plotly with its pseudo-HTML escaped. */
(() => {
  "use strict";
  const charts = new Map();
  const drawn = new Map();
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
    "reference": ["--other", "circle", "solid", 0, 4],
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
      const reach = (ends) => ends.map((e, i) => (e === null ? 0 : Math.abs(e - series.y[i])));
      made.error_y = {
        type: "data", symmetric: false, array: reach(series.high), arrayminus: reach(series.low),
        color: colour(variable), thickness: 1.25, width: 0,
      };
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
        const x = at(chart.x, value, width);
        const end = (v) => height - at(pane.y, v === null ? s.y[j] : v, height);
        bars.push([x - 2, end(s.high[j]), x + 2, end(s.low[j])]);
      });
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
      // A label over somebody's bar can still be read; one over a dot or a label cannot.
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

  function draw(element) {
    const chart = charts.get(element.dataset.chart);
    try {
      const { data, layout } = figure(chart, element);
      Plotly.react(element, data, layout, {
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

  /* One chart a turn: a page with fifty methods can be read and scrolled while it is drawn. */
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
      if (x === null || y === null) return (x === null) - (y === null);  // absent stays last
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

  /* Bring markup of sections to life, whether it came with the page or after it: `made` are the
     charts of everything below `root`. */
  function mount(root, made) {
    for (const chart of made) charts.set(chart.key, chart);
    for (const element of drawn.keys()) if (!element.isConnected) drawn.delete(element);
    queue.push(...root.querySelectorAll("[data-chart]"));
    next();
    root.querySelectorAll("table[data-sortable]").forEach(sortable);
  }

  mount(document, JSON.parse(document.getElementById("charts").textContent));
  window.bakeoff = { mount };
})();
