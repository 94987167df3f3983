// Draws the charts: those that are seen first, one after the other, so that the page can be used meanwhile; anew where colours change.
(() => {
  "use strict";
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Columns become rows when they are drawn first.
  const rows = (columns) => {
    const names = Object.keys(columns);
    const length = names.length ? columns[names[0]].length : 0;
    return Array.from({ length }, (_, i) => Object.fromEntries(names.map((name) => [name, columns[name][i]])));
  };
  const values = (chart) => {
    chart.values ??= Object.fromEntries(Object.entries(chart.data).map(([name, columns]) => [name, rows(columns)]));
    return chart.values;
  };

  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(`--${name}`).trim();
    const many = (letter, from, to) => Array.from({ length: to - from + 1 }, (_, i) => of(letter + (from + i)));
    return { of, category: many("c", 1, 8), heat: many("h", 0, 4), diverging: many("d", 0, 4) };
  };

  // Of a specification, what names a colour of the page is that colour.
  const coloured = (part, of) => {
    if (typeof part === "string") return part.replace(/^var\(--(\w+)\)$/, (_, name) => of(name));
    if (Array.isArray(part)) return part.map((each) => coloured(each, of));
    if (part === null || typeof part !== "object") return part;
    return Object.fromEntries(Object.entries(part).map(([name, each]) => [name, coloured(each, of)]));
  };

  const config = (width, letters) => {
    const { of, category, heat, diverging } = colours();
    const font = getComputedStyle(document.body).fontFamily;
    const narrow = innerWidth < 560;
    const axis = { domain: false, ticks: false, labelColor: of("soft"), titleColor: of("soft"), gridColor: of("grid"),
      titleFontWeight: 400, labelFontSize: 12, titleFontSize: 12, labelPadding: 6, titlePadding: 8,
      tickCount: narrow ? 4 : 6, labelFont: font, titleFont: font, labelOverlap: true };
    return {
      background: "transparent", font, padding: 2, axis, axisX: { grid: false },
      axisY: narrow ? { labelLimit: 110 } : {}, view: { stroke: null },
      legend: { orient: "top", direction: "horizontal", labelColor: of("soft"), titleColor: of("soft"), titleFontWeight: 400,
        labelFontSize: 12, titleFontSize: 12, symbolType: "square", symbolStrokeWidth: 0, symbolSize: 80, offset: 8,
        gradientLength: narrow ? 120 : 200, gradientThickness: 10, columns: Math.max(1, Math.floor((width - 60) / (7 * letters + 34))), labelLimit: 260 },
      range: { category, heatmap: heat, ramp: heat, diverging },
      line: { strokeWidth: 1.8, strokeJoin: "round" }, rect: { stroke: null }, bar: { stroke: null },
      style: {
        faint: { strokeWidth: 1, opacity: dark.matches ? 0.35 : 0.28 },
        guide: { color: of("bad"), strokeWidth: 1.4, strokeDash: [4, 3] },
        near: { filled: true, size: 70, stroke: of("card"), strokeWidth: 2 },
        whole: { color: of("mark"), cornerRadius: 2 },
        empty: { fill: of("sunk") },
        part: { cornerRadius: 1 },
      },
    };
  };

  const views = new Map();
  const draw = async (chart) => {
    const place = document.getElementById(`chart-${chart.name}`);
    const said = { role: place.getAttribute("role"), label: place.getAttribute("aria-label") };
    if (views.has(chart)) views.get(chart).finalize();
    const spec = { width: "container", ...coloured(chart.spec, colours().of), datasets: values(chart) };
    try {
      const options = { actions: false, renderer: chart.renderer, mode: "vega-lite", logLevel: 1,
        config: config(place.clientWidth, chart.letters) };
      views.set(chart, await vegaEmbed(place, spec, options));
      place.style.minHeight = "";
      // The figure has a text of its own: nobody is read thousands of marks.
      place.setAttribute("role", said.role);
      place.setAttribute("aria-label", said.label);
      place.removeAttribute("aria-roledescription");
      for (const drawn of place.querySelectorAll("svg, canvas")) drawn.setAttribute("aria-hidden", "true");
      place.dataset.drawn = dark.matches ? "dark" : "light";
    } catch (error) {
      place.classList.add("failed");
      place.textContent = `This chart could not be drawn: ${error.message}`;
      console.error(chart.name, error);
    }
  };

  let turn = 0;
  const drawAll = () => {
    const mine = ++turn;
    delete document.documentElement.dataset.ready;
    const top = (chart) => document.getElementById(`chart-${chart.name}`).getBoundingClientRect().top;
    const waiting = charts.map((chart) => [Math.abs(top(chart)), chart]).sort((a, b) => a[0] - b[0]).map(([, chart]) => chart);
    const next = async () => {
      if (mine !== turn) return;
      const chart = waiting.shift();
      if (!chart) { document.documentElement.dataset.ready = "yes"; return; }
      await draw(chart);
      setTimeout(next);
    };
    next();
  };
  dark.addEventListener("change", drawAll);
  drawAll();
})();
