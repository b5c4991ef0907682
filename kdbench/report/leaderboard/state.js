// ---- theme ----
const byId = (id) => document.getElementById(id);
const THEMES = { system: "◐", light: "☀", dark: "☾" };
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
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").textContent = THEMES[theme];
  for (const name of ["title", "aria-label"]) byId("theme").setAttribute(name, `Theme: ${theme}`);
}
dress(Object.hasOwn(THEMES, kept() ?? "") ? kept() : "system");
byId("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(document.documentElement.dataset.theme || "system") + 1) % names.length];
  kept(next);
  dress(next);
});
byId("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address holds the state
  byId("main").focus();
});
byId("legend-open").addEventListener("click", () => byId("legend").showModal());
performance.mark("kdbench-start");
if (!byId("view")) {
  performance.mark("kdbench-ready");
  return;
}

// ---- data ----
const payload = JSON.parse(byId("payload").textContent);
const { tables, chapters, configs, environments, docs, works, surveys, across, claims } = payload;
const runs = payload.records;
function unpack(columns) {
  const keys = Object.keys(columns);
  const row = (_, index) => Object.fromEntries([["index", index], ...keys.map((key) => [key, columns[key][index]])]);
  return columns[keys[0]].map(row);
}
const rows = unpack(payload.rows);
const texts = unpack(payload.shown);
const rowById = new Map(rows.map((row) => [row.id, row]));
const later = (id) => { // parsed when it is asked for
  let data = null;
  return (index) => (data ??= JSON.parse(byId(id).textContent))[index];
};
const curvesOf = later("payload-curves"), facingOf = later("payload-facing");

const leaves = chapters.flatMap((chapter) => chapter.leaves.map((leaf) => ({ ...leaf, chapter: chapter.title })));
const leafById = new Map(leaves.map((leaf) => [leaf.id, leaf]));
const united = (value, table) => (table.unit ? `${value} ${table.unit}` : value);
const head = (table) => [
  table.measure === "top-1" ? "Top-1" : table.measure, table.unit, table.higher ? "" : "(lower is better)",
].filter(Boolean).join(" ");
const merit = (row, key) => (row[key] === null || tables[row.table].higher ? row[key] : -row[key]); // higher is better
const SAMPLE = tables.every((table) => table.examples === "images") ? "image" : "sample";
tables.forEach((table, index) => {
  table.index = index;
  table.rows = rows.filter((row) => row.table === index);
  const ends = table.rows.filter((row) => row.reached !== null)
    .flatMap((row) => [row.reached - (row.half || 0), row.reached + (row.half || 0)]);
  table.range = d3.extent(table.teacher ? [...ends, table.teacher[2]] : ends);
  for (const row of table.rows) {
    Object.assign(row, {
      shown: texts[row.index],
      dataset: table.dataset, pair: table.pair, protocol: table.protocol, measure: head(table),
      teacher: table.teacher ? `${table.teacher[0]} ${table.teacher[1]}` : "none",
      label: row.setting ? `${row.method} (${row.setting})` : row.method,
      chapter: leafById.get(row.leaf)?.chapter,
      docs: docs[row.cls] ?? { work: works[row.paper] ?? null, idea: [], equations: [] },
      published: row.claims.length ? Number(claims.rows[row.claims[0]][claims.number]) : null,
    });
    row.work = row.docs.work ? `${row.docs.work.authors} ${row.docs.work.year}` : row.paper;
    table.others.forEach((other, at) => { row[`other ${other}`] = row.others[at]; });
    for (const [key, text] of Object.entries(surveys[row.survey])) row[`survey ${key}`] = text;
  }
});
// what a search looks through
const textOf = (row) => (row.text ??= [
  row.label, row.leaf, leafById.get(row.leaf)?.title, row.role, row.paper, row.docs.work?.title, row.work, row.cls,
    row.id,
  row.dataset, row.pair, row.protocol, row.teacher, row.measure, ...Object.values(surveys[row.survey]),
    ...row.records.map((run) => runs.cell[run]),
].join("\n").toLowerCase());

// ---- columns and orders ----
const COLUMNS = payload.columns.map((column) => ({ ...column, text: column.in.includes("text") }));
const BY_MERIT = new Set(["reached", "ds", "dk"]);
const RISING = new Set(["rank", "macs", "params", "extra", "minutes", "images", "sf", "tf",
  ...COLUMNS.filter((column) => column.text).map((column) => column.key)]);
