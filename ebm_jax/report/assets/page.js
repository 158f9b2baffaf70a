"use strict";
// Draws the page from the JSON in #values. Whatever comes from a file becomes text by textContent, never HTML.
(() => {
  const page = JSON.parse(document.getElementById("values").textContent);
  const main = document.getElementById("main");
  const SERIES = 8, WIDE = 760, LONG_LIST = 16, DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];

  function make(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "class") node.className = value;
      else node.setAttribute(name, value);
    }
    node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
    return node;
  }

  const whole = (number) => Math.round(number).toLocaleString("en");
  const several = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

  function duration(seconds) {
    if (seconds < 90) return `${Math.round(seconds)} s`;
    if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
    if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
    return `${(seconds / 86400).toFixed(1)} days`;
  }

  function clock(seconds) {
    const date = new Date(seconds * 1000);
    return `${date.toLocaleDateString("sv")} ${date.toLocaleTimeString("sv").slice(0, 5)}`;
  }

  const sections = [];

  function section(id, title, ...children) {
    const content = children.flat(Infinity).filter(Boolean);
    if (!content.length) return;
    sections.push([id, title]);
    main.append(make("section", { id }, make("h2", {}, title), content));
  }

  function table(heads, rows, cls) {
    const cells = (row) => row.map((cell, column) => {
      const node = cell instanceof Node ? cell : make("td", {}, cell);
      if (heads[column]) node.dataset.head = heads[column];
      return node;
    });
    const head = heads.some(Boolean) ? make("thead", {}, make("tr", {}, heads.map((name) => make("th", {}, name)))) : null;
    return make("div", { class: "scroll" },
      make("table", { class: cls || "stack full" }, head, make("tbody", {}, rows.map((row) => make("tr", {}, cells(row))))));
  }

  const facts = (pairs) => table(["", ""], pairs.map(([name, text]) => [make("td", { class: "soft name" }, name), make("td", { class: "long" }, text)]), "stack full");
  // Its words stay whole: a browser breaks lines after the hyphens of --workdir
  const command = (text) => make("pre", {}, text.split(" ").map((word, index) => [index ? " " : "", make("span", {}, word)]));
  const folded = (title, ...children) => make("details", {}, make("summary", {}, title), children);

  // State

  function stateWords(state) {
    const done = state.steps !== null && state.step >= state.steps;
    if (done) return [`Finished: ${whole(state.step)} steps.`, true];
    const of = state.steps === null ? "" : ` of ${whole(state.steps)}`;
    const at = `At step ${whole(state.step)}${of}`;
    if (state.written === null) return [`${at}.`, false];
    const age = Math.max(0, Date.now() / 1000 - state.written), usual = Math.max(120, 10 * (state.every || 0));
    const line = `the last line of metrics is ${duration(age)} old (${clock(state.written)})`;
    if (age > usual) return [`${at}; ${line}: it stands still, or draws, evaluates or waits. Its command goes on from there.`, false];
    const left = state.left === null ? "" : `, about ${duration(state.left)} left${state.left_of && ` ${state.left_of}`} when this page was written, pictures and evaluations not counted`;
    return [`${at}${left}; ${line}. Load this page again for news.`, false];
  }

  function tiles(state) {
    const shown = [
      ["steps", state.steps === null ? whole(state.step) : `${whole(state.step)} / ${whole(state.steps)}`],
      ["time of training", state.seconds === null ? null : duration(state.seconds)],
      ["steps a second", state.rate === null ? null : state.rate.toPrecision(3)],
      ["newest checkpoint", state.checkpoint === null ? null : `step ${whole(state.checkpoint)}`],
      ...state.last,
    ];
    return make("div", { class: "tiles" }, shown.filter(([, value]) => value !== null).map(
      ([name, value]) => make("div", { class: "tile" }, make("span", { class: "soft" }, name), make("b", {}, value))));
  }

  function bar(state) {
    if (!state.steps) return null;
    const share = Math.min(100, (100 * state.step) / state.steps);
    const inner = make("div");
    inner.style.width = `${share}%`;
    return make("div", { class: "bar", role: "progressbar", "aria-valuenow": Math.round(share), "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": "steps done" }, inner);
  }

  // Curves

  const plots = [];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function number(value) {
    if (value === null || value === undefined) return "";
    const size = Math.abs(value);
    return size !== 0 && (size < 0.001 || size >= 1e6) ? value.toExponential(2).replace(/\.?0+e/, "e") : String(Number(value.toPrecision(4)));
  }

  function marks(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = colour("--bad");
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
    for (const event of page.events) {
      const x = plot.valToPos(event.step, "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  }

  // Draws a triangle at the edge for each value of the data beyond the scale
  const triangles = (data) => (plot) => {
    const { ctx, bbox } = plot, { min, max } = plot.scales.y, side = 5 * devicePixelRatio;
    ctx.save();
    plot.series.forEach((one, index) => {
      if (index === 0 || !one.show || one.class === "error") return;
      ctx.fillStyle = one._stroke;
      data[index].forEach((y, i) => {
        const x = plot.valToPos(data[0][i], "x", true);
        if (y === null || (y >= min && y <= max) || x < bbox.left || x > bbox.left + bbox.width) return;
        const [tip, base] = y > max ? [bbox.top, bbox.top + 2 * side] : [bbox.top + bbox.height, bbox.top + bbox.height - 2 * side];
        ctx.beginPath();
        ctx.moveTo(x, tip);
        ctx.lineTo(x - side, base);
        ctx.lineTo(x + side, base);
        ctx.fill();
      });
    });
    ctx.restore();
  };

  // Far beyond the range a browser loses a line's dashes: values stay near it
  function near(column, chart) {
    const [low, high] = chart.range;
    const [least, most] = chart.log ? [low / 10, high * 10] : [2 * low - high, 2 * high - low];
    return column.map((y) => (y === null ? null : Math.min(most, Math.max(least, y))));
  }

  function draw(chart, place) {
    const x = chart.x, data = [x], series = [{ label: "step", value: (_, value) => (value === null ? "" : whole(value)) }], bands = [];
    let strong = 0;
    for (const one of chart.series) {
      const index = strong++ % SERIES;
      const stroke = colour(one.thin ? "--series-7" : `--series-${index}`);
      data.push(one.y);
      series.push({
        label: one.label, stroke, width: one.thin ? 1 : 2, dash: one.thin ? [] : DASHES[(strong - 1) % DASHES.length],
        spanGaps: page.kind === "comparison", points: { show: x.length < 40, size: 5 }, value: (_, __, ___, i) => (i === null ? "" : number(one.y[i])),
      });
      if (one.error) {
        for (const sign of [1, -1]) {
          data.push(one.y.map((y, i) => (y === null || one.error[i] === null ? null : y + sign * one.error[i])));
          series.push({ label: sign > 0 ? "+ error" : "- error", class: "error", stroke: "transparent", width: 0, points: { show: false }, value: (_, value) => number(value) });
        }
        bands.push({ series: [data.length - 2, data.length - 1], fill: `${stroke}33` });
      }
    }
    const values = chart.series.flatMap((one) => one.y).filter((y) => y !== null).sort((a, b) => a - b);
    if (chart.log) for (const column of data.slice(1)) column.forEach((y, i) => { if (y !== null && y <= 0) column[i] = null; });
    const least = values[0], most = values[values.length - 1], half = Math.abs(most) / 10 || 0.5;
    const flat = least === most ? { from: least === 0 ? 0 : least - half, to: most + half } : null; // uPlot alone: 0 to 100
    const shown = chart.range ? [x, ...data.slice(1).map((column) => near(column, chart))] : data;
    let enlarged = false; // then all that is in sight has room, spikes too
    const room = (_, min, max) => {
      const [low, high] = enlarged ? [min, max] : chart.range;
      return chart.log ? uPlot.rangeLog(low, high, 10, false) : uPlot.rangeNum(low, high, 0.1, true);
    };
    const enlarge = (plot, on) => {
      if (on === enlarged || !chart.range) return;
      enlarged = on;
      plot.setData(on ? data : shown, false);
    };
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { stroke: colour("--grid") } };
    const options = {
      width: Math.max(200, place.clientWidth), height: 240, series, bands,
      scales: { x: { time: false }, y: { distr: chart.log ? 3 : 1, ...(flat ? { range: [flat.from, flat.to] } : chart.range ? { range: room } : {}) } },
      axes: [{ ...axis, values: (_, ticks) => ticks.map(whole) }, { ...axis, size: 62, values: (_, ticks) => ticks.map(number) }],
      hooks: { draw: [marks, triangles(data)], setSelect: [(plot) => enlarge(plot, true)] },
      cursor: { drag: { x: true, y: false }, bind: { dblclick: (plot, _, handler) => (event) => { enlarge(plot, false); handler(event); } } },
    };
    return new uPlot(options, shown, place);
  }

  function chart(values) {
    if (values.x.length === 1) {
      const found = values.series.map((one) => [one.label, one.error ? `${number(one.y[0])} ± ${number(one.error[0])}` : number(one.y[0])]);
      return make("div", { class: "chart" }, make("h3", {}, values.title), make("p", { class: "soft" }, values.meaning),
        facts([["step", whole(values.x[0])], ...found]));
    }
    const place = make("div", { class: "plot" });
    plots.push({ values, place, drawn: null });
    return make("div", { class: "chart" }, make("h3", {}, values.title, values.log ? " (log scale)" : ""), values.meaning ? make("p", { class: "soft" }, values.meaning) : null, place,
      values.beyond ? make("p", { class: "soft" }, `${values.beyond}. Drag across it to enlarge it.`) : null);
  }

  function charts(list) {
    const first = list.filter((one) => !one.more), more = list.filter((one) => one.more);
    return [
      first.length ? make("div", { class: "charts" }, first.map(chart)) : null,
      more.length ? folded(`${more.length} more`, make("div", { class: "charts" }, more.map(chart))) : null,
    ];
  }

  function redraw() {
    for (const plot of plots) {
      const width = plot.place.clientWidth;
      if (!width || (plot.drawn && plot.drawn.width === width)) continue; // folded, or drawn
      if (plot.drawn) plot.drawn.destroy();
      plot.drawn = draw(plot.values, plot.place);
    }
  }

  function drawAnew() {
    for (const plot of plots) {
      if (plot.drawn) plot.drawn.destroy();
      plot.drawn = null;
    }
    redraw();
  }

  // Pictures

  function image(source, words) {
    const shown = make("img", { src: source, alt: words, loading: "lazy" });
    shown.addEventListener("load", () => shown.classList.toggle("large", shown.naturalWidth > 2 * document.documentElement.clientWidth));
    return shown;
  }

  const NAMES = { chains: "Samples: chains from fresh noise, the same noise at every step", buffer: "The replay buffer", density: "Data, samples and learnt density" };

  function series(picture) {
    const frames = picture.frames;
    if (!frames.length) return null;
    const last = frames.length - 1, name = NAMES[picture.name] || picture.name.replaceAll("_", " ");
    const shown = image(frames[last].source, ""), output = make("output", {});
    const range = make("input", { type: "range", min: 0, max: last, value: last, "aria-label": `step of: ${name}` });
    const play = make("button", { type: "button" }, "Play");
    let timer = null;
    const show = () => {
      const frame = frames[Number(range.value)];
      shown.src = frame.source;
      shown.alt = `${name}, step ${whole(frame.step)}`;
      output.textContent = `step ${whole(frame.step)}`;
    };
    const stop = () => {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
    };
    range.addEventListener("input", () => { stop(); show(); });
    play.addEventListener("click", () => {
      if (timer) return stop();
      if (Number(range.value) === last) range.value = 0;
      play.textContent = "Stop";
      show();
      timer = setInterval(() => {
        range.value = Number(range.value) + 1;
        show();
        if (Number(range.value) === last) stop();
      }, 500);
    });
    show();
    const few = frames.length < picture.of ? `; ${frames.length} of ${picture.of} pictures` : "";
    const wide = picture.name === "density" ? { class: "wide" } : {};
    return make("figure", wide, make("figcaption", {}, `${name}${few}`), shown,
      make("div", { class: "slider" }, last ? [play, range] : null, output));
  }

  function sampling(one) {
    const film = one.film ? image(one.film, `film: ${one.title}`) : null;
    const grid = one.source ? image(one.source, one.title) : null;
    if (!film && !grid) return null;
    const figure = make("figure", {}, make("figcaption", {}, make("b", {}, one.title), make("br"), make("span", { class: "soft" }, one.path)), film, grid);
    const widen = () => { if (grid.naturalWidth > WIDE) figure.className = "wide"; }; // else its captions cannot be read
    if (grid) grid.addEventListener("load", widen);
    return figure;
  }

  // A row of samples for each class, cut out of the grid that the page has anyway
  function byClass(found) {
    if (!found) return null;
    if (!found.place) return [
      make("p", {}, "No picture of this run tells the class of each sample yet: older versions did not keep it. This makes one, and shows it here:"),
      command(found.command),
    ];
    const source = found.place.reduce((part, key) => part[key], page);
    const [width, height] = found.size, grid = new Image(), cut = [];
    const rows = found.classes.map(([name, places]) => {
      const shown = places.map((place) => {
        const canvas = make("canvas", { width, height });
        cut.push([canvas, found.first[0] + (place % found.columns) * found.pitch[0], found.first[1] + Math.floor(place / found.columns) * found.pitch[1]]);
        return canvas;
      });
      return make("div", { class: "of-class" }, make("b", {}, name),
        make("div", { class: "row", role: "img", "aria-label": `${several(places.length, "sample")} of ${name}` }, shown));
    });
    grid.addEventListener("load", () => {
      for (const [canvas, x, y] of cut) canvas.getContext("2d").drawImage(grid, x, y, width, height, 0, 0, width, height);
    });
    grid.src = source;
    return [make("p", { class: "soft" }, `Step ${whole(found.step)}, from ${found.path}: each row has the samples of the class that was asked for.`), make("div", { class: "by-class" }, rows)];
  }

  // Evaluations

  const TONES = { good: "✓ ", bad: "✗ ", "": "" };

  const withError = (row) => (row.error ? `${row.value} ± ${row.error}` : row.value);

  function list(rows) {
    return table(["value", "number ± standard error", "how good", "what it means"], rows.map((row) => [
      row.name,
      make("td", { class: "number" }, withError(row)),
      make("td", { class: row.tone }, row.verdict ? TONES[row.tone] + row.verdict : ""),
      make("td", { class: "soft" }, row.meaning),
    ]));
  }

  // Many values as a grid: a cell has its verdict as colour and sign, and in words under the pointer
  function grid(values) {
    const columns = [...new Set(values.map((value) => value.column))], rows = new Map();
    for (const value of values) rows.set(value.row, { ...rows.get(value.row), [value.column]: value });
    const cell = (value) => (value ? make("td", { class: `number ${value.tone}`, title: value.verdict }, TONES[value.tone] + withError(value)) : "");
    const meanings = [...new Set(values.map((value) => `${value.row.split(",")[0]}: ${value.meaning}`).filter((words) => !words.endsWith(": ")))];
    return [
      table(["value ± standard error", ...columns], [...rows].map(([name, found]) => [name, ...columns.map((column) => cell(found[column]))])),
      make("p", { class: "soft" }, `${meanings.join(". ")}. ✓ good, ✗ bad, where there is something to compare with.`),
    ];
  }

  function metric(one) {
    const inGrid = one.rows.filter((row) => row.column), large = inGrid.length > LONG_LIST;
    const rows = large ? one.rows.filter((row) => !row.column) : one.rows;
    return make("div", { class: "metric" },
      make("h3", {}, one.name.replaceAll("_", " "), one.warning ? make("span", { class: "bad" }, ` (${one.warning})`) : ""),
      one.verdicts.length ? make("ul", {}, one.verdicts.map((words) => make("li", {}, words))) : null,
      rows.length ? list(rows) : null, large ? grid(inGrid) : null,
      folded("Protocol: how these numbers came about", facts(one.facts)),
      one.pictures.length ? make("div", { class: "pictures" }, one.pictures.map((picture) =>
        make("figure", { class: "wide" }, make("figcaption", { class: "soft" }, picture.name), image(picture.source, picture.name)))) : null);
  }

  function evaluation(one) {
    return [
      one.metrics.map(metric),
      one.failed.length ? [make("h3", {}, "Not measured"), facts(one.failed)] : null,
      folded("The protocol card's facts on the whole evaluation", facts(one.facts)),
    ];
  }

  // The page of one run

  function run() {
    const [words, done] = stateWords(page.state);
    section("state", "State", make("p", { class: done ? "good" : "" }, `${done ? TONES.good : ""}${words}`), bar(page.state), tiles(page.state));
    section("curves", "Curves", charts(page.charts), page.charts.length ? make("p", { class: "soft" }, `Drag across a curve to enlarge it, double-click to see all of it${page.events.length ? "; dashed vertical lines are the events below" : ""}.`) : null);
    section("events", "Events", page.events.length ? table(["step", "what happened"], page.events.map((event) => [make("td", { class: "number" }, whole(event.step)), event.text])) : null);
    const unchosen = (shown) => (shown && page.unchosen ? make("p", { class: "soft" }, page.unchosen) : null);
    section("judged", "Judged while training", unchosen(page.judged.length), charts(page.judged));
    section("pictures", "Pictures through training", unchosen(page.pictures.length), page.pictures.length ? make("div", { class: "pictures" }, page.pictures.map(series)) : null);
    const samples = page.samples.map(sampling).filter(Boolean);
    section("samples", "Samples and films", samples.length ? make("div", { class: "pictures" }, samples) : null);
    section("classes", "Samples by class", byClass(page.by_class));
    const [newest, ...older] = page.evaluations;
    section("evaluation", "Evaluation", newest ? [make("p", { class: "soft" }, newest.title), evaluation(newest)] : null,
      older.map((one) => folded(`Earlier: ${one.title}`, evaluation(one))));
    section("commands", "Commands", page.commands.map((one) => [make("p", { class: "soft" }, one.what), one.command ? command(one.command) : null]));
    section("config", "Config: what differs from the defaults", page.config.length ? table(["key", "value", "default", "meaning"], page.config.map((row) => [make("td", { class: "key" }, row.key), row.value, row.default, make("td", { class: "soft" }, row.meaning)])) : null);
    section("data", "Data", page.data.length ? facts(page.data) : null);
    section("environment", "Environment", page.versions.map((entry, index) =>
      index === page.versions.length - 1 ? facts(entry) : folded(`Before: ${entry.slice(0, 3).map(([, text]) => text).join(", ")}`, facts(entry))));
  }

  // The page of several runs

  function comparison() {
    const names = page.runs.map((one) => one.name);
    section("state", "Runs", table(["run", "state", "folder"], page.runs.map((one) => [one.name, stateWords(one.state)[0], make("td", { class: "soft" }, one.folder)])));
    const beside = (rows) => table(["value", ...names], rows.map((row) => [
      make("td", {}, `${row.metric.replaceAll("_", " ")}: ${row.name}`, make("br"), make("span", { class: "soft" }, row.meaning)),
      ...row.values]));
    const shared = page.metrics.filter((row) => row.values.filter(Boolean).length > 1), single = page.metrics.filter((row) => !shared.includes(row));
    section("metrics", "Metrics ± standard errors",
      shared.length ? [beside(shared), make("p", { class: "soft" }, "Of each run the newest evaluation that has the number. Two numbers compare where their cards say that they came about alike.")] : null,
      single.length ? folded(`${several(single.length, "number")} that one run alone has`, beside(single)) : null);
    section("config", "Config: where the runs differ", page.config.length ? table(["key", ...names, "meaning"], page.config.map((row) =>
      [make("td", { class: "key" }, row.key), ...row.values, make("td", { class: "soft" }, row.meaning)])) : null);
    section("curves", "Curves", charts(page.charts));
    section("judged", "Judged while training", charts(page.judged));
    section("samples", "Newest pictures", make("div", { class: "pictures" }, page.beside.map((one) =>
      make("div", {}, make("h3", {}, one.name), one.pictures.map((picture) => make("figure", {}, make("figcaption", { class: "soft" }, picture.title), image(picture.source, `${one.name}: ${picture.title}`)))))));
  }

  main.textContent = "";
  main.append(make("header", {}, make("h1", {}, page.kind === "run" ? page.title : "Comparison"), make("span", { class: "soft" }, `${page.kind === "run" ? "a run of" : `${page.title}, by`} ebm_jax ${page.version}; page of ${clock(page.made)}`)));
  const nav = make("nav", { "aria-label": "parts of this page" });
  main.append(nav);
  if (page.damaged.length) {
    main.append(make("section", { class: "notice" }, make("h2", {}, "Not all could be read"), page.damaged.map((words) => make("p", {}, words))));
  }
  (page.kind === "run" ? run : comparison)();
  nav.append(...sections.map(([id, title]) => make("a", { href: `#${id}` }, title.split(":")[0])));
  const out = page.left_out;
  main.append(make("footer", {}, out.length ? folded(`${several(out.length, "picture")} left out to keep this page small; the run's folder has them`, out.slice(0, 500).join(", ")) : "",
    make("p", {}, "Drawn with uPlot (MIT, © Leon Sorokin). This file asks nothing of any network.")));
  for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", redraw);
  window.addEventListener("resize", redraw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAnew);
  redraw();
  document.body.dataset.drawn = String(plots.filter((plot) => plot.drawn).length);
})();
