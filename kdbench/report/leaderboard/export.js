// ---- the view, to take along ----
const SPREADS = { reached: "half", bal: "balHalf", ds: "dsHalf", dk: "dkHalf" };
// Full values, for programs; text stands behind a quote where a spreadsheet would take it for a formula.
function csv(shown) {
  const inert = (value) => (typeof value === "string" && /^[=+\-@＝＋－＠]/.test(value) ? `'${value}` : value ?? "");
  const columns = visible(shown);
  const parts = ({ key }) => (SPREADS[key] ? [key, SPREADS[key]] : [key]);
  const heads = ["table", "teacher_sha256",
    ...columns.flatMap((column) => (column.key === "method" ? ["method", "setting"] : parts(column))), "cells",
      "trust"];
  const lines = grouped(shown).flatMap(([, some]) => some).map((row) => [
    tables[row.table].title, tables[row.table].teacher?.[1],
    ...columns.flatMap((column) => (column.key === "method" ? [row.method, row.setting]
      : parts(column).map((key) => row[key]))),
    row.records.map((run) => runs.cell[run]).join(" "), tables[row.table].trust,
  ]);
  return `${d3.csvFormatRows([heads, ...lines].map((line) => line.map(inert)))}\n`;
}
// One table of booktabs for each table shown, with the texts of the page; `payload.tex` escapes as the LaTeX files do.
function latex(shown) {
  const tex = (text) => [...String(text)].map((character) => payload.tex[character] ?? character).join("");
  const number = (text) => tex(text === "-" ? "–" : text).replace(/^-(?=\d)/, "$-$");
  const columns = visible(shown).filter(({ in: sets }) => sets.includes(state.columns));
  const cell = (row, { key, text }) => {
    if (key === "method") return tex(row.label) + (/^[\w:.+-]+$/.test(row.paper) ? `~\\cite{${row.paper}}` : "");
    if (key === "published") return number(row.claims.length ? CELLS.published(row) : "-");
    if (text || ["n", "diverged"].includes(key)) return tex(row[key] ?? "–");
    const shownText = key.startsWith("other ") ? row.shown.others[tables[row.table].others.indexOf(key.slice(6))] ?? "-"
      : row.shown[key];
    return row.shown.sure.includes(key) ? `\\textbf{${number(shownText)}}` : number(shownText);
  };
  const line = (cells) => `${cells.join(" & ")} \\\\`;
  return d3.groups(ordered(shown), (row) => row.table).sort(([a], [b]) => a - b).map(([index, some]) => [
    `% ${tables[index].trust}`, "\\begin{table}", "\\centering\\small", `\\caption{${tex(tables[index].title)}.}`,
    `\\begin{tabular}{${columns.map(({ text }) => (text ? "l" : "r")).join("")}}`, "\\toprule",
      line(columns.map(({ label }) => tex(label))), "\\midrule",
    ...some.map((row) => line(columns.map((column) => cell(row, column)))), "\\bottomrule", "\\end{tabular}",
      "\\end{table}", "",
  ].join("\n")).join("\n");
}
const EXPORTS = { csv: ["CSV", csv], tex: ["LaTeX", latex], link: ["Link", () => location.href] };
function Export({ shown }) {
  const [kind, setKind] = useState(null);
  const place = useRef(), area = useRef();
  useLayoutEffect(() => { if (kind && !place.current.open) place.current.showModal(); }, [kind]);
  const text = kind && EXPORTS[kind][1](shown);
  const save = () => {
    const address = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    Object.assign(document.createElement("a"), { href: address, download: `kdbench.${kind}` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  };
  return html`<button type="button" class="quiet" id="export" aria-haspopup="dialog"
    onclick=${() => setKind("csv")}>Export</button>
    <dialog ref=${place} aria-label="Export this view" onclose=${() => setKind(null)}>${kind && html`
      <div class="controls-row"><div role="group"
        aria-label="Format">${Object.entries(EXPORTS).map(([key, [label]]) => html`<button type="button" class="quiet"
          aria-pressed=${String(key === kind)} onclick=${() => setKind(key)}>${label}</button>`)}</div>
        <form method="dialog"><button class="quiet">Close</button></form></div>
      <p class="soft">${kind === "link" ? "This view, with its filters, order and open rows."
        : `The ${plural(shown.length, "row")} and the columns of this view, in its order${kind === "csv"
        ? ", in full precision, with the cells behind each row"
        : "; needs booktabs, keys of \\cite are those of kdbench.bib"}.`}</p>
      <textarea ref=${area} readonly aria-label=${EXPORTS[kind][0]} rows=${kind === "link" ? 3 : 14} value=${text}
        onfocus=${(event) => event.currentTarget.select()} />
      <div class="controls-row"><button type="button" class="quiet"
        onclick=${(event) => { area.current.select(); copy(text, event.currentTarget); }}>Copy</button>
        ${kind !== "link" && html`<button type="button" class="quiet" onclick=${save}>Save</button>`}</div>`}</dialog>`;
}
