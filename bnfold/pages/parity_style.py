"""How the parity page looks: on a screen in light and dark, on a narrow one, and on A4 paper."""

from __future__ import annotations

_LIGHT = """--bg: #fff; --fg: #1b1e24; --dim: #5b6472; --line: #d4d8df; --soft: #f5f6f8;
  --ok: #1a7f47; --ok-bg: #e3f5ea;
  --no: #b3202c; --no-bg: #fce4e6; --un: #8a5200; --un-bg: #fff0d3; --mid: #4a5260; --bar: #3b6fb6; --bound: #1b1e24;
  --head: #eef0f4;"""
_DARK = """--bg: #14161a; --fg: #e6e8ec; --dim: #9aa3b2; --line: #343b46; --soft: #1b1e24;
  --ok: #6fd79b; --ok-bg: #15301f;
  --no: #ff8d96; --no-bg: #45181d; --un: #ffc25e; --un-bg: #3d2b0b; --mid: #a4adbb; --bar: #6f9fe0; --bound: #e6e8ec;
  --head: #22262e;"""

STYLE = (
    f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
@media print {{ :root {{ color-scheme: light; }} }}
"""
    + """
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.6rem 1.6rem 3rem; background: var(--bg); color: var(--fg);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
h3 { font-size: .95rem; margin: 1.2rem 0 .3rem; } h2 .chip { margin-left: .5rem; vertical-align: .12em; }
p { margin: .45rem 0; overflow-wrap: anywhere; } ul { margin: .4rem 0; padding-left: 1.2rem; }
li { margin: .3rem 0; overflow-wrap: anywhere; } a { color: inherit; }
.kicker { color: var(--dim); font-size: .85rem; letter-spacing: .02em; margin: 0 0 .2rem; }
.note, footer, figcaption { color: var(--dim); font-size: .86rem; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: .6rem; }
.verdict { margin: 1rem 0 .6rem; padding: .8rem 1rem; border-left: 6px solid; border-radius: 3px; font-size: 1.12rem;
  line-height: 1.4; } .verdict b { display: inline-block; margin-right: .2rem; }
.verdict.holds { background: var(--ok-bg); border-color: var(--ok); } .verdict.holds b { color: var(--ok); }
.verdict.fails { background: var(--no-bg); border-color: var(--no); } .verdict.fails b { color: var(--no); }
.verdict.cannot-tell { background: var(--un-bg); border-color: var(--un); }
.verdict.cannot-tell b { color: var(--un); }
.chip { display: inline-block; font-size: .82rem; line-height: 1.35; font-weight: 600; padding: .08rem .5rem;
  border-radius: 1rem; white-space: nowrap; background: var(--soft); color: var(--mid); }
.chip.holds, .chip.folded { background: var(--ok-bg); color: var(--ok); }
.chip.fails, .chip.refused { background: var(--no-bg); color: var(--no); }
.chip.cannot-tell, .chip.kept { background: var(--un-bg); color: var(--un); }
table { border-collapse: collapse; width: 100%; font-size: .88rem; margin: .5rem 0; }
th, td { text-align: left; vertical-align: top; padding: .32rem .6rem .32rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
th { overflow-wrap: normal; font-weight: 600; color: var(--dim); font-size: .82rem; vertical-align: bottom;
  line-height: 1.3; }
th:last-child, td:last-child { padding-right: 0; }
.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; overflow-wrap: normal; }
th.num { white-space: normal; } td .num { white-space: normal; }
tr.fails > td { background: var(--no-bg); } tr.cannot-tell > td { background: var(--un-bg); }
tr.fails > td:first-child { border-left: 4px solid var(--no); padding-left: .6rem; }
tr.cannot-tell > td:first-child { border-left: 4px solid var(--un); padding-left: .6rem; }
td.num + td:not(.num), th.num + th:not(.num) { padding-left: 1rem; } .norms td:first-child { width: 32%; }
.trends td:first-child { width: 18%; }
.tiers td:first-child { white-space: nowrap; font-weight: 600; overflow-wrap: normal; }
.quiet { color: var(--dim); } .name { font-weight: 600; display: inline-block; min-width: 9.5rem; }
.kind { white-space: nowrap; }
code, .hash, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .84em; }
.hash { overflow-wrap: anywhere; word-break: break-all; color: var(--mid); }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 4px; padding: .6rem .8rem; margin: .5rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 0 1.6rem; margin: .5rem 0; }
.facts div { display: flex; justify-content: space-between; gap: 1rem; border-bottom: 1px solid var(--line);
  padding: .22rem 0; font-size: .88rem; }
