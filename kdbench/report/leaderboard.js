
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;
  const SVG = "http://www.w3.org/2000/svg";
  const SVG_TAGS = new Set(["svg", "path", "line", "circle", "rect", "text", "title", "desc", "g"]);

  // Every text goes through a text node: what a name says is never markup.
  function h(tag, attributes, ...children) {
    const node = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
    return node;
  }
  const name = (text) => h("bdi", { dir: "auto" }, text);

  // ---- theme ----
  const THEMES = ["system", "light", "dark"];
  function kept(value) {
    try {
      if (value === undefined) return localStorage.getItem("kdbench-theme");
      localStorage.setItem("kdbench-theme", value);
    } catch {
      // storage is refused, as it may be for a file: the choice lasts as long as the page
    }
    return value;
  }
  function dress(theme) {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
    byId("theme").textContent = `Theme: ${theme}`;
  }
  dress(THEMES.includes(kept()) ? kept() : "system");
  byId("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(root.dataset.theme || "system") + 1) % THEMES.length];
    kept(next);
    dress(next);
  });
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address holds the state
    byId("main").focus();
  });
  if (!byId("table")) {
    performance.mark("kdbench-ready");
    return;
  }

  // ---- data ----
  const payload = JSON.parse(byId("payload").textContent);
  const { tables, chapters, configs, environments } = payload;
  const runs = payload.records;
  const rows = unpack(payload.rows);
  unpack(payload.shown).forEach((shown, index) => { rows[index].shown = shown; });
  let curveData = null;
  const curvesOf = (run) => (curveData ??= JSON.parse(byId("payload-curves").textContent))[run];

  function unpack(columns) {
    const keys = Object.keys(columns);
    return (columns[keys[0]] ?? []).map((_, index) => {
      const row = { index };
      for (const key of keys) row[key] = columns[key][index];
      return row;
    });
  }

  const leafTitle = new Map();
  const leafChapter = new Map();
  for (const chapter of chapters) {
    for (const leaf of chapter.leaves) {
      leafTitle.set(leaf.id, leaf.title);
      leafChapter.set(leaf.id, chapter.title);
    }
  }
  const head = (table) => [table.measure === "top-1" ? "Top-1" : table.measure, table.unit, table.higher ? "" : "(lower is better)"].filter(Boolean).join(" ");
  const united = (value, table) => (table.unit ? `${value} ${table.unit}` : value);
  // what all tables say, or a word that does for any
  const common = (values, word) => (new Set(values).size === 1 ? values[0] : word);
  const merit = (row, key) => (row[key] === null || tables[row.table].higher ? row[key] : -row[key]); // higher is better
  for (const row of rows) {
    const table = tables[row.table];
    row.dataset = table.dataset;
    row.pair = table.pair;
    row.protocol = table.protocol;
    row.teacher = table.teacher ? `${table.teacher[0]} ${table.teacher[1]}` : "none";
    row.label = row.setting ? `${row.method} (${row.setting})` : row.method;
    row.chapter = leafChapter.get(row.leaf);
    row.measure = head(table);
    table.others.forEach((other, index) => { row[`other ${other}`] = row.others[index]; });
    row.text = [
      row.method, row.setting, row.leaf, leafTitle.get(row.leaf), row.role, row.paper, row.cls, row.id,
      row.dataset, row.pair, row.protocol, row.teacher, row.measure, ...row.records.map((run) => runs.cell[run]),
    ].join("\n").toLowerCase();
  }
  const range = tables.map(() => [Infinity, -Infinity]);
  for (const row of rows) {
    if (row.reached === null) continue;
    const bounds = range[row.table];
    bounds[0] = Math.min(bounds[0], row.reached - (row.half || 0));
    bounds[1] = Math.max(bounds[1], row.reached + (row.half || 0));
  }
  tables.forEach((table, index) => {
    if (!table.teacher) return;
    range[index][0] = Math.min(range[index][0], table.teacher[2]);
    range[index][1] = Math.max(range[index][1], table.teacher[2]);
  });

  // ---- numbers ----
  // Numbers come as texts, rounded as in every other format; here they get a typographer's signs.
  const NONE = "–";
  const neat = (text) => (text === "-" ? NONE : text.replace(/^-(?=\d)/, "−"));
  // of the axes of plots alone
  const big = (value) => {
    for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (value >= size) return `${(value / size).toPrecision(3)} ${unit}`;
    }
    return String(value);
  };
  const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

  // ---- columns ----
  const shapes = {
    control: "M1 1H9V9H1Z",
    survey: "M5 .5A4.5 4.5 0 1 1 5 9.5A4.5 4.5 0 1 1 5 .5Z",
    extension: "M5 0L10 9.3H0Z",
    "third-party": "M5 0L10 5L5 10L0 5Z",
  };
  const roleNames = {
    control: "control", survey: "cited by the survey", extension: "extension", "third-party": "third-party",
  };
  const mark = (role) =>
    h("svg", { class: `mark ${role}`, viewBox: "0 0 10 10", "aria-hidden": "true" }, h("path", { d: shapes[role] }));

  function strip(row) {
    const [low, high] = range[row.table];
    if (row.reached === null || !(high > low)) return null;
    const x = (value) => (2 + (88 * (value - low)) / (high - low)).toFixed(1);
    const table = tables[row.table];
    const tick = (value) => h("line", { class: "ref", x1: x(value), x2: x(value), y1: 1, y2: 11 });
    return h("svg", { class: "strip", viewBox: "0 0 92 12", "aria-hidden": "true" },
      h("line", { class: "axis", x1: 0, x2: 92, y1: 6, y2: 6 }),
      table.teacher && tick(table.teacher[2]),
      row.half !== null &&
        h("line", { class: "ci", x1: x(row.reached - row.half), x2: x(row.reached + row.half), y1: 6, y2: 6 }),
      h("circle", { class: "dot", cx: x(row.reached), cy: 6, r: 3 }));
  }
  // a mean and its spread
  function estimate(text) {
    const [value, ...spread] = text.split(" ");
    return [h("span", { class: "value" }, neat(value)), ...(spread.length ? [" ", h("span", { class: "half" }, spread.join(" "))] : [])];
  }
  function accuracy(row) {
    return row.reached === null ? [NONE] : [...estimate(row.shown.reached), strip(row)];
  }
  function difference(row, key) {
    if (row[key] === null) return [neat(row.shown[key])];
    const [value, ...spread] = row.shown[key].split(" ");
    return [
      row.shown.sure.includes(key) ? h("b", { class: `sure ${merit(row, key) > 0 ? "up" : "down"}` }, neat(value)) : neat(value),
      " ",
      h("span", { class: "half" }, spread.join(" ")),
    ];
  }
  const text = (key) => (row) => [neat(row.shown[key])];
  const MEASURE = common(tables.map(head), "Measured");
  const SAMPLE = tables.every((table) => table.examples === "images") ? "image" : "sample";
  const OTHERS = [...new Set(tables.flatMap((table) => table.others))].sort();
  const further = (name) => (row) => {
    const at = tables[row.table].others.indexOf(name);
    return at < 0 ? [NONE] : estimate(row.shown.others[at]);
  };
  const COLUMNS = [
    ["method", "Method", "Method, and the settings that tell it from others of its name in the table. ■ control, ● cited by the survey, ▲ extension, ◆ third-party: of a package that does not ship with kdbench, or a leaf that is not in the survey's tree."],
    ["dataset", "Data set", "Data set by name; tables also tell its content and settings apart.", (row) => [name(row.dataset)], "flat"],
    ["pair", "Pair", "Teacher and student of the table. Runs without a teacher stand in the table of every teacher of their student.", (row) => [name(row.pair)], "flat"],
    ["protocol", "Protocol", "Epochs, optimiser, schedule, precision: whatever makes numbers comparable.", (row) => [name(row.protocol)], "flat"],
    ["teacher", "Teacher", "Its name and the first digits of the sha256 of its weights.", (row) => [name(row.teacher)], "flat"],
    ...(MEASURE === "Measured" ? [["measure", "Measure", "What is measured, its unit, and where lower is better.", (row) => [name(row.measure)], "flat"]] : []),
    ["reached", MEASURE, "Mean over seeds of what is measured on the test set after the last epoch, ± its 95 % t-interval. The strip draws both on the scale of the table; its tick is the teacher.", accuracy],
    ...(payload.balanced ? [["bal", "Balanced %", "Mean over classes of the share of their test images that is right, ± its 95 % t-interval over seeds; shown where the largest class has more than 1.5 times the images of the smallest.", (row) => estimate(row.shown.bal)]] : []),
    ["n", "n", "Finished seeds.", (row) => [String(row.n)]],
    ["ds", common(tables.map((table) => table.versus[0]), "Δ scratch"), "Mean difference to training from scratch between runs of the same seed, ± its 95 % interval. Bold: paired t-test, p < " + payload.alpha + " after Holm's correction inside the table; else the two are not distinguishable. The row that is compared with says reference.", (row) => difference(row, "ds")],
    ["dk", common(tables.map((table) => table.versus[1]), "Δ KD"), "The same, to plain distillation.", (row) => difference(row, "dk")],
    ...OTHERS.map((other) => [`other ${other}`, other, "A further measure, mean over seeds ± its 95 % t-interval.", further(other), "other"]),
    ["gap", "Gap %", "Share of the gap between the student from scratch (0) and its teacher (100) that is recovered.", text("gap")],
    ["macs", "MACs", "Multiply-accumulates of the deployed network for one " + SAMPLE + ".", text("macs")],
    ["params", "Params", "Parameters of the deployed network.", text("params")],
    ["extra", "Extra", "Parameters that only training needs: adapters, heads, generators.", text("extra"), "rest"],
    ["minutes", "Train min", "Minutes of training, median over seeds; comparable on one device that does nothing else. None where seeds differ by more than 2x, as pauses do.", text("minutes")],
    ["images", SAMPLE === "image" ? "Images" : "Samples", "Training " + SAMPLE + "s drawn, over all epochs and stages.", text("images"), "rest"],
    ["sf", "S fwd", "Student forwards for each " + SAMPLE + " drawn.", text("sf"), "rest"],
    ["tf", "T fwd", "Teacher forwards for each " + SAMPLE + " drawn.", text("tf"), "rest"],
    ["diverged", "Div.", "Seeds that diverged; they count here alone.", (row) => [row.diverged ? h("span", { class: "bad" }, String(row.diverged)) : "0"]],
  ].map(([key, label, help, cell, kind]) => ({ key, label, help, cell, kind }));
  const TEXT = new Set(["method", "dataset", "pair", "protocol", "teacher", "measure"]);
  const BY_MERIT = new Set(["reached", "ds", "dk"]);
  // of numbers; where lower is better the best come first as they rise
  const directions = (key) => (BY_MERIT.has(key) ? new Set(tables.map((table) => table.higher)) : new Set([true]));
  const UPWARD = new Set([...TEXT, "macs", "params", "extra", "minutes", "images", "sf", "tf"]);
  const VIEWS = ["results", "plots", "taxonomy"];
  const COSTS = { fwd: `student and teacher forwards per ${SAMPLE}`, images: `training ${SAMPLE}s`, sf: `student forwards per ${SAMPLE}`, tf: `teacher forwards per ${SAMPLE}`, minutes: "training minutes" };

  const wide = matchMedia("(min-width: 901px)");

  // ---- state, kept in the address ----
  const DEFAULTS = { q: "", chapter: "", leaf: "", data: "", pair: "", protocol: "", seeds: 0, sort: "-reached", flat: false, view: "results", scope: "", cost: "fwd" };
  const FILTERS = ["q", "chapter", "leaf", "data", "pair", "protocol", "seeds"];
  let state = { ...DEFAULTS };
  let open = new Set();
  const rowById = new Map(rows.map((row) => [row.id, row]));

  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const text = (key) => given.get(key) ?? DEFAULTS[key];
    state = { ...DEFAULTS };
    for (const key of ["q", "chapter", "leaf", "data", "pair", "protocol", "scope"]) state[key] = text(key);
    const seeds = Number(text("seeds"));
    state.seeds = Number.isFinite(seeds) ? Math.min(Math.max(Math.floor(seeds), 0), 999) : 0;
    if (COLUMNS.some((column) => column.key === text("sort").replace(/^-/, ""))) state.sort = text("sort");
    state.flat = given.get("flat") === "1";
    if (VIEWS.includes(text("view"))) state.view = text("view");
    if (Object.hasOwn(COSTS, text("cost"))) state.cost = text("cost");
    if (!options.chapter.has(state.chapter)) state.chapter = "";
    fillLeaves();
    for (const [key, values] of Object.entries(options)) if (!values.has(state[key])) state[key] = "";
    open = new Set((given.get("open") ?? "").split(",").filter((id) => rowById.has(id)));
  }
  function writeAddress() {
    const given = new URLSearchParams();
    for (const [key, value] of Object.entries(state)) {
      if (value !== DEFAULTS[key]) given.set(key, value === true ? "1" : value);
    }
    if (open.size) given.set("open", [...open].join(","));
    const text = given.toString();
    try {
      history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
    } catch {
      // browsers limit how often the address may change
    }
  }

  // ---- filters ----
  const options = {};
  function fill(id, entries, all) {
    options[id] = new Map([["", all], ...entries]);
    byId(id).replaceChildren(...[...options[id]].map(([value, label]) => h("option", { value }, label)));
  }
  function counted(key) {
    const counts = new Map();
    for (const row of rows) counts.set(row[key], (counts.get(row[key]) || 0) + 1);
    return [...counts].sort((a, b) => (a[0] < b[0] ? -1 : 1)).map(([value, count]) => [value, `${value} (${count})`]);
  }
  function fillLeaves() {
    const counts = new Map();
    for (const row of rows) counts.set(row.leaf, (counts.get(row.leaf) || 0) + 1);
    const leaves = chapters.filter((chapter) => state.chapter === "" || chapter.title === state.chapter);
    fill("leaf", leaves.flatMap((chapter) => chapter.leaves).filter((leaf) => counts.has(leaf.id))
      .map((leaf) => [leaf.id, `${leaf.title} (${counts.get(leaf.id)})`]), "all");
  }
  function fillFilters() {
    const counts = new Map();
    for (const row of rows) counts.set(row.chapter, (counts.get(row.chapter) || 0) + 1);
    fill("chapter", chapters.filter(({ title }) => counts.has(title)).map(({ title }) => [title, `${title} (${counts.get(title)})`]), "all");
    fillLeaves();
    for (const [id, key] of [["data", "dataset"], ["pair", "pair"], ["protocol", "protocol"]]) fill(id, counted(key), "all");
    byId("order").replaceChildren(...COLUMNS.flatMap((column) => {
      const [first, last] = directions(column.key).has(false) ? ["best first", "worst first"] : ["falling", "rising"];
      return [h("option", { value: `-${column.key}` }, `${column.label}, ${first}`), h("option", { value: column.key }, `${column.label}, ${last}`)];
    }));
  }
  function showFilters() {
    if (byId("q").value !== state.q) byId("q").value = state.q;
    fillLeaves();
    if (!options.leaf.has(state.leaf)) state.leaf = "";
    for (const id of ["chapter", "leaf", "data", "pair", "protocol"]) byId(id).value = state[id];
    if (Number(byId("seeds").value) !== state.seeds || byId("seeds").value === "") byId("seeds").value = state.seeds;
    byId("order").value = state.sort;
    byId("flat").checked = state.flat;
  }

  // ---- choosing and ordering ----
  function chosen() {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    return rows.filter((row) =>
      (state.chapter === "" || row.chapter === state.chapter) &&
      (state.leaf === "" || row.leaf === state.leaf) &&
      (state.data === "" || row.dataset === state.data) &&
      (state.pair === "" || row.pair === state.pair) &&
      (state.protocol === "" || row.protocol === state.protocol) &&
      row.n >= state.seeds &&
      words.every((word) => row.text.includes(word)));
  }
  function ordered(selection) {
    const falling = state.sort.startsWith("-");
    const key = state.sort.replace(/^-/, "");
    return selection.slice().sort((a, b) => {
      const [x, y] = [a, b].map((row) => (key === "method" ? row.label : BY_MERIT.has(key) ? merit(row, key) : row[key] ?? null));
      if (x === y) return a.index - b.index;
      if (x === null) return 1; // what is not there comes last, either way
      if (y === null) return -1;
      return (x < y ? -1 : 1) * (falling ? -1 : 1);
    });
  }

  // ---- the table ----
  const BATCH = 40;
  let units = []; // a table's heading, its rows, its trust line
  let drawn = 0;
  let selection = [];
  const body = () => byId("table").tBodies[byId("table").tBodies.length - 1];
  // further measures only where all that is shown has them
  const visible = () => COLUMNS.filter((column) => (state.flat || column.kind !== "flat") &&
    (column.kind !== "other" || (selection.length > 0 && selection.every((row) => tables[row.table].others.includes(column.label)))));

  function arrange() {
    const sorted = ordered(selection);
    if (state.flat) {
      units = sorted.map((row) => ({ row }));
      return;
    }
    const groups = new Map();
    for (const row of sorted) {
      if (!groups.has(row.table)) groups.set(row.table, []);
      groups.get(row.table).push({ row });
    }
    units = [...groups.keys()].sort((a, b) => a - b)
      .flatMap((table) => [{ head: table, count: groups.get(table).length }, ...groups.get(table), ...(tables.length > 1 ? [{ foot: table }] : [])]);
  }
  function heading() {
    const key = state.sort.replace(/^-/, "");
    const falling = state.sort.startsWith("-");
    const cells = visible().map((column) => {
      const active = column.key === key;
      const kinds = [column.key === "method" ? "name text" : TEXT.has(column.key) ? "text" : "", column.key.split(" ")[0]];
      const ways = directions(column.key);
      const down = ways.has(true) ? falling : !falling;
      return h("th", {
        role: "columnheader", scope: "col", class: kinds.join(" ").trim(),
        "aria-sort": active ? (ways.size > 1 ? "other" : down ? "descending" : "ascending") : "none",
      }, h("button", { type: "button", title: column.help, "data-key": column.key, onclick: () => sortBy(column.key) },
        column.label, active && h("span", { class: "arrow", "aria-hidden": "true" }, down ? "↓" : "↑")));
    });
    return h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, cells));
  }
  function groupHead(unit, width) {
    const table = tables[unit.head];
    const teacher = table.teacher ? `teacher ${table.teacher[0]} ${united(table.accuracy, table)} (${table.teacher[1]})` : "no teacher";
    return h("tr", { role: "row", class: "group" },
      h("th", { role: "rowheader", scope: "rowgroup", colspan: width }, h("div", {},
        h("b", {}, name(table.dataset), ", ", name(table.pair), ", ", name(table.protocol)),
        h("span", {}, MEASURE === "Measured" && [name(head(table)), " · "], "student ", name(table.student), " · ", name(teacher), ` · ${plural(unit.count, "row")}`))));
  }
  function groupFoot(unit, width) {
    return h("tr", { role: "row", class: "foot" },
      h("td", { role: "cell", colspan: width }, h("div", {}, name(tables[unit.foot].trust))));
  }
  function line(row, columns) {
    const expanded = open.has(row.id);
    const button = h("button", {
      type: "button", class: "fold", "aria-expanded": String(expanded), "data-row": row.id, onclick: () => toggle(row),
    }, h("span", { class: "chevron", "aria-hidden": "true" }), mark(row.role),
    h("span", {}, h("b", {}, name(row.method)), h("span", { class: "sr" }, `, ${roleNames[row.role]}`),
      row.setting && h("span", { class: "setting", title: row.setting }, name(row.setting))));
    const cells = columns.slice(1).map((column) => h("td", {
      role: "cell", "data-label": column.label,
      class: `${column.key.split(" ")[0]} ${TEXT.has(column.key) ? "text" : ""} ${column.kind === "rest" ? "rest" : ""}`.trim(),
      title: (column.key === "ds" || column.key === "dk") && row[column.key] !== null ? row.shown[`${column.key}Why`] : null,
    }, column.cell(row)));
    return h("tr", { role: "row", class: expanded ? "row open" : "row" },
      h("th", { role: "rowheader", scope: "row", class: "name" }, button), cells);
  }
  function grow(count) {
    const columns = visible();
    const end = Math.min(units.length, drawn + count);
    let target = body();
    for (; drawn < end; drawn += 1) {
      const unit = units[drawn];
      if (unit.head !== undefined) {
        target = byId("table").appendChild(h("tbody", { role: "rowgroup" }));
        target.append(groupHead(unit, columns.length));
      } else if (unit.foot !== undefined) target.append(groupFoot(unit, columns.length));
      else {
        target.append(line(unit.row, columns));
        if (open.has(unit.row.id)) target.append(detail(unit.row));
      }
    }
    byId("grow").parentNode.hidden = drawn >= units.length;
    byId("grow").textContent = `Show more rows (${(units.length - drawn).toLocaleString("en")} lines to go)`;
  }
  function drawTable() {
    arrange();
    const focus = document.activeElement?.dataset;
    const held = focus && (focus.key ? `[data-key="${focus.key}"]` : focus.row ? `[data-row="${focus.row}"]` : null);
    byId("table").replaceChildren(
      h("caption", { class: "sr" }, "Methods by table: what is measured, differences to the controls, and costs. A row's button opens its runs."),
      heading());
    if (state.flat || !units.length) byId("table").append(h("tbody", { role: "rowgroup" }));
    if (!units.length) {
      body().append(h("tr", { role: "row" }, h("td", { role: "cell", class: "text note", colspan: visible().length }, "Nothing matches these filters.")));
    }
    drawn = 0;
    grow(BATCH);
    if (held) byId("table").querySelector(held)?.focus({ preventScroll: true });
  }
  function sortBy(key) {
    const current = state.sort.replace(/^-/, "") === key;
    if (current) state.sort = state.sort.startsWith("-") ? key : `-${key}`;
    else state.sort = UPWARD.has(key) ? key : `-${key}`;
    byId("order").value = state.sort;
    drawTable();
    writeAddress();
  }

  // ---- a row's runs ----
  function toggle(row) {
    const button = byId("table").querySelector(`[data-row="${row.id}"]`);
    const tr = button?.closest("tr");
    if (open.has(row.id)) {
      open.delete(row.id);
      if (tr?.nextElementSibling?.classList.contains("detail")) tr.nextElementSibling.remove();
    } else {
      open.add(row.id);
      tr?.after(detail(row));
    }
    tr?.classList.toggle("open", open.has(row.id));
    button?.setAttribute("aria-expanded", String(open.has(row.id)));
    writeAddress();
  }
  const facts = (pairs) => h("dl", { class: "facts" }, pairs.flatMap(([key, value]) => [h("dt", {}, name(key)), h("dd", {}, typeof value === "string" ? name(value) : value)]));

  function flatten(value, prefix, into) {
    if (value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length) {
      for (const key of Object.keys(value)) flatten(value[key], prefix ? `${prefix}.${key}` : key, into);
    } else into.push([prefix, typeof value === "string" ? value : JSON.stringify(value)]);
    return into;
  }
  function dataTable(caption, heads, lines, texts) {
    const kind = (index) => (texts.includes(index) ? "text" : null);
    return h("table", { class: "data" }, h("caption", { class: "sr" }, caption),
      h("thead", {}, h("tr", {}, heads.map((head, index) => h("th", { scope: "col", class: kind(index) }, head)))),
      h("tbody", {}, lines.map((cells) => h("tr", {}, cells.map((cell, index) =>
        index === 0 ? h("th", { scope: "row", class: kind(index) }, cell) : h("td", { class: kind(index) }, cell))))));
  }
  function detail(row) {
    const table = tables[row.table];
    const optional = (column) => row.records.some((run) => runs[column][run] !== "-");
    const heads = ["Seed", united("Last", table), ...(optional("val") ? [united("Val-selected", table)] : []), `${united("Oracle", table)} (unranked)`, "Train min", SAMPLE === "image" ? "Images/s" : "Samples/s",
      ...(optional("memory") ? ["Peak MB"] : []), "Cell", "Record sha256", "Trained (UTC)"];
    const lines = row.records.map((run) => [
      String(runs.seed[run]),
      runs.reason[run] !== null ? h("span", { class: "bad" }, "diverged") : runs.last[run],
      ...(optional("val") ? [neat(runs.val[run])] : []),
      h("span", { class: "soft" }, neat(runs.oracle[run])),
      runs.minutes[run], runs.ips[run],
      ...(optional("memory") ? [neat(runs.memory[run])] : []),
      h("span", { class: "mono" }, runs.cell[run]), h("span", { class: "mono" }, `${runs.sha[run]}…`), runs.created[run],
    ]);
    const reasons = row.records.filter((run) => runs.reason[run] !== null)
      .map((run) => h("p", { class: "bad" }, `Seed ${runs.seed[run]} diverged: `, name(runs.reason[run])));
    const compared = [["ds", table.versus[0]], ["dk", table.versus[1]]].filter(([key]) => row[key] !== null)
      .map(([key, label]) => [label, `${neat(row.shown[key])}: ${row.shown[`${key}Why`]}`]);
    const gap = row.gap === null ? [] : [["gap recovered", row.gapLow === null ? `${neat(row.shown.gap)} % (no interval)`
      : `${neat(row.shown.gap)} % (${neat(row.shown.gapLow)} to ${neat(row.shown.gapHigh)} %)`]];
    const machines = [...new Set(row.records.map((run) => runs.environment[run]))].map((index) => environments[index]);
    const about = [
      ["leaf", `${leafTitle.get(row.leaf) ?? row.leaf} (${row.leaf}), ${roleNames[row.role]}`],
      ...(row.paper ? [["paper", row.paper]] : []), ["class", row.cls], ["needs", row.needs || "nothing"],
      [table.measure, row.reached === null ? "no finished seed" : row.half === null ? row.shown.reached : `${row.shown.reached} over ${row.n} seeds`],
      ...compared, ...table.others.map((other, index) => [other, neat(row.shown.others[index])]), ...gap,
      ["deployed", `${row.shown.macs} MACs, ${row.params.toLocaleString("en")} parameters`],
      ["training", `${row.images.toLocaleString("en")} ${SAMPLE}s, ${neat(row.shown.sf)} student and ${neat(row.shown.tf)} teacher forwards for each, ${neat(row.shown.extra)} extra parameters`],
    ];
    const config = flatten(Object.fromEntries(row.config.map((index) => configs[index])), "", []);
    const made = machines.map((machine) => ["machine", Object.entries(machine).filter(([, value]) => value !== null).map(([key, value]) => `${key} ${value}`).join(", ")]);
    return h("tr", { role: "row", class: "detail" }, h("td", { role: "cell", colspan: visible().length }, h("div", { class: "sheet" },
      h("div", {},
        h("section", {},
          h("h3", {}, "Seeds"), h("p", { class: "soft" }, "The last epoch is ranked, the best test epoch (oracle) never."),
          h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": `Seeds of ${row.label}` }, dataTable(`Seeds of ${row.label}`, heads, lines, [0])),
          reasons),
        h("section", {}, charts(row)),
        fold("Config", h("dl", { class: "config" }, config.map(([key, value]) => h("div", {}, h("dt", {}, name(key)), h("dd", { class: "mono" }, name(value))))))),
      h("div", {},
        h("section", {}, h("h3", {}, "Row"), facts(about)),
        fold("What its table stands on", facts([...table.facts.map(splitFact), ...made]))))));
  }
  const fold = (title, content) => h("details", { open: wide.matches }, h("summary", {}, h("h3", {}, title)), content);
  const splitFact = (text) => {
    if (text.startsWith("Made on ")) return ["made on", text.slice(8)];
    const at = text.indexOf(": ");
    return at > 0 && at < 12 ? [text.slice(0, at).toLowerCase(), text.slice(at + 2)] : ["", text];
  };

  // ---- curves ----
  const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const DIGITS = Object.fromEntries([...ALPHABET].map((letter, index) => [letter, index]));
  function unpackCurve([, , low, high, packed]) {
    const points = [];
    for (let at = 0; at < packed.length; at += 2) {
      const level = 64 * DIGITS[packed[at]] + DIGITS[packed[at + 1]];
      points.push(level === 4095 ? null : low + ((high - low) * level) / 4094);
    }
    return points;
  }
  const DASHES = ["", "5 3", "1.5 2.5"];
  const seedLine = (index) => ({ class: `line s${index % 5}`, "stroke-dasharray": DASHES[Math.floor(index / 5) % 3] || null });
  function charts(row) {
    const found = new Map();
    row.records.forEach((run, index) => {
      for (const curve of curvesOf(run)) {
        if (!found.has(curve[0])) found.set(curve[0], []);
        found.get(curve[0]).push({ index, run, length: curve[1], points: unpackCurve(curve) });
      }
    });
    if (!found.size) return [h("p", { class: "soft" }, "These records hold no curves.")];
    const accuracyFirst = [...found].sort(([a], [b]) => Number(b.startsWith("test")) - Number(a.startsWith("test")) || (a < b ? -1 : 1));
    return [
      h("h3", {}, "Curves"),
      h("div", { class: "seeds" }, row.records.map((run, index) => h("span", {},
        h("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" }, h("line", { x1: 0, x2: 22, y1: 4, y2: 4, ...seedLine(index) })), `seed ${runs.seed[run]}`))),
      h("div", { class: "charts" }, accuracyFirst.map(([title, lines]) => h("figure", {}, h("figcaption", {}, name(title)), curve(title, lines)))),
    ];
  }
  function curve(title, lines) {
    const values = lines.flatMap(({ points }) => points).filter((value) => value !== null);
    const width = 260, height = 118, left = 40, right = 6, top = 8, bottom = 18;
    const ticks = niceTicks(values.length ? Math.min(...values) : 0, values.length ? Math.max(...values) : 1, 3);
    const [low, high] = [ticks[0], ticks[ticks.length - 1]];
    const y = (value) => top + ((height - top - bottom) * (high - value)) / (high - low);
    const length = Math.max(...lines.map((each) => each.length));
    const ends = lines.map(({ run, points }) => `seed ${runs.seed[run]} from ${brief(points[0])} to ${brief(points[points.length - 1])}`);
    const plot = h("svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, role: "img" },
      h("title", {}, `${title} over ${plural(length, "measurement")}`), h("desc", {}, ends.join("; ")),
      ticks.map((tick) => [
        h("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
        h("text", { x: left - 5, y: y(tick) + 3.5, "text-anchor": "end" }, label(tick)),
      ]).flat(),
      h("text", { x: left, y: height - 4 }, "1"),
      h("text", { x: width - right, y: height - 4, "text-anchor": "end" }, String(length)));
    for (const { index, points } of lines) {
      const x = (at) => left + ((width - left - right) * (points.length > 1 ? at / (points.length - 1) : 0.5));
      let path = "", pen = false;
      points.forEach((value, at) => {
        if (value !== null) path += `${pen ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
        if (value !== null && points.length === 1) path += "h0.1";
        pen = value !== null;
      });
      plot.append(h("path", { d: path, "stroke-linecap": "round", ...seedLine(index) }));
    }
    return plot;
  }
  const brief = (value) => (value === null ? "not finite" : Number(value.toPrecision(4)).toString());

  // ---- plots ----
  function niceTicks(low, high, count) {
    if (!(high > low)) { low -= Math.abs(low) * 0.05 || 1; high += Math.abs(high) * 0.05 || 1; }
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
    const ticks = [];
    for (let at = Math.floor(low / step + 1e-9); at <= Math.ceil(high / step - 1e-9); at += 1) ticks.push(Number((at * step).toPrecision(12)));
    return ticks;
  }
  const label = (value) => (Math.abs(value) >= 10000 ? big(value) : Number(value.toPrecision(6)).toString().replace("-", "−"));
  function scale(values, from, to) {
    const low = Math.min(...bounds(values)), high = Math.max(...bounds(values));
    if (low > 0 && high / low > 15) {
      const ticks = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
        for (const factor of high / low < 500 ? [1, 2, 5] : [1]) ticks.push(Number((factor * 10 ** power).toPrecision(3)));
      }
      const [first, last] = [Math.log(low) - 0.08, Math.log(high) + 0.08];
      const at = (value) => from + ((to - from) * (Math.log(value) - first)) / (last - first);
      return { at, ticks: ticks.filter((tick) => tick >= low * 0.93 && tick <= high * 1.07), log: true };
    }
    const ticks = niceTicks(low, high, 5);
    const [first, last] = [ticks[0], ticks[ticks.length - 1]];
    return { at: (value) => from + ((to - from) * (value - first)) / (last - first), ticks, log: false };
  }
  function bounds(values) {
    let low = Infinity, high = -Infinity;
    for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
    return [low, high];
  }
  // Cheaper or equal, and better: what no other point beats on both.
  function paretoFront(points, key) {
    const front = [];
    for (const row of points.slice().sort((a, b) => a[key] - b[key] || merit(b, "reached") - merit(a, "reached"))) {
      if (!front.length || merit(row, "reached") > merit(front[front.length - 1], "reached")) front.push(row);
    }
    return front;
  }
  const mean = (row) => row.shown.reached.split(" ")[0];
  const where = (row, several) => (several ? `${row.label}, ${row.pair}` : row.label);
  const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

  function scatter(points, key, title, axis, several, room) {
    const width = Math.max(300, Math.round(room)), height = Math.round(Math.min(Math.max(width * 0.62, 270), 400));
    const left = 46, right = 16, top = 14, bottom = 40;
    const front = paretoFront(points, key);
    const measured = tables[points[0].table]; // a plot is of one cohort, and so of one measure
    const teachers = new Set(points.map((row) => row.table));
    const [only] = teachers;
    const teacher = teachers.size === 1 && tables[only].teacher ? tables[only].teacher : null;
    const few = points.length <= 60;
    const heights = points.flatMap((row) => (few && row.half !== null ? [row.reached - row.half, row.reached + row.half] : [row.reached]));
    const x = scale(points.map((row) => row[key]), left + 14, width - right - 14);
    const y = scale(teacher ? [...heights, teacher[2]] : heights, height - bottom - 6, top + 6);
    const plot = h("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img" },
      h("title", {}, `${title}: ${plural(points.length, "point")}`),
      h("desc", {}, `Pareto front, from cheap to dear: ${front.slice(0, 20).map((row) => `${where(row, several)} ${united(mean(row), measured)} at ${neat(row.shown[key])}`).join("; ")}.`));
    for (const tick of y.ticks) {
      plot.append(h("line", { class: "grid", x1: left, x2: width - right, y1: y.at(tick), y2: y.at(tick) }),
        h("text", { x: left - 7, y: y.at(tick) + 4, "text-anchor": "end" }, label(tick)));
    }
    let last = -Infinity;
    for (const tick of x.ticks) {
      plot.append(h("line", { class: "axis", x1: x.at(tick), x2: x.at(tick), y1: height - bottom, y2: height - bottom + 4 }));
      if (x.at(tick) - last < 44) continue;
      last = x.at(tick);
      plot.append(h("text", { x: last, y: height - bottom + 17, "text-anchor": "middle" }, tick >= 1000 ? big(tick) : label(tick)));
    }
    plot.append(h("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
      h("text", { x: width - right, y: height - 6, "text-anchor": "end" }, `${axis}${x.log ? " (log scale)" : ""} →`),
      h("text", { x: 4, y: 9 }, head(measured).replace("Top-1", "top-1")));
    if (teacher) {
      plot.append(h("line", { class: "ref", x1: left, x2: width - right, y1: y.at(teacher[2]), y2: y.at(teacher[2]) }),
        h("text", { class: "halo", x: width - right - 2, y: y.at(teacher[2]) + (y.at(teacher[2]) < top + 16 ? 14 : -5), "text-anchor": "end" }, `teacher ${short(teacher[0], 24)}`));
    }
    const spots = points.map((row) => ({ row, x: x.at(row[key]), y: y.at(row.reached) }));
    if (few) {
      for (const { row, x: cx } of spots) {
        if (row.half !== null) plot.append(h("path", { class: `err m-${row.role}`, d: `M${cx.toFixed(1)} ${y.at(row.reached - row.half).toFixed(1)}V${y.at(row.reached + row.half).toFixed(1)}` }));
      }
    }
    let step = "";
    front.forEach((row, index) => {
      step += index ? `H${x.at(row[key]).toFixed(1)}V${y.at(row.reached).toFixed(1)}` : `M${x.at(row[key]).toFixed(1)} ${y.at(row.reached).toFixed(1)}`;
    });
    if (front.length) plot.append(h("path", { class: "front", d: `${step}H${width - right}` }));
    // one path for each kind: ten thousand points are four elements
    const size = points.length > 1500 ? 1.6 : points.length > 200 ? 2.6 : 4;
    for (const role of Object.keys(shapes)) {
      let path = "";
      for (const spot of spots) if (spot.row.role === role) path += glyph(role, spot.x, spot.y, size);
      if (path) plot.append(h("path", { class: `marks m-${role}`, d: path }));
    }
    plot.spots = spots;
    nameSome(plot, front.slice().reverse(), spots, several, { width, right, top });
    return plot;
  }
  function glyph(role, x, y, r) {
    const [a, b, n] = [x.toFixed(1), y.toFixed(1), (value) => value.toFixed(1)];
    if (role === "control") return `M${n(x - r)} ${n(y - r)}h${n(2 * r)}v${n(2 * r)}h${n(-2 * r)}Z`;
    if (role === "survey") return `M${n(x - r)} ${b}a${n(r)} ${n(r)} 0 1 1 ${n(2 * r)} 0a${n(r)} ${n(r)} 0 1 1 ${n(-2 * r)} 0Z`;
    if (role === "extension") return `M${a} ${n(y - 1.2 * r)}l${n(1.15 * r)} ${n(2 * r)}h${n(-2.3 * r)}Z`;
    return `M${a} ${n(y - 1.35 * r)}l${n(1.35 * r)} ${n(1.35 * r)}l${n(-1.35 * r)} ${n(1.35 * r)}l${n(-1.35 * r)} ${n(-1.35 * r)}Z`;
  }
  // Names of the front, and of all where few: each where it hides neither a point nor another name, or not at all.
  function nameSome(plot, front, spots, several, box) {
    const spotOf = new Map(spots.map((spot) => [spot.row, spot]));
    const rest = spots.length <= 24 ? spots.map((spot) => spot.row).filter((row) => !front.includes(row)) : [];
    const taken = spots.length <= 300 ? spots.map(({ x, y }) => [x - 4, y - 4, x + 4, y + 4]) : [];
    const clashes = (a) => taken.some((b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]);
    for (const row of [...front.slice(0, 14), ...rest]) {
      const spot = spotOf.get(row);
      if (front.includes(row)) plot.append(h("circle", { class: "ring", cx: spot.x.toFixed(1), cy: spot.y.toFixed(1), r: 6.5 }));
      const text = short(where(row, several), 30);
      const wide = 6.3 * text.length;
      const beside = [[9, 4, "start"], [-9, 4, "end"]];
      const above = [[9, -7, "start"], [-9, -7, "end"]]; // the front runs to the right
      const places = front.includes(row) ? [...above, ...beside] : [...beside, ...above];
      for (const [dx, dy, anchor] of [...places, [9, 15, "start"], [-9, 15, "end"]]) {
        const start = anchor === "start" ? spot.x + dx : spot.x + dx - wide;
        const area = [start, spot.y + dy - 10, start + wide, spot.y + dy + 3];
        if (area[0] < 48 || area[2] > box.width - box.right || area[1] < box.top - 8 || clashes(area)) continue;
        taken.push(area);
        plot.append(h("text", { class: "name halo", x: (spot.x + dx).toFixed(1), y: (spot.y + dy).toFixed(1), "text-anchor": anchor }, text));
        break;
      }
    }
  }
  const GAP_ROWS = 40;
  function gaps(points, several, room) {
    const shown = points.slice(0, GAP_ROWS);
    const width = Math.max(320, Math.round(room)), line = 21, top = 26, bottom = 12;
    const left = Math.min(Math.round(width * 0.42), 20 + 7.2 * Math.max(...shown.map((row) => where(row, several).length)));
    const letters = Math.max(8, Math.floor((left - 14) / 7.2));
    const height = top + bottom + line * shown.length;
    const ends = shown.flatMap((row) => [100 * row.gap, ...(row.gapLow === null ? [] : [100 * row.gapLow, 100 * row.gapHigh])]);
    // one wild interval must not flatten all the others
    const x = scale([0, 100, ...ends.map((value) => Math.min(Math.max(value, -150), 250))], left + 8, width - 64);
    const inside = (value) => Math.min(Math.max(x.at(value), left + 8), width - 64);
    const plot = h("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img" },
      h("title", {}, `Gap recovered: ${plural(shown.length, "row")}`),
      h("desc", {}, shown.map((row) => `${where(row, several)} ${neat(row.shown.gap)} %${row.gapLow === null ? "" : ` (${neat(row.shown.gapLow)} to ${neat(row.shown.gapHigh)})`}`).join("; ")));
    const spaced = (x.at(x.ticks[1]) - x.at(x.ticks[0])) < 34 ? 2 : 1;
    x.ticks.forEach((tick, index) => {
      const strong = tick === 0 || tick === 100;
      plot.append(h("line", { class: strong ? "axis" : "grid", x1: x.at(tick), x2: x.at(tick), y1: top - 6, y2: height - bottom }));
      if (index % spaced === 0 || strong) plot.append(h("text", { x: x.at(tick), y: top - 11, "text-anchor": "middle" }, label(tick)));
    });
    shown.forEach((row, index) => {
      const y = top + line * (index + 0.5);
      const text = where(row, several);
      plot.append(h("text", { class: "name", x: left - 6, y: y + 4, "text-anchor": "end" }, short(text, letters), h("title", {}, text)));
      if (row.gapLow !== null) plot.append(h("path", { class: `gapline m-${row.role}`, d: `M${inside(100 * row.gapLow).toFixed(1)} ${y}H${inside(100 * row.gapHigh).toFixed(1)}` }));
      plot.append(h("path", { class: `m-${row.role}`, d: glyph(row.role, inside(100 * row.gap), y, 4.2) }),
        h("text", { x: width - 4, y: y + 4, "text-anchor": "end" }, neat(row.shown.gap)));
    });
    return plot;
  }
  const unfolded = new Set(); // tables beside plots stay open when plots are drawn anew
  function equivalent(caption, heads, lines) {
    const details = h("details", { class: "equivalent", open: unfolded.has(caption) }, h("summary", {}, "The same as a table"));
    details.addEventListener("toggle", () => {
      if (details.open) unfolded.add(caption);
      else unfolded.delete(caption);
      if (!details.open || details.childElementCount > 1) return;
      const all = lines();
      const shown = all.slice(0, 200);
      details.append(
        h("div", { tabindex: "0", role: "region", "aria-label": caption }, dataTable(caption, heads, shown, [0, 1])),
        h("p", { class: "soft" }, all.length > shown.length ? `The first ${shown.length} of ${all.length.toLocaleString("en")}; the view Results has all.` : ""));
    });
    return details;
  }
  const opener = (row) => h("button", { type: "button", class: "link", onclick: () => reveal(row) }, name(row.label));
  function reveal(row) {
    open.add(row.id);
    state.view = "results";
    draw();
    writeAddress();
    while (!byId("table").querySelector(`[data-row="${row.id}"]`) && drawn < units.length) grow(500);
    const button = byId("table").querySelector(`[data-row="${row.id}"]`);
    button?.scrollIntoView({ block: "center" });
    button?.focus({ preventScroll: true });
  }
  function hover(figure, plot, points, key, several, axis) {
    const tip = h("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    figure.append(tip);
    let near = null;
    const screen = () => {
      const box = plot.viewBox.baseVal;
      const area = plot.getBoundingClientRect();
      return { area, factor: area.width / box.width };
    };
    const find = (event) => {
      const { area, factor } = screen();
      const [mx, my] = [(event.clientX - area.left) / factor, (event.clientY - area.top) / factor];
      let best = 18 ** 2;
      near = null;
      for (const spot of plot.spots) {
        const distance = (spot.x - mx) ** 2 + (spot.y - my) ** 2;
        if (distance < best) { best = distance; near = spot; }
      }
      tip.hidden = !near;
      plot.style.cursor = near ? "pointer" : "";
      if (!near) return;
      tip.replaceChildren(h("b", {}, name(where(near.row, several))),
        `${near.row.shown.reached}, ${axis} ${neat(near.row.shown[key])}`);
      const frame = figure.getBoundingClientRect();
      const px = area.left - frame.left + near.x * factor;
      tip.style.top = `${area.top - frame.top + near.y * factor + 12}px`;
      tip.style.left = `${Math.max(0, Math.min(px + 10, frame.width - tip.offsetWidth))}px`;
    };
    plot.addEventListener("pointermove", find);
    plot.addEventListener("pointerleave", () => { tip.hidden = true; near = null; });
    plot.addEventListener("click", (event) => { find(event); if (near) reveal(near.row); });
  }
  function drawPlots() {
    const panel = byId("panel-plots");
    const counts = new Map();
    for (const row of selection) {
      const cohort = tables[row.table].cohort;
      counts.set(cohort, (counts.get(cohort) || 0) + 1);
    }
    const title = new Map();
    for (const cohort of counts.keys()) {
      const table = tables.find((each) => each.cohort === cohort);
      const text = `${table.dataset}, ${table.protocol}`;
      const same = [...title.values()].filter((each) => each.text === text).length;
      title.set(cohort, { text, shown: same ? `${text} [${same + 1}]` : text });
    }
    if (!counts.size) {
      panel.replaceChildren(h("p", { class: "note" }, "Nothing matches these filters."));
      return;
    }
    const most = [...counts].reduce((best, each) => (each[1] > best[1] ? each : best))[0];
    const cohort = counts.has(state.scope) ? state.scope : most;
    const inside = selection.filter((row) => tables[row.table].cohort === cohort);
    // a run without a teacher stands in several tables, but is one point
    const seen = new Set();
    const points = inside.filter((row) => {
      const key = row.records.join();
      if (row.reached === null || seen.has(key)) return false;
      return seen.add(key);
    });
    const several = new Set(inside.map((row) => row.pair)).size > 1;
    const scope = h("select", { id: "scope" }, [...title].map(([value, { shown }]) => h("option", { value, selected: value === cohort }, `${shown} (${plural(counts.get(value), "row")})`)));
    scope.addEventListener("change", () => { state.scope = scope.value; draw(); writeAddress(); byId("scope").focus(); });
    const cost = h("select", { id: "cost" }, Object.entries(COSTS).map(([value, text]) => h("option", { value, selected: value === state.cost }, text)));
    cost.addEventListener("change", () => { state.cost = cost.value; draw(); writeAddress(); byId("cost").focus(); });
    const roles = Object.keys(shapes).filter((role) => inside.some((row) => row.role === role));
    const devices = new Set(points.flatMap((row) => row.records.map((run) => environments[runs.environment[run]].device)));
    const recovered = inside.filter((row) => row.gap !== null).sort((a, b) => b.gap - a.gap || a.index - b.index);
    const grid = h("div", { class: "plots" });
    panel.replaceChildren(
      h("div", { class: "plot-controls" }, h("label", {}, h("span", {}, "Data set and protocol: only these numbers are comparable"), scope), h("label", {}, h("span", {}, "Training cost in"), cost)),
      h("ul", { class: "legend" }, roles.map((role) => h("li", {}, mark(role), roleNames[role])), h("li", {}, "○ and dashes: Pareto front")),
      grid);
    const measured = (key, heading, axis, note) => {
      const usable = points.filter((row) => row[key] !== null);
      const figure = h("figure", { id: `plot-${key === "macs" ? "macs" : "cost"}` }, h("h2", {}, heading), h("p", { class: "sub" }, note));
      grid.append(figure);
      if (!usable.length) {
        figure.append(h("p", { class: "soft" }, "None of these rows has that number."));
        return;
      }
      const plot = scatter(usable, key, heading, axis, several, figure.clientWidth);
      figure.append(plot, equivalent(heading, ["Method", "Pair", head(measuredBy), "±", axis, "Pareto front"], () => {
        const front = new Set(paretoFront(usable, key));
        return usable.slice().sort((a, b) => merit(b, "reached") - merit(a, "reached")).map((row) => [opener(row), name(row.pair), mean(row), row.half === null ? NONE : row.shown.reached.split(" ").pop(), neat(row.shown[key]), front.has(row) ? "yes" : ""]);
      }));
      hover(figure, plot, usable, key, several, axis);
    };
    const measuredBy = tables.find((table) => table.cohort === cohort);
    const what = measuredBy.measure === "top-1" ? "Accuracy" : measuredBy.measure;
    const networks = new Set(points.map((row) => row.macs));
    measured("macs", `${what} against deployed MACs`, `MACs for one ${SAMPLE}`, networks.size > 1 ? "What the student costs once it is trained." : "What the student costs once it is trained: all of these deploy networks of one size.");
    measured(state.cost, `${what} against training cost`, COSTS[state.cost],
      state.cost === "minutes" ? (devices.size > 1 ? `Measured on ${devices.size} kinds of device: minutes are not comparable between them.` : "Wall time without set-up and evaluation, median over seeds: a measure of the method only where the machine did nothing else. Rows whose seeds differ by more than 2x have none.") : "Counted, so the same on every device.");
    const figure = h("figure", { class: "full", id: "plot-gap" }, h("h2", {}, "Gap recovered"),
      h("p", { class: "sub" }, "0 is the student from scratch, 100 its teacher. Lines: 95 % interval of the paired difference to scratch; none where one seed tells no spread.",
        recovered.length > GAP_ROWS ? ` The best ${GAP_ROWS} of ${recovered.length.toLocaleString("en")} rows: filter to see others.` : ""));
    grid.append(figure);
    if (!recovered.length) figure.append(h("p", { class: "soft" }, "Needs finished runs from scratch and a teacher that is better than them."));
    else {
      figure.append(gaps(recovered, several, figure.clientWidth),
        equivalent("Gap recovered", ["Method", "Pair", "Gap %", "from", "to", "n"], () => recovered.map((row) => [opener(row), name(row.pair), ...["gap", "gapLow", "gapHigh"].map((key) => neat(row.shown[key])), String(row.n)])));
    }
  }

  // ---- taxonomy ----
  function drawTaxonomy() {
    const panel = byId("panel-taxonomy");
    if (panel.childElementCount) return; // the same whatever is filtered
    const count = new Map(), perMethod = new Map();
    for (const row of rows) {
      count.set(row.leaf, (count.get(row.leaf) || 0) + 1);
      const key = JSON.stringify([row.leaf, row.method]);
      if (!perMethod.has(key)) perMethod.set(key, new Set());
      row.records.forEach((run) => perMethod.get(key).add(run));
    }
    const status = (leaf) => (count.has(leaf.id) ? "measured" : leaf.methods.length ? "listed" : "open");
    const words = { measured: "measured", listed: "with methods but no records", open: "open" };
    const all = chapters.flatMap((chapter) => chapter.leaves);
    const tally = (kind, leaves) => leaves.filter((leaf) => status(leaf) === kind).length;
    const summary = (leaves) => ["measured", "listed", "open"].map((kind) => [tally(kind, leaves), words[kind]]).filter(([number]) => number)
      .map(([number, word]) => `${number} ${word}`).join(", ");
    panel.append(h("div", { class: "glance" }, h("p", {}, `${plural(all.length, "leaf").replace("leafs", "leaves")}: ${summary(all)}.`),
      ["measured", "listed", "open"].map((kind) => h("span", { class: "key" }, h("span", { class: `cell ${kind}`, "aria-hidden": "true" }), words[kind]))));
    panel.append(h("ul", { class: "overview" }, chapters.map((chapter) => h("li", {},
      h("span", { class: "cells", "aria-hidden": "true" }, chapter.leaves.map((leaf) => h("span", { class: `cell ${status(leaf)}`, title: leaf.title }))),
      h("span", {}, name(chapter.title), h("span", { class: "sr" }, `: ${summary(chapter.leaves)}`))))));
    for (const chapter of chapters) {
      panel.append(h("section", { class: "chapter" },
        h("div", { class: "title" }, h("h2", {}, name(chapter.title)), h("span", { class: "soft" }, summary(chapter.leaves))),
        h("ul", { class: "leaves" }, chapter.leaves.map((leaf) => leafCard(leaf, status(leaf), words, count, perMethod)))));
    }
  }
  function leafCard(leaf, kind, words, count, perMethod) {
    const names = new Set(leaf.methods.map(([method]) => method));
    const strays = [...perMethod.keys()].map((key) => JSON.parse(key)).filter(([id, method]) => id === leaf.id && !names.has(method)).map(([, method]) => [method, method, ""]);
    const chips = [...leaf.methods, ...strays].map(([method, title, role]) => {
      const runs = perMethod.get(JSON.stringify([leaf.id, method]))?.size || 0;
      return h("li", { class: runs ? "has" : null, title: `${title}${role ? ` (${role})` : ""}: ${plural(runs, "record")}` },
        name(method), h("span", { class: "n" }, h("span", { class: "sr" }, plural(runs, "record")), h("span", { "aria-hidden": "true" }, runs ? String(runs) : "0")));
    });
    return h("li", { class: `leaf ${kind}` },
      h("h3", {}, h("span", { class: `cell ${kind}`, "aria-hidden": "true" }), h("span", {}, name(leaf.title), h("span", { class: "sr" }, ` (${words[kind]})`))),
      leaf.question && h("p", {}, leaf.question),
      chips.length > 0 && h("ul", { class: "chips", "aria-label": "Methods" }, chips),
      kind === "open" && h("p", {}, h("b", {}, "Open"), leaf.open ? `: ${leaf.open}.`.replace(/\.\.$/, ".") : "."),
      kind === "measured" && h("div", {}, h("button", { type: "button", class: "link", onclick: () => showLeaf(leaf.id) },
        `Show ${plural(count.get(leaf.id), "row")}`, h("span", { class: "sr" }, ` of ${leaf.title}`))));
  }
  function showLeaf(id) {
    state = { ...DEFAULTS, leaf: id };
    draw();
    writeAddress();
    byId("tab-results").focus();
  }

  // ---- drawing ----
  function draw() {
    showFilters();
    selection = chosen();
    const found = new Set(selection.map((row) => row.table));
    byId("status").textContent = selection.length === rows.length
      ? `${plural(rows.length, "row")} in ${plural(tables.length, "table")}`
      : `${selection.length.toLocaleString("en")} of ${plural(rows.length, "row")} in ${plural(found.size, "table")}`;
    for (const view of VIEWS) {
      const active = state.view === view;
      byId(`panel-${view}`).hidden = !active;
      byId(`tab-${view}`).setAttribute("aria-selected", String(active));
      byId(`tab-${view}`).tabIndex = active ? 0 : -1;
    }
    byId("filters").hidden = byId("status").hidden = state.view === "taxonomy";
    if (state.view === "results") drawTable();
    else if (state.view === "plots") drawPlots();
    else drawTaxonomy();
  }
  function change(part) {
    Object.assign(state, part);
    draw();
    writeAddress();
  }
  byId("q").addEventListener("input", () => change({ q: byId("q").value }));
  byId("chapter").addEventListener("change", () => change({ chapter: byId("chapter").value, leaf: "" }));
  for (const id of ["leaf", "data", "pair", "protocol"]) byId(id).addEventListener("change", () => change({ [id]: byId(id).value }));
  byId("seeds").addEventListener("input", () => change({ seeds: Math.min(Math.max(Math.floor(Number(byId("seeds").value)) || 0, 0), 999) }));
  byId("order").addEventListener("change", () => change({ sort: byId("order").value }));
  byId("flat").addEventListener("change", () => change({ flat: byId("flat").checked }));
  byId("reset").addEventListener("click", () => {
    open.clear();
    change(Object.fromEntries([...FILTERS, "sort", "flat"].map((key) => [key, DEFAULTS[key]])));
  });
  for (const view of VIEWS) {
    byId(`tab-${view}`).addEventListener("click", () => change({ view }));
    byId(`tab-${view}`).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const next = event.key === "Home" ? 0 : event.key === "End" ? VIEWS.length - 1 : step ? (VIEWS.indexOf(view) + step + VIEWS.length) % VIEWS.length : null;
      if (next === null) return;
      event.preventDefault();
      change({ view: VIEWS[next] });
      byId(`tab-${VIEWS[next]}`).focus();
    });
  }
  byId("grow").addEventListener("click", () => grow(BATCH));
  new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting) && drawn < units.length) grow(BATCH);
  }, { rootMargin: "300px" }).observe(byId("grow").parentNode);
  const unfold = () => { byId("more").open = wide.matches; };
  wide.addEventListener("change", unfold);
  unfold();
  let lastWidth = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== lastWidth && state.view === "plots") drawPlots();
    lastWidth = innerWidth;
  });
  addEventListener("hashchange", () => { readAddress(); draw(); });
  byId("columns").replaceChildren(...COLUMNS.flatMap((column) => [h("dt", {}, column.label), h("dd", {}, column.help)]));
  byId("summary").textContent = [plural(runs.cell.length, "record"), plural(new Set(rows.map((row) => row.method)).size, "method"), plural(tables.length, "table")].join(" · ");
  fillFilters();
  readAddress();
  draw();
  performance.mark("kdbench-ready");
})();
