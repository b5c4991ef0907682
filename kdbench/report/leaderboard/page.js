// ---- the page ----
function Tabs() {
  const names = Object.keys(VIEWS);
  const move = (event, at) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const ends = { Home: 0, End: names.length - 1 };
    const next = step ? (at + step + names.length) % names.length : ends[event.key];
    if (next === undefined) return;
    event.preventDefault();
    change({ view: names[next] });
    byId(`tab-${names[next]}`).focus();
  };
  return names.map((view, at) => html`<button type="button" role="tab" id=${`tab-${view}`}
    aria-controls=${`panel-${view}`} aria-selected=${String(view === state.view)}
    tabindex=${view === state.view ? 0 : -1} onclick=${() => change({ view })}
      onkeydown=${(event) => move(event, at)}>${VIEWS[view]}</button>`);
}
function Filters({ shown }) {
  const [unfolded, setUnfolded] = useState(false);
  const counts = (key) => [["", "all"],
    ...d3.sort(COUNTS[key], ([value]) => value).map(([value, count]) => [value, `${value} (${count})`])];
  const inTree = (key, some) => [["", "all"], ...some.filter(([value]) => COUNTS[key].has(value))
    .map(([value, title]) => [value, `${title} (${COUNTS[key].get(value)})`])];
  const within = leaves.filter(({ chapter }) => !state.chapter || chapter === state.chapter);
  const pick = (key) => (value) => change({ [key]: value });
  const orders = COLUMNS.flatMap(({ key, label }) => {
    const [first, last] = directions(key).has(false) ? ["best first", "worst first"] : ["falling", "rising"];
    return [[`-${key}`, `${label}, ${first}`], [key, `${label}, ${last}`]];
  });
  const reset = () => {
    open.clear();
    change(Object.fromEntries([...FILTERS, "sort", "mix", "columns"].map((key) => [key, DEFAULTS[key]])));
  };
  return html`<div role="search" id="filters" class=${unfolded ? "unfolded" : ""} aria-label="Search and filters">
    <label class="find"><span>Search</span><input type="search" id="q" autocomplete="off" spellcheck=${false}
      placeholder="method, paper, teacher, cell id …  ( / )" value=${state.q}
        oninput=${(event) => change({ q: event.currentTarget.value })} /></label>
    <button type="button" id="more" class="quiet" aria-expanded=${String(unfolded)} aria-controls="controls"
      onclick=${() => setUnfolded(!unfolded)}>Filters</button>
    <div class="controls" id="controls">
      <${Select} id="chapter" label="Chapter" value=${state.chapter}
        options=${inTree("chapter", chapters.map(({ title }) => [title, title]))} onpick=${pick("chapter")} />
      <${Select} id="leaf" label="Leaf" value=${state.leaf}
        options=${inTree("leaf", within.map(({ id, title }) => [id, title]))} onpick=${pick("leaf")} />
      <${Select} id="data" label="Data set" value=${state.data} options=${counts("data")} onpick=${pick("data")} />
      <${Select} id="pair" label="Pair" value=${state.pair} options=${counts("pair")} onpick=${pick("pair")} />
      <${Select} id="protocol" label="Protocol" value=${state.protocol} options=${counts("protocol")}
        onpick=${pick("protocol")} />
      <label class="short"><span>Seeds ≥</span><input type="number" id="seeds" min="0" max="999" step="1"
        inputmode="numeric" value=${state.seeds}
        oninput=${(event) => change({ seeds: seedCount(event.currentTarget.value) })} /></label>
      ${state.view === "results" && html`
        <${Select} id="columns" label="Columns" value=${state.columns}
          options=${[["results", "results and costs"], ["survey", "the survey's"]]} onpick=${pick("columns")} />
        <div class="narrow"><${Select} id="order" label="Order by" value=${state.sort} options=${orders}
          onpick=${pick("sort")} /></div>
        <label class="check" title="One list, ordered across tables whose numbers are not comparable"><input
          type="checkbox" id="mix" checked=${state.mix}
            onchange=${(event) => change({ mix: event.currentTarget.checked })} /><span>Mix tables</span></label>`}
      <button type="button" id="reset" class="quiet"
        onclick=${reset}>Reset</button>
      ${state.view === "results" && html`<${Export} shown=${shown} />`}
    </div></div>`;
}
const PANELS = {
  results: Results, plots: Plots, pairs: Pairs, compare: Compare, published: Published, taxonomy: Taxonomy,
};
const FILTERED = new Set(["results", "plots", "pairs"]);
function View() {
  const { matching, shown } = choose();
  const kept = shown.length - matching.size;
  const found = plural(new Set(shown.map((row) => row.table)).size, "table");
  return html`${FILTERED.has(state.view) && html`<${Filters} shown=${shown} />
    <p id="status" role="status" aria-live="polite">${matching.size === rows.length
      ? `${plural(rows.length, "row")} in ${found}`
      : `${matching.size.toLocaleString("en")} of ${plural(rows.length, "row")} in ${found}${kept
      ? `, beside ${plural(kept, "row")} of controls` : ""}`}</p>`}
    <section id=${`panel-${state.view}`} key=${state.view} role="tabpanel" class="panel"
      aria-labelledby=${`tab-${state.view}`}><${PANELS[state.view]} matching=${matching} shown=${shown} /></section>`;
}
function paint() {
  render(html`<${Tabs} />`, byId("tabs"));
  render(html`<${View} />`, byId("view"));
}

let lastWidth = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== lastWidth && state.view !== "results") paint();
  lastWidth = innerWidth;
});
for (const name of ["hashchange", "popstate"]) addEventListener(name, () => { readAddress(); paint(); });
addEventListener("keydown", (event) => {
  const writing = event.target.closest?.("input, select, textarea, dialog");
  if (event.key !== "/" || event.ctrlKey || event.metaKey || writing || !byId("q")) return;
  event.preventDefault();
  byId("q").focus();
});
render(COLUMNS.filter(({ key }) => !key.startsWith("survey ")).map(({ label, help }) => html`<dt>${label}</dt>
  <dd>${help}</dd>`), byId("columns-help"));
byId("summary").textContent = [plural(runs.cell.length, "record"),
  plural(new Set(rows.map((row) => row.method)).size, "method"), plural(tables.length, "table")].join(" · ");
readAddress();
paint();
performance.mark("kdbench-ready");