.facts dt { color: var(--dim); overflow-wrap: anywhere; }
.facts dt { min-width: 6rem; }
.facts dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.facts dd.n { white-space: nowrap; }
.facts.wide { grid-template-columns: 1fr; } .facts.wide div { justify-content: flex-start; }
.facts.wide dt { width: 11rem; flex: none; } .facts.wide dd { text-align: left; }
figure { margin: .8rem 0; } figcaption { margin-top: .35rem; }
svg { display: block; overflow: visible; }
.bars { width: 30%; min-width: 9rem; } td.bars { padding-top: .45rem; }
th.bars, td.bars { padding-left: 1.3rem; padding-right: .9rem !important; }
.pad { padding: 0 1.5rem 0 .6rem; }
.ticks { position: relative; height: 1.15rem; font-weight: normal; font-size: .76rem; color: var(--dim); }
.ticks span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.ticks .b { color: var(--bound); font-weight: 600; }
.f { fill: var(--bar); } .f.fails { fill: var(--no); } .f.cannot-tell { fill: var(--un); }
.f.measured { fill: var(--mid); }
.f.error { fill: var(--no); } .g { stroke: var(--line); stroke-width: 1; } .w { stroke: var(--mid); stroke-width: 1.5; }
.b { stroke: none; } line.b { stroke: var(--bound); stroke-width: 1.5; }
.ring { fill: var(--bg); stroke: var(--mid); stroke-width: 1.7; }
svg text { font-size: 11px; fill: var(--dim); }
.plot { position: relative; padding-left: 3rem; }
.side { position: absolute; left: 0; top: 0; bottom: 0; width: 2.6rem; font-size: .76rem; color: var(--dim); }
.side span { position: absolute; right: 0; transform: translateY(50%); }
.strip { display: grid; grid-template-columns: minmax(6rem, 12rem) 1fr; align-items: center; }
.lanename { font-size: .86rem; color: var(--dim); padding-top: .5rem; }
.key { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; background: var(--bar);
  vertical-align: -.05rem; } .key.ring { background: none; border: 1.7px solid var(--mid); }
.key.bound { width: 0; height: .9rem; border-radius: 0; border-left: 2px solid var(--bound); background: none;
  vertical-align: -.15rem; }
@media screen and (max-width: 640px) {
  body { padding: 1rem 1rem 2rem; font-size: 14.5px; } h1 { font-size: 1.3rem; }
  table, tbody, tr, td { display: block; width: 100%; } thead { display: none; }
  tr { border: 1px solid var(--line); border-radius: 5px; margin: .6rem 0; padding: .35rem .6rem; }
  tr.fails { background: var(--no-bg); border-left: 4px solid var(--no); }
  tr.cannot-tell { background: var(--un-bg); border-left: 4px solid var(--un); }
  table td { border: 0 !important; padding: .12rem 0 !important; text-align: left !important; width: 100% !important;
    white-space: normal !important; }
  td[data-label]:not([data-label=""])::before { content: attr(data-label) ": "; color: var(--dim);
    font-weight: normal; }
  table td.bars { padding: .3rem .5rem !important; } .strip { grid-template-columns: 1fr; }
  .name { display: inline; } .facts, .facts.wide { grid-template-columns: 1fr; } .facts.wide dt { width: 7rem; }
}
@page { size: A4; margin: 15mm 14mm; }
@media print {
  html { font-size: 12.5px; } body { max-width: none; padding: 0; font-size: .95rem; } .bars { width: 26%; }
  h2 { margin-top: 1.3rem; }
  h2, h3, thead { break-after: avoid; } tr, figure, .verdict, .facts div, li, pre { break-inside: avoid; }
  thead { display: table-header-group; } p.lead { break-after: avoid; } .hash { font-size: 7pt; }
  a { text-decoration: none; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
)
