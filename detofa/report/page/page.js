"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 40rem)");
  const drawn = new Set();

  // Replaces names such as --first by the colours that the page has now.
  const coloured = (value, style) => {
    if (typeof value === "string" && value.startsWith("--")) {
      return style.getPropertyValue(value).trim();
    }
    if (Array.isArray(value)) return value.map((item) => coloured(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v, style)]));
    }
    return value;
  };

  const layoutOf = ({ axes, layout }) => {
    const axis = (title) => ({
      title: { text: title, standoff: 8 }, automargin: true, gridcolor: "--grid",
      zerolinecolor: "--line", linecolor: "--line", exponentformat: "SI",
    });
    const { xaxis, yaxis, ...rest } = layout;
    return {
      paper_bgcolor: "--paper", plot_bgcolor: "--paper", dragmode: false, hovermode: "closest",
      font: { color: "--ink", size: narrow.matches ? 11 : 13, family: "inherit" },
      margin: { l: 10, r: 10, t: 10, b: 10 },
      hoverlabel: { bgcolor: "--raised", bordercolor: "--line", font: { color: "--ink" } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      xaxis: { ...axis(axes[0]), ...xaxis }, yaxis: { ...axis(axes[1]), ...yaxis }, ...rest,
    };
  };

  const draw = (name) => {
    drawn.add(name);
    const style = getComputedStyle(document.documentElement);
    const chart = charts[name];
    Plotly.react(
      name, coloured(chart.traces, style), coloured(layoutOf(chart), style),
      { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false },
    );
  };

  const names = Object.keys(charts);
  const watch = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting && !drawn.has(target.id)) draw(target.id);
    }
  }, { rootMargin: "400px" });
  for (const name of names) watch.observe(document.getElementById(name));
  for (const query of [dark, narrow]) {
    query.addEventListener("change", () => [...drawn].forEach(draw));
  }
  addEventListener("beforeprint", () => names.forEach(draw));

  // ---- the budget ----

  const form = document.getElementById("explorer");
  if (!form) return;
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const [cost, budget, copy] = ["cost", "budget", "copy"].map((id) => document.getElementById(id));
  const tell = (id, text) => { document.getElementById(id).textContent = text; };
  const typed = { latency: (ms) => `${Number(ms.toPrecision(4))}ms`,
                  macs: (macs) => `${Number((macs / 1e6).toPrecision(4))}M` };
  const told = { latency: (ms) => `${Number(ms.toPrecision(4))} ms`,
                 macs: (macs) => `${Number((macs / 1e6).toPrecision(4))}M MACs` };

  const best = (costs, aps, limit) => {
    let chosen = -1;
    costs.forEach((value, row) => {
      if (value <= limit && (chosen < 0 || aps[row] > aps[chosen])) chosen = row;
    });
    return chosen;
  };

  // What a budget is compared with.
  const compared = (axis) => axis.high.map((high, row) => axis.measured[row] ?? high);

  const limits = (axis) => {
    const all = [...axis.paths, ...compared(axis)];
    return [Math.min(...all), Math.max(...all)];
  };

  // What is typed is rounded: so is the budget that is compared.
  const limitOf = (axis) => {
    const [low, high] = limits(axis);
    const value = low + (high - low) * budget.value / budget.max;
    const step = 10 ** (Math.floor(Math.log10(value)) - 3);
    return Math.ceil(value / step - 1e-9) * step;
  };

  const answer = () => {
    const axis = data.axes[cost.value];
    const limit = limitOf(axis);
    const amount = told[axis.kind](limit);
    tell("budget-text", amount);
    budget.setAttribute("aria-valuetext", amount);
    const row = best(compared(axis), data.ap, limit);
    const path = best(axis.paths, data.path_ap, limit);
    const search = axis.search.replace("{}", typed[axis.kind](limit));
    if (row < 0) {
      tell("choice", `No detector of this run is within ${amount}; this looks for one:`);
      tell("command", search);
    } else {
      const range = axis.kind === "macs" ? told.macs(axis.subnets[row]) :
        `${axis.subnets[row].toFixed(2)} ms predicted ` +
        `(${axis.low[row].toFixed(2)} to ${axis.high[row].toFixed(2)})` +
        (axis.measured[row] === null ? "" : `, ${axis.measured[row].toFixed(2)} ms measured`);
      tell("choice", `${data.names[row]}: AP ${data.ap[row].toFixed(3)}, ${range}`);
      tell("command", data.commands[row]);
    }
    const better = path >= 0 && row >= 0 && data.path_ap[path] > data.ap[row];
    tell("better", better ? `A path with AP ${data.path_ap[path].toFixed(3)} was evaluated within ` +
      `this budget and is not written as a detector: ${search}` : "");
    return [limit, row];
  };

  // The traces of the front: paths, their front, the subnets, the one chosen.
  const chart = charts.front;
  const show = () => {
    const axis = data.axes[cost.value];
    const [limit, row] = answer();
    const [paths, front, subnets, chosen] = chart.traces;
    paths.x = axis.paths;
    front.x = axis.front.map((index) => axis.paths[index]);
    front.y = axis.front.map((index) => data.path_ap[index]);
    subnets.x = axis.subnets;
    if (subnets.error_x) {
      subnets.error_x.array = axis.high.map((high, index) => high - axis.subnets[index]);
      subnets.error_x.arrayminus = axis.low.map((low, index) => axis.subnets[index] - low);
      subnets.error_x.visible = axis.kind === "latency";
    }
    chosen.x = row < 0 ? [] : [axis.subnets[row]];
    chosen.y = row < 0 ? [] : [data.ap[row]];
    chosen.text = row < 0 ? [] : [subnets.text[row]];
    chart.axes[0] = axis.title;
    chart.layout.shapes = [{ type: "line", yref: "paper", y0: 0, y1: 1, x0: limit, x1: limit,
                             line: { color: "--second", width: 2, dash: "dash" } }];
    if (drawn.has("front")) draw("front");
  };

  let waiting = false;
  const showSoon = () => {
    answer();
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; show(); });
  };
  budget.addEventListener("input", showSoon);
  cost.addEventListener("change", showSoon);
  form.addEventListener("submit", (event) => event.preventDefault());

  copy.addEventListener("click", async () => {
    const command = document.getElementById("command");
    try {
      await navigator.clipboard.writeText(command.textContent);
      tell("copied", "Copied.");
    } catch {  // not allowed here: the text is selected, to be copied by hand
      getSelection().selectAllChildren(command);
      tell("copied", "Selected; copy it with Ctrl+C.");
    }
    setTimeout(() => tell("copied", ""), 4000);
  });
  show();
})();