// of numbers; where lower is better the best come first as they rise
const directions = (key) => (BY_MERIT.has(key) ? new Set(tables.map((table) => table.higher)) : new Set([true]));
const sortValue = (row, key) => (key === "method" ? row.label : BY_MERIT.has(key) ? merit(row, key) : row[key] ?? null);
function ordered(some) {
  const falling = state.sort.startsWith("-");
  const key = state.sort.replace(/^-/, "");
  return some.slice().sort((a, b) => {
    const [x, y] = [sortValue(a, key), sortValue(b, key)];
    if (x === y) return a.index - b.index;
    if (x === null) return 1; // what is not there comes last, either way
    if (y === null) return -1;
    return (x < y ? -1 : 1) * (falling ? -1 : 1);
  });
}
// in one list, or table by table
const grouped = (some) => (state.mix ? [[null, ordered(some)]]
  : d3.groups(ordered(some), (row) => row.table).sort(([a], [b]) => a - b));

// ---- state, kept in the address ----
const VIEWS = { results: "Results", plots: "Plots", pairs: "Pairs", compare: "Compare", published: "Published",
  taxonomy: "Taxonomy" };
const COSTS = {
  fwd: `student and teacher forwards per ${SAMPLE}`, images: `training ${SAMPLE}s`,
    sf: `student forwards per ${SAMPLE}`,
  tf: `teacher forwards per ${SAMPLE}`, macs: `MACs of the deployed student for one ${SAMPLE}`,
    minutes: "training minutes",
};
const DEFAULTS = { view: "results", q: "", chapter: "", leaf: "", data: "", pair: "", protocol: "", seeds: 0,
  sort: "-reached", columns: "results", mix: false, scope: "", cost: "fwd", a: "", b: "", cell: "reached" };
const FILTERS = ["q", "chapter", "leaf", "data", "pair", "protocol", "seeds"];
const BATCH = 40;
const counted = (key) => d3.rollup(rows, (some) => some.length, (row) => row[key]);
const COUNTS = { chapter: counted("chapter"), leaf: counted("leaf"), data: counted("dataset"), pair: counted("pair"),
  protocol: counted("protocol") };
const SCOPES = new Map([
  ...d3.groups(tables, (table) => table.cohort).filter(([, group]) => group.length > 1)
    .map(([cohort, group]) => [cohort,
      { title: `${group[0].dataset}, ${group[0].protocol}: all pairs`, tables: group }]),
  ...tables.map((table) => [`table${table.index}`, { title: table.title, tables: [table] }]),
]);
const ALLOWED = {
  view: new Set(Object.keys(VIEWS)), columns: new Set(["results", "survey"]), cost: new Set(Object.keys(COSTS)),
    scope: SCOPES, a: rowById, b: rowById,
  cell: new Set(["reached", "ds", "dk", "gap"]), sort: new Set(COLUMNS.flatMap(({ key }) => [key, `-${key}`])),
    ...COUNTS,
};
let state = { ...DEFAULTS };
let open = new Set();
let limit = BATCH; // lines drawn

const seedCount = (text) => Math.min(Math.max(Math.floor(Number(text)) || 0, 0), 999);
function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  state = { ...DEFAULTS };
  for (const key of Object.keys(DEFAULTS)) {
    const text = given.get(key);
    if (text === null || (ALLOWED[key] && !ALLOWED[key].has(text))) continue;
    if (key === "seeds") state.seeds = seedCount(text);
    else state[key] = key === "mix" ? text === "1" : text;
  }
  open = new Set((given.get("open") ?? "").split(",").filter((id) => rowById.has(id)));
}
// A change of the view is a step that the browser's Back undoes; any other changes the step in course.
function writeAddress(step) {
  const given = new URLSearchParams();
  for (const [key, value] of Object.entries(state)) if (value !== DEFAULTS[key]) given.set(key, value === true ? "1"
    : value);
  if (open.size) given.set("open", [...open].join(","));
  const text = given.toString();
  try {
    history[step ? "pushState" : "replaceState"](null, "", text ? `#${text}` : location.pathname + location.search);
  } catch {
    // browsers limit how often the address may change
  }
}
function change(part) {
  const step = part.view !== undefined && part.view !== state.view;
  Object.assign(state, part);
  if (part.chapter !== undefined && part.leaf === undefined) state.leaf = "";
  limit = BATCH;
  paint();
  writeAddress(step);
}

// The rows that match, and the controls of their tables, which stay whatever is asked for.
function choose() {
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (row) =>
    (state.chapter === "" || row.chapter === state.chapter) &&
    (state.leaf === "" || row.leaf === state.leaf) &&
    (state.data === "" || row.dataset === state.data) &&
    (state.pair === "" || row.pair === state.pair) &&
    (state.protocol === "" || row.protocol === state.protocol) &&
    row.n >= state.seeds &&
    words.every((word) => textOf(row).includes(word));
  const matching = new Set(rows.filter(fits));
  const there = new Set([...matching].map((row) => row.table));
  return { matching, shown: rows.filter((row) => matching.has(row)
    || (row.role === "control" && there.has(row.table))) };
}
