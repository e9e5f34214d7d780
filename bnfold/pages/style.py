"""How a page looks, in light, in dark and on paper, and the little that it does when it is used."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --bg: #fff; --fg: #1d2026; --dim: #667; --line: #c9ced8; --card: #f6f7f9;
  --folded: #1a7f47; --folded-bg: #d9f2e3; --reduced: #1f5fbf; --reduced-bg: #dbe8fb; --kept: #9a5b00;
  --kept-bg: #ffe7bd; --refused: #b3202c; --refused-bg: #fbdadd; --linear: #fff; --edge: #8a93a3; --hit: #ffe100; }
@media (prefers-color-scheme: dark) { :root { --bg: #14161a; --fg: #e6e8ec; --dim: #9aa3b2; --line: #39404c;
  --card: #1d2026; --folded: #6fd79b; --folded-bg: #173a26; --reduced: #8fb8ff; --reduced-bg: #1b2f52; --kept: #ffc25e;
  --kept-bg: #45300a; --refused: #ff8d96; --refused-bg: #4d1a1f; --linear: #2a2f38; --edge: #6b7483; --hit: #8a7a00; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1.5rem 3rem; background: var(--bg); color: var(--fg);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.05rem; margin: 1.2rem 0 .4rem; }
h2 small { color: var(--dim); font-weight: normal; } p { margin: .4rem 0; }
header { position: sticky; top: 0; background: var(--bg); padding: .4rem 0; border-bottom: 1px solid var(--line);
  z-index: 1; }
.chip { display: inline-block; font: inherit; font-size: .85rem; padding: .1rem .55rem; margin: 0 .35rem .2rem 0;
  border: 1px solid var(--line); border-radius: 1rem; background: var(--card); color: var(--fg); white-space: nowrap; }
button.chip { cursor: pointer; } button.chip.off { opacity: .4; text-decoration: line-through; }
.chip.folded { background: var(--folded-bg); color: var(--folded); }
.chip.reduced { background: var(--reduced-bg); color: var(--reduced); }
.chip.kept { background: var(--kept-bg); color: var(--kept); }
.chip.refused { background: var(--refused-bg); color: var(--refused); }
.chip.took { border-left: 4px solid var(--folded); border-radius: 3px; }
.chip.carrier { border-radius: 3px; color: var(--dim); }
.chip.opaque { border-radius: 3px; border-style: dashed; color: var(--dim); }
.tools { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center; }
input, .tools button { font: inherit; padding: .25rem .6rem; border: 1px solid var(--line); border-radius: 5px;
  background: var(--card); color: var(--fg); } #q { width: 22rem; max-width: 100%; } #hits { color: var(--dim); }
.graphs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
.graph { min-width: 0; }
.pane { overflow: auto; max-height: 78vh; border: 1px solid var(--line); border-radius: 6px;
  padding: 8px; }
svg { display: block; margin: 0 auto; }
svg text { font: 11.5px ui-monospace, Menlo, Consolas, monospace; fill: var(--fg); }
svg .n { fill: var(--dim); } .c { fill: var(--card); stroke: var(--line); } .c.end { rx: 14px; }
.r > rect { fill: none; } .linear > rect:first-of-type { fill: var(--linear); stroke: var(--line); }
.opaque > rect:first-of-type { stroke: var(--line); stroke-dasharray: 3 2; } .io text { font-weight: bold; }
.norm.folded > rect, .step.folded > rect { fill: var(--folded-bg); } .norm.folded text { fill: var(--folded); }
.norm.reduced > rect, .step.reduced > rect { fill: var(--reduced-bg); } .norm.reduced text { fill: var(--reduced); }
.norm.kept > rect, .step.kept > rect { fill: var(--kept-bg); } .norm.kept text { fill: var(--kept); }
.norm.refused > rect, .step.refused > rect { fill: var(--refused-bg); } .norm.refused text { fill: var(--refused); }
.r .bar { fill: var(--folded); } [data-row] { cursor: pointer; }
.e path { fill: none; stroke: var(--edge); stroke-width: 1.1; stroke-linejoin: round; }
.e .h { fill: var(--edge); stroke: none; } .e:hover path { stroke: var(--fg); stroke-width: 2; }
.r.hit > rect:first-of-type, .r.on > rect:first-of-type { stroke: var(--fg); stroke-width: 2; fill: var(--hit); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .5rem; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; } th { white-space: nowrap; }
.num, #norms th:nth-child(n+6) { text-align: right; white-space: nowrap; }
tr.hit td, tr:target td, tr.on td { background: color-mix(in srgb, var(--hit) 25%, transparent); }
tr.off { display: none; }
a { color: inherit; } code { font-size: .85em; color: var(--dim); overflow-wrap: anywhere; }
.note, footer { color: var(--dim); font-size: .85rem; }
[id^="n"], [id^="b-"] { scroll-margin-top: 10rem; }
@media print { header { position: static; } .tools { display: none; }
  .pane { max-height: none; overflow: visible; border: 0; }
  .graphs { display: block; } svg { max-width: 100%; height: auto; } tr { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

SCRIPT = """
"use strict";
const all = (what, where = document) => [...where.querySelectorAll(what)];
const named = all("[data-name]"), search = document.getElementById("q"), hits = document.getElementById("hits");
let found = [], at = -1;
const show = (element) => {
  all(".on").forEach((other) => other.classList.remove("on"));
  element.classList.add("on");
  element.scrollIntoView({ block: "center", inline: "center" });
};
const look = () => {
  const text = search.value.trim().toLowerCase();
  found = text ? named.filter((element) => element.dataset.name.includes(text)) : [];
  named.forEach((element) => element.classList.toggle("hit", false));
  found.forEach((element) => element.classList.toggle("hit", true));
  at = -1;
  hits.textContent = text ? found.length + " found" : "";
};
search.addEventListener("input", look);
if (location.hash.startsWith("#q=")) {
  search.value = decodeURIComponent(location.hash.slice(3));
  look();
}
search.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !found.length) return;
  at = (at + (event.shiftKey ? found.length - 1 : 1)) % found.length;
  hits.textContent = at + 1 + " of " + found.length;
  show(found[at]);
});
let step = -1;
document.getElementById("next").addEventListener("click", () => {
  const left = all("#before .norm[data-row]").filter((element) => !element.classList.contains("folded"));
  if (!left.length) return;
  step = (step + 1) % left.length;
  const twin = document.getElementById("a-" + left[step].dataset.row);
  if (twin) twin.scrollIntoView({ block: "center", inline: "center" });
  show(left[step]);
});
all("button.chip").forEach((chip) => chip.addEventListener("click", () => {
  chip.classList.toggle("off");
  const off = all("button.chip.off").map((other) => other.dataset.outcome);
  all("#norms tbody tr").forEach((row) => row.classList.toggle("off", off.includes(row.dataset.outcome)));
}));
all("svg [data-row]").forEach((element) => element.addEventListener("click", () => {
  const row = document.getElementById(element.dataset.row);
  if (row) show(row);
}));
all("#norms a").forEach((link) => link.addEventListener("click", (event) => {
  const target = document.getElementById(link.getAttribute("href").slice(1));
  if (!target) return;
  event.preventDefault();
  const twin = document.getElementById("a-" + link.getAttribute("href").slice(3));
  if (twin) twin.scrollIntoView({ block: "center", inline: "center" });
  show(target);
}));
"""
