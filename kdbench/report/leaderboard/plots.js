// ---- plots ----
const INK = Object.keys(ROLES);
const ROLE_SCALES = {
  color: { type: "ordinal", domain: INK, range: INK.map((role) => `var(--${role})`) },
  symbol: { domain: INK, range: ["square", "circle", "triangle", "diamond", "star"] },
};
const tick = (value) => d3.format(Math.abs(value) >= 10000 ? "~s" : ".6~g")(value);
const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

// A plot of the width that there is. What is near the pointer is told, and a click on it is passed on.
function Figure({ build, label, description, onpick }) {
  const place = useRef();
  useLayoutEffect(() => {
    const svg = build(Math.max(260, place.current.clientWidth));
    svg.querySelector("style")?.remove(); // the policy admits no style but the page's
    svg.setAttribute("role", "img");
    if (onpick) svg.addEventListener("click", () => svg.value && onpick(svg.value));
    place.current.replaceChildren(svg);
  });
  return html`<div class="figure" ref=${place} /><${Sr}>${label}: ${description}.<//>`;
}
const plot = (label, options) => Plot.plot({ className: "plot", ariaLabel: label, ...options });

// Cheaper or equal, and better: what no other point beats on both.
function paretoFront(points, key) {
  const front = [];
  for (const row of points.slice().sort((a, b) => a[key] - b[key] || merit(b, "reached") - merit(a, "reached"))) {
    if (!front.length || merit(row, "reached") > merit(front[front.length - 1], "reached")) front.push(row);
  }
  return front;
}
// Names beside points, towards the middle; those that would hide another one are left out.
function names(some, key, width, text) {
  const taken = [];
  const side = (sign) => Plot.text(some, Plot.initializer({
    x: key, y: "reached", text, dx: 8 * sign, dy: -7, textAnchor: sign > 0 ? "start" : "end",
    fill: "var(--ink)", stroke: "var(--paper)", strokeWidth: 3,
  }, (data, facets, { x, y }, scales) => ({
    facets: facets.map((index) => index.filter((at) => {
      const [from, middle] = [scales.x(x.value[at]), scales.y(y.value[at])];
      const end = from + sign * (6.5 * text(data[at]).length + 12);
      const box = [Math.min(from, end), middle - 14, Math.max(from, end), middle + 2];
      if ((from > width / 2) === sign > 0
        || taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3]
        && other[1] < box[3])) return false;
      return taken.push(box);
    })),
  })));
  return [side(1), side(-1)];
}
const valueOf = (row) => row.shown.reached.split(" ")[0];

function scatter(label, points, key, axis, where, involved, width) {
  const [low, high] = d3.extent(points, (row) => row[key]);
  const front = paretoFront(points, key);
  const named = points.length > 24 ? front : [...front, ...points.filter((row) => !front.includes(row))];
  const intervals = points.length > 60 ? [] : points.filter((row) => row.half !== null);
  return plot(label, {
    width, height: Math.min(Math.max(0.6 * width, 280), 420), marginLeft: 50, marginRight: 20, marginBottom: 42,
    inset: 8, ...ROLE_SCALES,
    x: {
      type: low > 0 && high / low > 15 ? "log" : "linear", label: axis, tickFormat: tick, ticks: width / 110,
        nice: true,
    },
    y: { label: head(involved[0]), grid: true, tickFormat: tick, ticks: 6 },
    marks: [
      teacherMarks(involved, "ruleY", "y", { frameAnchor: "right", dy: -6, textAnchor: "end" }),
      Plot.ruleX(intervals, {
        x: key, y1: (row) => row.reached - row.half, y2: (row) => row.reached + row.half, stroke: "role",
        strokeOpacity: 0.5,
      }),
      Plot.line(front, { x: key, y: "reached", curve: "step-after", strokeDasharray: "5 3", stroke: "var(--ink)" }),
      Plot.dot(points, { x: key, y: "reached", symbol: "role", fill: "role", r: points.length > 200 ? 2.5 : 4.5 }),
      Plot.dot(front, { x: key, y: "reached", r: 7, stroke: "var(--ink)", className: "ring" }),
      names(named, key, width, (row) => short(where(row), 30)),
      tip(points, { x: key, y: "reached" },
        (row) => `${where(row)}\n${row.shown.reached}, ${axis} ${neat(row.shown[key])}`),
    ],
  });
}
const tip = (data, channels, title) => Plot.tip(data,
  Plot.pointer({ ...channels, title, stroke: "var(--edge)", fill: "var(--raised)" }));
