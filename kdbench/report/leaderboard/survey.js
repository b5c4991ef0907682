// ---- methods × pairs, and over all pairs ----
function Pairs({ shown }) {
  const cells = { reached: "What is measured", dk: "Δ KD", ds: "Δ scratch", gap: "Gap %" };
  const main = shown.filter((row) => row.main);
  if (!main.length) return html`<p class="note">Nothing matches these filters.</p>`;
  const cell = (row) => (!row ? NONE : state.cell === "gap" ? neat(row.shown.gap) : state.cell === "reached"
    ? html`<${Estimate} text=${row.shown.reached} />` : html`<${Difference} row=${row} of=${state.cell} />`);
  const cohorts = d3.groups(main, (row) => tables[row.table].cohort);
  return html`<div class="controls-row"><${Select} id="cell" label="In each cell" value=${state.cell}
    options=${Object.entries(cells)} onpick=${(value) => change({ cell: value })} /></div>
    <p class="soft">One row a method, one column a pair. Where a method has several settings, the row is that of the reference of a control, else the shipped default, else of most seeds; never the best.</p>
    ${cohorts.map(([cohort, some]) => {
      const places = d3.sort(new Set(some.map((row) => row.table)));
      const sums = across[cohort];
      const methods = d3.groups(some, (row) => row.method);
      const caption = `${some[0].dataset}, ${some[0].protocol}`;
      return html`<section class="matrix"><h2><${Name}>${caption}<//></h2><${Grid}
        caption=${`Methods by pair: ${caption}`}
        heads=${["Method", ...places.map((index) => html`<${Name}>${tables[index].pair}<//>${tables[index].teacher
          && html`<br /><small>teacher ${neat(tables[index].accuracy)}</small>`}`)]}
        lines=${methods.map(([, group]) => [html`<${Mark} role=${group[0].role} /> <${Opener} row=${group[0]} />`,
          ...places.map((index) => cell(group.find((row) => row.table === index)))])} />
        ${sums && html`<h3><${Name}>${sums.title}<//></h3>
          <${Grid} caption=${sums.title} heads=${sums.columns} lines=${sums.rows.map((line) => line.map(neat))} />
          ${sums.notes.map((note) => html`<p class="soft">${note}</p>`)}`}</section>`;
    })}`;
}

// ---- paper vs ours ----
const claimCell = (cell) => html`<${Name}>${cell}<//>`;
function Claims({ of }) {
  return html`<${Grid} caption="Published numbers and ours" words=${[0, 1, 3]}
    heads=${["Method", "Claim", "Source", "Ours", "Difference", "Status"]}
    lines=${of.map((at) => ["Method", "Claim", "Source", "Ours", "Difference",
      "Status"].map((name) => claimCell(claims.rows[at][claims.header.indexOf(name) + 1])))} />`;
}
function Published() {
  const { header, rows: found, coverage, trust } = claims;
  const [total] = coverage.rows.slice(-1);
  return html`<p>${trust}</p>
    ${found.length ? html`<${Grid} caption="Published numbers and ours" words=${d3.range(header.length + 1)}
      heads=${["Data set, pair", ...header]} lines=${found.map((line) => line.map(claimCell))} />`
      : html`<p class="note">No record here answers a published number: none was trained as a paper's was, on its data set and pair.</p>`}
    ${total && html`<${Fold} title=${`What is published: ${total[1]} numbers, by source`} shut><${Grid}
      caption="Published numbers by source" heads=${coverage.header} lines=${coverage.rows} /><//>`}`;
}

// ---- taxonomy ----
const WORDS = { measured: "measured", listed: "with methods but no records", open: "open" };
const recordsOf = d3.rollup(rows, (some) => new Set(some.flatMap((row) => row.records)).size, (row) => row.leaf,
  (row) => row.method);
const rowsOf = d3.rollup(rows, (some) => some.length, (row) => row.leaf);
const status = (leaf) => (rowsOf.has(leaf.id) ? "measured" : leaf.methods.length ? "listed" : "open");
const Square = ({ kind, title }) => html`<span class="cell ${kind}" title=${title} aria-hidden="true" />`;
function Taxonomy() {
  const summary = (some) => Object.keys(WORDS).map((kind) => [some.filter((leaf) => status(leaf) === kind).length,
    WORDS[kind]])
    .filter(([count]) => count).map(([count, word]) => `${count} ${word}`).join(", ");
  return html`<div class="glance">
    <p>${plural(leaves.length, "leaf",
      "leaves")}: ${summary(leaves)}.</p>${Object.entries(WORDS).map(([kind, word]) => html`<span class="key"><${Square}
        kind=${kind} />${word}</span>`)}</div>
    <ul class="overview">${chapters.map((chapter) => html`<li><span class="cells"
      aria-hidden="true">${chapter.leaves.map((leaf) => html`<${Square} kind=${status(leaf)} title=${leaf.title}
        />`)}</span>
      <span><${Name}>${chapter.title}<//><${Sr}>: ${summary(chapter.leaves)}<//></span></li>`)}</ul>
    ${chapters.map((chapter) => html`<section class="chapter"><div class="title"><h2><${Name}>${chapter.title}<//></h2>
      <span class="soft">${summary(chapter.leaves)}</span></div>
      <ul class="leaves">${chapter.leaves.map((leaf) => html`<${Leaf} leaf=${leaf} />`)}</ul></section>`)}`;
}
function Leaf({ leaf }) {
  const kind = status(leaf);
  const measured = recordsOf.get(leaf.id) ?? new Map();
  const listed = new Set(leaf.methods.map(([method]) => method));
  const methods = [...leaf.methods,
    ...[...measured.keys()].filter((method) => !listed.has(method)).map((method) => [method, method, "", ""])];
  const show = (part) => change({ ...DEFAULTS, leaf: leaf.id, ...part });
  return html`<li class="leaf ${kind}"><h3><${Square} kind=${kind} /><span><${Name}>${leaf.title}<//>
    <${Sr}> (${WORDS[kind]})<//></span></h3>
    ${leaf.question && html`<p>${leaf.question}</p>`}
    ${methods.length > 0 && html`<ul class="methods"
      aria-label="Methods">${methods.map(([method, title, role, path]) => {
      const count = measured.get(method) ?? 0;
      const said = docs[path];
      const label = html`<${Name}>${title}<//> <span
        class="soft">${title === method ? "" : html`<code>${method}</code>, `}${plural(count, "record")}${role
          && role !== "survey" ? `, ${role}` : ""}</span>`;
      return html`<li>${said ? html`<${Fold} title=${label} shut><p class="soft"><${Work}
        row=${{ docs: said, paper: null }} /></p><${Idea} docs=${said} />
        ${count > 0 && html`<button type="button" class="link"
          onclick=${() => show({ q: method })}>Show its rows</button>`}<//>`
        : count > 0 ? html`<button type="button" class="link" onclick=${() => show({ q: method })}><${Name}>${title}<//>
        </button> <span class="soft">${plural(count, "record")}</span>` : label}</li>`;
    })}</ul>`}
    ${kind === "open" && html`<p><b>Open</b>${leaf.open ? `: ${leaf.open}`.replace(/\.?$/, ".") : "."}</p>`}
    ${kind === "measured" && html`<div><button type="button" class="link"
      onclick=${() => show({})}>Show ${plural(rowsOf.get(leaf.id), "row")}<${Sr}> of ${leaf.title}<//></button>
        </div>`}</li>`;
}
