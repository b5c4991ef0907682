// ---- the table ----
const CELLS = {
  work: (row) => html`<${Work} row=${row} />`,
  reached: (row) => (row.reached === null ? NONE
    : html`<${Estimate} text=${row.shown.reached} /><${Strip} table=${tables[row.table]} value=${row.reached}
    half=${row.half} />`),
  bal: (row) => html`<${Estimate} text=${row.shown.bal} />`,
  ds: (row) => html`<${Difference} row=${row} of="ds" />`,
  dk: (row) => html`<${Difference} row=${row} of="dk" />`,
  rank: (row) => (row.rank === null ? NONE : String(row.rank)),
  n: (row) => String(row.n),
  diverged: (row) => (row.diverged ? html`<span class="bad">${row.diverged}</span>` : "0"),
  published: (row) => (row.claims.length
    ? `${claims.rows[row.claims[0]][claims.number]} ${claims.rows[row.claims[0]][claims.status]}` : NONE),
};
function cellOf(row, { key, text }) {
  if (CELLS[key]) return CELLS[key](row);
  if (key.startsWith("other ")) {
    const at = tables[row.table].others.indexOf(key.slice(6));
    return at < 0 ? NONE : html`<${Estimate} text=${row.shown.others[at]} />`;
  }
  return text ? html`<${Name}>${row[key] ?? NONE}<//>` : neat(row.shown[key]);
}
// Columns of the chosen set; those of a survey's table, or of further measures, only where some row has them.
let columnsNow = [];
function visible(shown) {
  const asked = (sets) => sets.includes(state.columns) || (state.mix && sets.includes("mixed"));
  const there = (key) => !/^(survey|other) /.test(key)
    || shown.some((row) => row.role !== "control" && row[key] !== undefined);
  const found = COLUMNS.filter((column) => asked(column.in) && there(column.key));
  if (found.map(({ key }) => key).join() !== columnsNow.map(({ key }) => key).join()) columnsNow = found;
  return columnsNow;
}

class Line extends Component {
  shouldComponentUpdate(next) {
    return ["row", "columns", "expanded", "dim"].some((key) => next[key] !== this.props[key]);
  }
  render({ row, columns, expanded, dim }) {
    return html`<tr role="row" class="row ${expanded ? "open" : ""} ${dim ? "dim" : ""}">${columns.map((column) => {
      const { key } = column;
      if (key === "method") {
        return html`<th key=${key} role="rowheader" scope="row" class="name">
          <button type="button" class="fold" aria-expanded=${String(expanded)} data-row=${row.id}
            onclick=${() => toggle(row)}>
            <span class="chevron" aria-hidden="true" /><${Mark} role=${row.role} /><span><b><${Name}>${row.method}<//>
              </b><${Sr}>, ${ROLES[row.role][1]}${dim ? ", kept though the filters do not name it" : ""}<//>
            ${row.setting && html`<span class="setting" title=${row.setting}><${Name}>${row.setting}<//></span>`}</span>
              </button></th>`;
      }
      const why = (key === "ds" || key === "dk") && row[key] !== null ? row.shown[`${key}Why`] : null;
      return html`<td key=${key} role="cell" class="${key.split(" ")[0]} ${column.text ? "text" : ""}"
        title=${why}>${cellOf(row, column)}</td>`;
    })}</tr>${expanded && html`<tr role="row" class="detail"><td role="cell" colspan=${columns.length}><${Detail}
      row=${row} /></td></tr>`}`;
  }
}
function toggle(row) {
  if (!open.delete(row.id)) open.add(row.id);
  paint();
  writeAddress();
}
function reveal(row) {
  open.add(row.id);
  limit = Infinity;
  Object.assign(state, { view: "results" });
  paint();
  writeAddress(true);
  const button = document.querySelector(`[data-row="${row.id}"]`);
  button?.scrollIntoView({ block: "center" });
  button?.focus({ preventScroll: true });
}
const Opener = ({ row }) => html`<button type="button" class="link" onclick=${() => reveal(row)}>
  <${Name}>${row.label}<//></button>`;

