// ---- two rows of one table, face to face ----
// What `kdbench.report.leaderboard.facing` holds of a and b, seen from a; undefined where it has not both.
function faceToFace(a, b) {
  const table = tables[a.table];
  const { rows: places, differences, test, tests, examples } = facingOf(a.table);
  const at = [a, b].map((row) => places.indexOf(table.rows.indexOf(row)));
  if (at.includes(-1)) return undefined;
  const [i, j] = d3.sort(at);
  const pair = (i * (2 * places.length - i - 1)) / 2 + j - i - 1;
  const swapped = at[0] > at[1];
  const [difference, counts] = [differences[pair], examples[pair]];
  const zero = /^[+-][0.]*( |$)/;
  const negated = (text) => (zero.test(text) ? text : text.replace(/^[+-]/, (sign) => (sign === "+" ? "-" : "+")));
  return {
    difference: swapped && difference ? negated(difference) : difference,
    test: tests[test[pair]],
    examples: swapped && counts ? [counts[0], counts[2], counts[1], counts[3]] : counts,
  };
}
function Examples({ a, b, counts: [both, first, second, neither] }) {
  const total = both + first + second + neither;
  const cell = (count, kind) => html`<td class=${kind}><svg class="share" viewBox="0 0 40 40" aria-hidden="true"><rect
    width=${40 * Math.sqrt(count / total)} height=${40 * Math.sqrt(count / total)} />
      </svg>${count.toLocaleString("en")}</td>`;
  return html`<table class="data quarters"><caption
    class="sr">Test examples by which of the two gets them right</caption>
    <thead><tr><td /><th scope="col"><${Name}>${b.label}<//> right</th><th scope="col">
      <${Name}>${b.label}<//> wrong</th></tr></thead>
    <tbody><tr><th scope="row" class="text"><${Name}>${a.label}<//> right</th>${cell(both)}${cell(first, "up")}</tr>
    <tr><th scope="row" class="text"><${Name}>${a.label}<//> wrong</th>${cell(second, "down")}${cell(neither)}</tr>
      </tbody></table>
    <p class="soft">${total.toLocaleString("en")} answers: every test example, once for each seed that both have. Areas are shares.</p>`;
}
const settingOf = (row) => (row.setting ? `"${row.method}:${row.setting.replaceAll(", ", ",")}"` : row.method);
// the best that is no control, as far as there is one
const bestOf = (some) => d3.least(some, (a, b) => (a.role === "control") - (b.role === "control")
  || d3.ascending(a.rank, b.rank));
function Compare() {
  const usual = tables.map((table) => table.rows.filter((row) => row.reached !== null)).find((some) => some.length > 1);
  if (!usual) return html`<p class="note">No table has two rows with finished runs.</p>`;
  const a = rowById.get(state.a) ?? bestOf(usual);
  const table = tables[a.table];
  const others = table.rows.filter((row) => row !== a && row.reached !== null);
  const given = rowById.get(state.b);
  const b = others.includes(given) ? given : others.find((row) => row.against === "kd") ?? others[0];
  const options = (some) => some.map((row) => [row.id, row.label]);
  const peers = table.rows.filter((row) => row.reached !== null);
  const found = b && faceToFace(a, b);
  const seeds = b ? d3.sort(new Set([...a.records, ...b.records].map((run) => runs.seed[run]))) : [];
  const of = (row, seed) => row.records.filter((run) => runs.seed[run] === seed).map((run) => neat(runs.last[run]))[0] ?? NONE;
  return html`<div class="controls-row">
      <${Select} id="compare-table" label="Table" value=${String(table.index)}
        options=${tables.filter((each) => each.rows.length > 1).map((each) => [String(each.index), each.title])}
        onpick=${(index) => change({ a: bestOf(tables[index].rows).id, b: "" })} />
      <${Select} id="a" label="This row" value=${a.id} options=${options(peers)} onpick=${(id) => change({ a: id })} />
      <button type="button" class="quiet" aria-label="Swap the two" disabled=${!b}
        onclick=${() => change({ a: b.id, b: a.id })}>⇄</button>
      <${Select} id="b" label="with that one" value=${b?.id} options=${options(others)}
        onpick=${(id) => change({ a: a.id, b: id })} /></div>
    ${!b ? html`<p class="note">There is no other row with finished runs.</p>` : html`
    <div class="versus">
      <section><h2><${Name}>${a.label}<//> − <${Name}>${b.label}<//></h2>
        ${!found ? html`<p>Only the controls and the best rows of this table are set against one another here.</p>`
          : html`${found.difference && html`<p
          class="big">${neat(found.difference)} ${table.unit === "%" ? "points" : table.unit}</p>`}<p
            class="soft">${found.test}. ${table.higher ? "" : "Lower is better."}</p>`}
        <${Grid} caption="By seed" heads=${["Seed", a.label, b.label]}
          lines=${[...seeds.map((seed) => [seed, of(a, seed), of(b, seed)]),
          ["mean", neat(a.shown.reached), neat(b.shown.reached)], ["Gap %", neat(a.shown.gap), neat(b.shown.gap)],
          [`forwards per ${SAMPLE}`, neat(a.shown.fwd), neat(b.shown.fwd)]]} />
        <p class="soft">With all tests, over examples too: <${Command}
          text=${`kdbench compare ${settingOf(a)} ${settingOf(b)}`} /></p></section>
      <section><h2>On the same test examples</h2>${found?.examples
        ? html`<${Examples} a=${a} b=${b} counts=${found.examples} />`
        : html`<p class="soft">The records of these two say nothing of the same single examples being right or wrong.</p>`}</section>
      <section class="full"><${Curves} groups=${[a, b]} /></section>
      ${[a, b].map((row) => html`<section><h2><${Opener} row=${row} /></h2><p class="soft"><${Work} row=${row} /></p>
        <${Idea} docs=${row.docs} /></section>`)}
    </div>`}`;
}