const teacherMarks = (involved, rule, axis, anchor) => {
  const taught = involved.filter((table) => table.teacher);
  const teachers = [...d3.rollup(taught, ([table]) => table, (table) => table.teacher[1]).values()];
  return [
    Plot[rule](teachers, { [axis]: (table) => table.teacher[2], stroke: "var(--edge)", strokeDasharray: "2 3" }),
    Plot.text(teachers, {
      [axis]: (table) => table.teacher[2], fill: "var(--soft)", stroke: "var(--paper)", strokeWidth: 3, ...anchor,
      text: (table) => `teacher ${short(table.teacher[0], 24)} ${united(table.accuracy, table)}`,
    }),
  ];
};
// One line for each row, with its interval; for numbers that have no second axis to be drawn over.
function dots(label, points, spec, width) {
  const { value, low, high, text, where, rules, extra = [], domain } = spec;
  const left = Math.min(width * 0.42, 24 + 6.6 * d3.max(points, (row) => where(row).length));
  const names = new Map(points.map((row) => [row.id, short(where(row), Math.floor((left - 10) / 6.4))]));
  return plot(label, {
    width, height: 64 + 21 * points.length, marginLeft: left, marginRight: 58, marginTop: 30, marginBottom: 26,
    ...ROLE_SCALES,
    x: { axis: "top", label: null, tickFormat: tick, grid: true, domain, nice: !domain, ticks: width / 90 },
    y: { domain: points.map((row) => row.id), label: null, tickFormat: (id) => names.get(id), tickSize: 0 },
    marks: [
      Plot.ruleX(rules, { stroke: "var(--edge)" }), ...extra,
      Plot.ruleY(points.filter((row) => low(row) !== null), {
        y: "id", x1: (row) => clamp(low(row), domain), x2: (row) => clamp(high(row), domain), stroke: "role",
        strokeWidth: 2,
      }),
      Plot.dot(points, { y: "id", x: (row) => clamp(value(row), domain), symbol: "role", fill: "role", r: 4.5 }),
      Plot.text(points, { y: "id", text, frameAnchor: "right", dx: 54, textAnchor: "end", fill: "var(--soft)" }),
      Plot.tip(points, Plot.pointerY({
        y: "id", x: (row) => clamp(value(row), domain), fill: "var(--raised)", stroke: "var(--edge)",
        title: (row) => `${row.label}, ${row.pair}\n${text(row)}`,
      })),
    ],
  });
}
const clamp = (value, domain) => (domain ? Math.min(Math.max(value, domain[0]), domain[1]) : value);
const GAP_ROWS = 40;

