// ---- what the views are made of ----
// Every text goes through a text node: what a name says is never markup.
const { h, render, Component } = preact;
const { useLayoutEffect, useRef, useState } = preactHooks;
const html = htm.bind(h);
const Name = ({ children }) => html`<bdi dir="auto">${children}</bdi>`;
const Sr = ({ children }) => html`<span class="sr">${children}</span>`;

// Numbers come as texts, rounded as in every other format; here they get a typographer's signs.
const NONE = "–";
const neat = (text) => (text === "-" ? NONE : text.replace(/^-(?=\d)/, "−"));
const plural = (count, word, words = `${word}s`) => `${count.toLocaleString("en")} ${count === 1 ? word : words}`;

const ROLES = {
  control: ["■", "control"], survey: ["●", "cited by the survey"], extension: ["▲", "extension"],
  "third-party": ["◆", "third-party"], teacher: ["★", "teacher"],
};
const Mark = ({ role }) => html`<span class="mark ${role}" aria-hidden="true">${ROLES[role][0]}</span>`;

// ``[kind, text]`` as `kdbench.docs.spans` gives them
const Spans = ({ of }) => of.map(([kind, text]) => (kind === "code" ? html`<code>${text}</code>` : kind === "sub"
  ? html`<sub>${text}</sub>` : text));
const Work = ({ row: { docs: { work }, paper } }) => {
  if (!work) return paper ? html`<${Name}>${paper}<//>` : NONE;
  const text = `${work.authors}, ${work.venue}`;
  return work.url ? html`<a href=${work.url} target="_blank" rel="noopener noreferrer"
    title=${work.title}>${text}<${Sr}>: ${work.title}, opens a new tab<//></a>` : text;
};
const Facts = ({ of }) => html`<dl
  class="facts">${of.map(([key, value]) => html`<dt><${Name}>${key}<//></dt>
    <dd>${typeof value === "string" ? html`<${Name}>${value}<//>` : value}</dd>`)}</dl>`;
const Scroll = ({ label, children }) => html`<div class="wide" tabindex="0" role="region"
  aria-label=${label}>${children}</div>`;
function Grid({ caption, heads, lines, words = [0] }) {
  const kind = (index) => (words.includes(index) ? "text" : null);
  return html`<${Scroll} label=${caption}><table class="data"><caption class="sr">${caption}</caption>
    <thead><tr>${heads.map((each, index) => html`<th scope="col" class=${kind(index)}>${each}</th>`)}</tr></thead>
    <tbody>${lines.map((cells) => html`<tr>${cells.map((cell, index) =>
      index === 0 ? html`<th scope="row" class=${kind(index)}>${cell}</th>`
        : html`<td class=${kind(index)}>${cell}</td>`)}</tr>`)}</tbody></table><//>`;
}
function Fold({ title, shut, children }) { // what it hides is made when it opens
  const [isOpen, setOpen] = useState(!shut);
  return html`<details open=${isOpen} ontoggle=${(event) => setOpen(event.currentTarget.open)}>
    <summary>${title}</summary>${isOpen && children}</details>`;
}
function Select({ id, label, value, options, onpick }) {
  return html`<label><span>${label}</span><select id=${id} value=${value}
    onchange=${(event) => onpick(event.currentTarget.value)}>
    ${options.map(([key, text]) => html`<option key=${key} value=${key}
      selected=${key === value}>${text}</option>`)}</select></label>`;
}
async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed: select it"; // as a file may be told
  }
  setTimeout(() => { button.textContent = before; }, 1500);
}
const Command = ({ text }) => html`<span class="command"><code>${text}</code> <button type="button" class="link"
  aria-label=${`Copy ${text}`} onclick=${(event) => copy(text, event.currentTarget)}>copy</button></span>`;

// a mean and its spread
function Estimate({ text }) {
  const [value, ...spread] = text.split(" ");
  return html`<span class="value">${neat(value)}</span>${spread.length > 0
    && html` <span class="half">${spread.join(" ")}</span>`}`;
}
function Difference({ row, of }) {
  const [value, ...spread] = row.shown[of].split(" ");
  if (row[of] === null) return neat(row.shown[of]);
  const sure = row.shown.sure.includes(of);
  return html`${sure ? html`<b class="sure ${merit(row, of) > 0 ? "up" : "down"}">${neat(value)}</b>`
    : neat(value)} <span class="half">${spread.join(" ")}</span>`;
}
function Strip({ table, value, half }) {
  const [low, high] = table.range;
  if (value === null || !(high > low)) return null;
  const x = d3.scaleLinear([low, high], [2, 90]);
  return html`<svg class="strip" viewBox="0 0 92 12" aria-hidden="true"><line class="axis" x1="0" x2="92" y1="6" y2="6"
    />
    ${table.teacher && html`<line class="ref" x1=${x(table.teacher[2])} x2=${x(table.teacher[2])} y1="1" y2="11" />`}
    ${half !== null && html`<line class="ci" x1=${x(value - half)} x2=${x(value + half)} y1="6" y2="6" />`}
    <circle class="dot" cx=${x(value)} cy="6" r="3" /></svg>`;
}