function TeacherLine({ table, columns }) {
  return html`<tr role="row" class="row teacher">${columns.map(({ key, text }) => {
    if (key === "method") return html`<th key=${key} role="rowheader" scope="row" class="name"><span class="fold"><span
      /><${Mark} role="teacher" /><span><b><${Name}>${table.teacher[0]}<//></b> <span class="setting">teacher <span
        class="mono">${table.teacher[1]}</span></span></span></span></th>`;
    return html`<td key=${key} role="cell"
      class="${key.split(" ")[0]} ${text ? "text" : ""}">${key === "reached"
        ? html`<span class="value">${neat(table.accuracy)}</span> <span class="half" /><${Strip} table=${table}
        value=${table.teacher[2]} half=${null} />` : NONE}</td>`;
  })}</tr>`;
}
function Heads({ columns }) {
  const falling = state.sort.startsWith("-");
  const sorted = state.sort.replace(/^-/, "");
  const rising = (key) => (sorted === key ? falling : RISING.has(key));
  const sortBy = (key) => change({ sort: rising(key) ? key : `-${key}` });
  return html`<thead role="rowgroup"><tr role="row">${columns.map(({ key, label, help, text }) => {
    const ways = directions(key);
    const down = ways.has(true) ? falling : !falling;
    const order = key !== sorted ? "none" : ways.size > 1 ? "other" : down ? "descending" : "ascending";
    return html`<th key=${key} role="columnheader" scope="col"
      class="${key === "method" ? "name " : ""}${text ? "text " : ""}${key.split(" ")[0]}" aria-sort=${order}>
      <button type="button" title=${help} data-key=${key}
        onclick=${() => sortBy(key)}>${label}${key === sorted
          && html`<span class="arrow" aria-hidden="true">${down ? "↓" : "↑"}</span>`}</button></th>`;
  })}</tr></thead>`;
}
const several = tables.some((table) => table.measure !== tables[0].measure);
function Results({ matching, shown }) {
  const columns = visible(shown);
  let room = limit;
  const bodies = [];
  for (const [index, some] of grouped(shown)) {
    if (room <= 0) break;
    const table = index === null ? null : tables[index];
    const drawn = some.slice(0, room);
    room -= drawn.length + 1;
    bodies.push(html`<tbody key=${index} role="rowgroup">
      ${table && html`<tr role="row" class="group"><th role="rowheader" scope="rowgroup" colspan=${columns.length}><div>
        <b><${Name}>${table.title}<//></b>
          <span>${several && `${head(table)} · `}student <${Name}>${table.student}<//> · ${plural(some.filter((row) => matching.has(row)).length, "row")}<span class="narrow">, by rank: ${head(table)}, ${table.versus[1]}</span></span></div></th></tr>`}
      ${table?.teacher && html`<${TeacherLine} table=${table} columns=${columns} />`}
      ${drawn.map((row) => html`<${Line} key=${row.id} row=${row} columns=${columns} expanded=${open.has(row.id)}
        dim=${!matching.has(row)} />`)}
      ${table && tables.length > 1 && drawn.length === some.length
        && html`<tr role="row" class="foot"><td role="cell" colspan=${columns.length}><div><${Name}>${table.trust}<//>
        </div></td></tr>`}
    </tbody>`);
  }
  const more = room <= 0;
  return html`<div class="scroller" id="scroller" tabindex="0" role="region" aria-label="Results, scrollable">
    <table id="table" role="table"><caption
      class="sr">Methods by table: what is measured, differences to the controls, and costs. A row's button opens its runs.</caption>
      <${Heads} columns=${columns} />${bodies}
      ${!shown.length && html`<tbody role="rowgroup"><tr role="row"><td role="cell" class="text note"
        colspan=${columns.length}>Nothing matches these filters.</td></tr></tbody>`}</table>
    ${more && html`<${More} total=${shown.length} />`}</div>`;
}
// Lines are drawn as they are reached: ten thousand at once would take seconds.
function More({ total }) {
  const place = useRef();
  const grow = () => { limit += BATCH; paint(); };
  useLayoutEffect(() => {
    const near = (entries) => { if (entries.some((entry) => entry.isIntersecting)) grow(); };
    const watch = new IntersectionObserver(near, { rootMargin: "300px" });
    watch.observe(place.current);
    return () => watch.disconnect();
  }, [limit]);
  return html`<p class="more" ref=${place}><button type="button" id="grow" class="quiet"
    onclick=${grow}>Show more of ${plural(total, "row")}</button></p>`;
}