function Chart({ id, heading, note, usable, build, description, heads, lines, words = [0, 1] }) {
  return html`<figure id=${id}><h2>${heading}</h2><p class="sub">${note}</p>
    ${usable ? html`<${Figure} build=${build} label=${heading} description=${description} onpick=${reveal} />
      <div class="equivalent"><${Fold} title="The same as a table" shut>
        <${Equivalent} caption=${heading} heads=${heads} lines=${lines} words=${words} /><//></div>`
          : html`<p class="soft">None of these rows has that number.</p>`}</figure>`;
}
function Equivalent({ lines, ...more }) {
  const all = lines();
  return html`<${Grid} ...${more} lines=${all.slice(0, 200)}
    />${all.length > 200 && html`<p
      class="soft">The first 200 of ${all.length.toLocaleString("en")}; the view Results has all.</p>`}`;
}
function Plots({ shown }) {
  const counts = d3.rollup(shown, (some) => some.length, (row) => row.table);
  if (!counts.size) return html`<p class="note">Nothing matches these filters.</p>`;
  const rowsIn = (scope) => d3.sum(scope.tables, (table) => counts.get(table.index) ?? 0);
  const scopes = [...SCOPES].filter(([, scope]) => rowsIn(scope));
  const largest = d3.greatest(scopes.filter(([, scope]) => scope.tables.length === 1), ([, scope]) => rowsIn(scope));
  const picked = scopes.some(([scope]) => scope === state.scope) ? state.scope : largest[0];
  const involved = SCOPES.get(picked).tables;
  const inside = shown.filter((row) => involved.includes(tables[row.table]));
  // a run without a teacher stands in several tables, but is one point
  const finished = inside.filter((row) => row.reached !== null);
  const points = [...d3.rollup(finished, ([row]) => row, (row) => row.records.join()).values()];
  const where = (row) => (involved.length > 1 ? `${row.label}, ${row.pair}` : row.label);
  const key = state.cost;
  const measured = involved[0];
  const what = measured.measure === "top-1" ? "Accuracy" : measured.measure;
  const usable = points.filter((row) => row[key] !== null);
  const front = new Set(paretoFront(usable, key));
  const constant = new Set(usable.map((row) => row[key])).size === 1;
  const best = usable.slice().sort((a, b) => merit(b, "reached") - merit(a, "reached") || a.index - b.index);
  const devices = new Set(points.flatMap((row) => row.records.map((run) => environments[runs.environment[run]].device)));
  const recovered = inside.filter((row) => row.gap !== null).sort((a, b) => b.gap - a.gap || a.index - b.index);
  const heading = constant ? `${what}: ${COSTS[key]} ${neat(usable[0].shown[key])} for all of these`
    : `${what} against ${COSTS[key]}`;
  const told = (row) => `${where(row)} ${united(valueOf(row), measured)}${constant ? ""
    : ` at ${neat(row.shown[key])}`}`;
  const named = (constant ? best : [...front]).slice(0, 20).map(told).join("; ");
  const description = constant ? named : `Pareto front, from cheap to dear: ${named}`;
  const note = key !== "minutes"
    ? `Counted, so the same on every device.${constant ? "" : " Rings and dashes: Pareto front."}`
    : devices.size > 1 ? `Measured on ${devices.size} kinds of device: minutes are not comparable between them.`
      : "Wall time without set-up and evaluation, median over seeds: a measure of the method only where the machine did nothing else. Rows whose seeds differ by more than 2x have none.";
  const build = (width) => (constant
    ? dots(heading, best.slice(0, GAP_ROWS), {
      where, value: (row) => row.reached, low: (row) => (row.half === null ? null : row.reached - row.half),
      high: (row) => row.reached + row.half, text: valueOf, rules: [],
      extra: teacherMarks(involved, "ruleX", "x", { frameAnchor: "bottom", dy: 16 }),
    }, width)
    : scatter(heading, usable, key, COSTS[key], where, involved, width));
  const gaps = recovered.slice(0, GAP_ROWS);
  const ends = d3.extent([0, 1, ...gaps.flatMap((row) => [row.gap, row.gapLow ?? row.gap, row.gapHigh ?? row.gap])]);
  return html`<div class="controls-row">
      <${Select} id="scope" label=${involved.length > 1
        ? "Rows of several pairs: one data set and protocol, but other students and teachers"
        : "Rows of one table are comparable"} value=${picked} onpick=${(scope) => change({ scope })}
        options=${scopes.map(([value, scope]) => [value, `${scope.title} (${plural(rowsIn(scope), "row")})`])} />
      <${Select} id="cost" label="Cost" value=${key} onpick=${(cost) => change({ cost })}
        options=${Object.entries(COSTS)} /></div>
    <ul class="legend">${INK.filter((role) => points.some((row) => row.role === role)).map((role) => html`<li><${Mark}
      role=${role} /> ${ROLES[role][1]}</li>`)}</ul>
    <div class="plots">
      <${Chart} id="plot-cost" heading=${heading} note=${note} usable=${usable.length} build=${build}
        description=${description}
        heads=${["Method", "Pair", head(measured), "±", COSTS[key], "Pareto front"]}
        lines=${() => best.map((row) => [html`<${Opener} row=${row} />`, row.pair, valueOf(row), row.half === null
          ? NONE : row.shown.reached.split(" ").pop(), neat(row.shown[key]), front.has(row) ? "yes" : ""])} />
      <${Chart} id="plot-gap" heading="Gap recovered" usable=${recovered.length}
        note=${`In percent: 0 is the student from scratch, 100 its teacher. Lines: 95 % interval of the paired difference to scratch; none where one seed tells no spread.${recovered.length > GAP_ROWS ? ` The best ${GAP_ROWS} of ${recovered.length.toLocaleString("en")} rows: filter to see others.` : ""}`}
        description=${gaps.map((row) => `${where(row)} ${neat(row.shown.gap)} %${row.gapLow === null ? ""
          : ` (${neat(row.shown.gapLow)} to ${neat(row.shown.gapHigh)})`}`).join("; ")}
        build=${(width) => dots("Gap recovered", gaps, {
          where, value: (row) => 100 * row.gap, low: (row) => (row.gapLow === null ? null : 100 * row.gapLow),
          high: (row) => 100 * row.gapHigh, text: (row) => neat(row.shown.gap), rules: [0, 100],
          // one wild interval must not flatten all the others
          domain: [Math.max(100 * ends[0], -150), Math.min(100 * ends[1], 250)],
        }, width)}
        heads=${["Method", "Pair", "Gap %", "from", "to", "n"]}
        lines=${() => recovered.map((row) => [html`<${Opener} row=${row} />`, row.pair,
          ...["gap", "gapLow", "gapHigh"].map((each) => neat(row.shown[each])), row.n])} />
    </div>`;
}

// ---- curves ----
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const DIGITS = Object.fromEntries([...LETTERS].map((letter, index) => [letter, index]));
// `kdbench.report.leaderboard.curves.pack_curve`: 60 points at most, evenly spread over the epochs
function unpackCurve([, length, low, high, packed]) {
  const count = packed.length / 2;
  return d3.range(count).map((index) => {
    const level = 64 * DIGITS[packed[2 * index]] + DIGITS[packed[2 * index + 1]];
    const at = 1 + Math.floor(count > 1 ? (index * (length - 1)) / (count - 1) + 0.5 : 0);
    return { at, value: level === 4095 ? NaN : low + ((high - low) * level) / 4094 };
  });
}
const HUES = 5, DASHES = ["0", "5 3", "1.5 2.5"];
const look = (hue, dash) => ({ stroke: `var(--seed-${hue % HUES})`, strokeDasharray: DASHES[dash % DASHES.length] });
// The curves of one row by seed, or of several with a look for each row.
function Curves({ groups }) {
  const single = groups.length === 1;
  const series = groups.flatMap((row, which) => row.records.map((run, index) => ({
    run, name: single ? `seed ${runs.seed[run]}` : `${row.label}, seed ${runs.seed[run]}`, which,
    look: single ? look(index, index) : look(which, which),
  })));
  const drawn = (line) => curvesOf(line.run).map((curve) => ({ ...line, title: curve[0], points: unpackCurve(curve) }));
  const found = d3.group(series.flatMap(drawn), (line) => line.title);
  const told = ({ name, points }) => `${name} from ${brief(points[0].value)} to ${brief(points[points.length - 1].value)}`;
  const common = [...found].filter(([, lines]) => new Set(lines.map((line) => line.which)).size === groups.length)
    .sort(([a], [b]) => b.startsWith("test") - a.startsWith("test") || d3.ascending(a, b));
  if (!common.length) return html`<p class="soft">These records hold no curves${single ? "" : " of one name"}.</p>`;
  const keys = single ? series : groups.map((row, which) => ({ name: row.label, look: look(which, which) }));
  return html`<h3>Curves</h3><div
    class="seeds">${keys.map(({ name, look }) => html`<span><svg viewBox="0 0 22 8" aria-hidden="true"><line x1="0"
      x2="22" y1="4" y2="4" stroke=${look.stroke} stroke-width="2" stroke-dasharray=${look.strokeDasharray} /></svg>
        <${Name}>${name}<//></span>`)}</div>
    <div class="charts">${common.map(([title, lines]) => html`<figure><figcaption><${Name}>${title}<//></figcaption>
      <${Figure} label=${`${title} over ${plural(d3.max(lines, (line) => line.points[line.points.length - 1].at),
        "measurement")}`}
        description=${lines.map(told).join("; ")}
        build=${(width) => curvePlot(title, lines, width)} /></figure>`)}</div>`;
}
const brief = (value) => (Number.isFinite(value) ? d3.format(".4~g")(value) : "not finite");
function curvePlot(title, lines, width) {
  const points = lines.flatMap((line) => line.points.map((point) => ({ ...point, line })))
    .filter((point) => Number.isFinite(point.value));
  return plot(title, {
    width, height: 150, marginLeft: 44, marginRight: 10, marginTop: 10, marginBottom: 24,
    x: { label: null, ticks: 4, tickFormat: tick },
    y: { label: null, grid: true, ticks: 4, tickFormat: tick, nice: true },
    marks: [
      ...lines.map((line) => (line.points.length > 1
        ? Plot.lineY(line.points, { x: "at", y: "value", strokeWidth: 1.5, ...line.look, className: "line" })
        : Plot.dot(line.points, { x: "at", y: "value", fill: line.look.stroke, r: 3, className: "line" }))),
      Plot.ruleX(points, Plot.pointerX({ x: "at", stroke: "var(--edge)" })),
      tip(points, { x: "at", y: "value" },
        (point) => `${point.line.name}\nmeasurement ${point.at}: ${brief(point.value)}`),
    ],
  });
}
