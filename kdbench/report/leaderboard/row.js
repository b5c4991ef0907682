// ---- a row's runs ----
function flatten(value, prefix = "", into = []) {
  if (value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length) {
    for (const key of Object.keys(value)) flatten(value[key], prefix ? `${prefix}.${key}` : key, into);
  } else into.push([prefix, typeof value === "string" ? value : JSON.stringify(value)]);
  return into;
}
const splitFact = (text) => {
  const at = text.startsWith("Made on ") ? 7 : text.indexOf(":");
  return at > 0 && at < 12 ? [text.slice(0, at).toLowerCase(), text.slice(at + 1).trim()] : ["", text];
};
function Idea({ docs: { idea, equations } }) {
  return html`${idea.length > 0 && html`<p class="idea"><${Spans} of=${idea} /></p>`}
    ${equations.length > 0 && html`<div
      class="equation">${equations.map((line) => html`<div><${Spans} of=${line} /></div>`)}</div>`}`;
}
function Detail({ row }) {
  const table = tables[row.table];
  const wide = matchMedia("(min-width: 901px)").matches;
  const optional = (column) => row.records.some((run) => runs[column][run] !== "-");
  const rivals = table.rows.filter((other) => other !== row && other.against);
  const heads = ["Seed", united("Last", table), ...(optional("val") ? [united("Val-selected", table)] : []),
    `${united("Oracle", table)} (unranked)`,
    "Train min", `${SAMPLE === "image" ? "Images" : "Samples"}/s`, ...(optional("memory") ? ["Peak MB"] : []), "Cell",
      "Record sha256", "Trained (UTC)"];
  const lines = row.records.map((run) => [
    runs.seed[run],
    runs.reason[run] !== null ? html`<span class="bad">diverged</span>` : runs.last[run],
    ...(optional("val") ? [neat(runs.val[run])] : []),
    html`<span class="soft">${neat(runs.oracle[run])}</span>`, runs.minutes[run], runs.ips[run],
    ...(optional("memory") ? [neat(runs.memory[run])] : []),
    html`<span class="mono">${runs.cell[run]}</span>`, html`<span class="mono">${runs.sha[run]}…</span>`,
      runs.created[run],
  ]);
  const about = [
    ["leaf", `${leafById.get(row.leaf)?.title ?? row.leaf} (${row.leaf}), ${ROLES[row.role][1]}`],
    ...(row.work ? [["paper", html`${row.docs.work && `${row.docs.work.title}. `}<${Work} row=${row} />`]] : []),
    ...COLUMNS.filter(({ key }) => key.startsWith("survey ") && row[key] !== undefined)
      .map(({ key, label }) => [label, row[key]]),
    ["class", row.cls], ["needs", row.needs || "nothing"],
    [table.measure, row.reached === null ? "no finished seed" : row.half === null ? row.shown.reached
      : `${row.shown.reached} over ${plural(row.n, "seed")}`],
    ...["ds", "dk"].map((key, at) => [table.versus[at], key]).filter(([, key]) => row[key] !== null)
      .map(([label, key]) => [label, `${neat(row.shown[key])}: ${row.shown[`${key}Why`]}`]),
    ...table.others.map((other, index) => [other, neat(row.shown.others[index])]),
    ...(row.gap === null ? [] : [["gap recovered", row.gapLow === null ? `${neat(row.shown.gap)} % (no interval)`
      : `${neat(row.shown.gap)} % (${neat(row.shown.gapLow)} to ${neat(row.shown.gapHigh)} %)`]]),
    ["deployed", `${row.shown.macs} MACs, ${row.params.toLocaleString("en")} parameters`],
    ["training", `${row.images.toLocaleString("en")} ${SAMPLE}s, ${neat(row.shown.sf)} student and ${neat(row.shown.tf)} teacher forwards for each, ${neat(row.shown.extra)} extra parameters`],
  ];
  const machines = [...new Set(row.records.map((run) => runs.environment[run]))]
    .map((index) => Object.entries(environments[index]).filter(([, value]) => value !== null))
    .map((known) => ["machine", known.map(([key, value]) => `${key} ${value}`).join(", ")]);
  return html`<div class="sheet"><div>
      ${row.docs.idea.length + row.docs.equations.length > 0
        && html`<section><h3>Idea</h3><${Idea} docs=${row.docs} /></section>`}
      <section><h3>Seeds</h3><p class="soft">The last epoch is ranked, the best test epoch (oracle) never.</p>
        <${Grid} caption=${`Seeds of ${row.label}`} heads=${heads} lines=${lines} />
        ${row.records.filter((run) => runs.reason[run] !== null).map((run) => html`<p
          class="bad">Seed ${runs.seed[run]} diverged: <${Name}>${runs.reason[run]}<//></p>`)}</section>
      <section><${Curves} groups=${[row]} /></section>
      <${Fold} title=${html`<h3>Config</h3>`} shut=${!wide}><dl
        class="config">${flatten(Object.fromEntries(row.config.map((index) => configs[index])))
        .map(([key, value]) => html`<div><dt><${Name}>${key}<//></dt><dd class="mono"><${Name}>${value}<//></dd>
          </div>`)}</dl><//>
    </div><div>
      <section><h3>Row</h3><${Facts} of=${about} /></section>
      ${row.claims.length > 0 && html`<section><h3>Paper vs ours</h3><${Claims} of=${row.claims} /></section>`}
      <section><h3>From the number to its run</h3>${row.records.map((run) => html`<div><span
        class="soft">seed ${runs.seed[run]}</span> <${Command} text=${`kdbench show ${runs.cell[run]}`} /> <${Command}
          text=${`kdbench reproduce ${runs.cell[run]}`} /></div>`)}</section>
      <section class="actions">${rivals.map((other) => html`<button type="button" class="quiet"
        onclick=${() => change({ view: "compare", a: row.id, b: other.id })}>Compare with <${Name}>${other.label}<//>
          </button>`)}</section>
      <${Fold} title=${html`<h3>What its table stands on</h3>`} shut=${!wide}><${Facts}
        of=${[...table.facts.map(splitFact), ...machines]} /><//>
    </div></div>`;
}
