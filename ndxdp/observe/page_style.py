"""Style sheet of the status page. Pure."""

STYLE = """
:root { color-scheme: light dark; --back: #fff; --panel: #f6f8fa; --text: #1b1f24;
  --quiet: #57606a; --edge: #d0d7de; --good: #116329; --bad: #a40e26; --curve: #0550ae }
@media (prefers-color-scheme: dark) {
  :root { --back: #0d1117; --panel: #161b22; --text: #e6edf3;
    --quiet: #9aa4af; --edge: #30363d; --good: #7ee787; --bad: #ffa198; --curve: #79c0ff }
}
* { box-sizing: border-box }
body { background: var(--back); color: var(--text); font: 16px/1.45 system-ui, sans-serif;
  font-variant-numeric: tabular-nums; margin: 0 auto; max-width: 60rem; padding: 0 1rem 2rem }
h1 { font-size: 1.25rem; margin: .8rem 0 }
h2 { font-size: 1.1rem; margin: 1.4rem 0 .5rem }
h3 { display: inline; font-size: 1rem; margin: 0; overflow-wrap: anywhere }
p, ul, dl { margin: .4rem 0 } ul { padding-left: 1.2rem }
a { color: var(--curve) }
.quiet, h1 small { color: var(--quiet); font-weight: normal }
.good { color: var(--good) } .bad { color: var(--bad) }
.panel, details { background: var(--panel); border: 1px solid var(--edge); border-radius: .5rem }
.panel { margin: .8rem 0; padding: .6rem 1rem } .panel h2 { margin-top: 0 }
details { margin: .3rem 0 }
.problems { border-left: .3rem solid var(--bad) } .problems li { overflow-wrap: anywhere }
.numbers { display: flex; flex-wrap: wrap; gap: .4rem 2.2rem; margin: .5rem 0 }
.numbers div { display: flex; flex-direction: column-reverse }
.numbers dt { color: var(--quiet); font-size: .85rem }
.numbers dd { font-size: 1.35rem; margin: 0 }
.facts { display: grid; gap: .2rem 1rem; grid-template-columns: 8.5rem 1fr }
.facts dt { color: var(--quiet) } .facts dd { margin: 0; overflow-wrap: anywhere }
summary { align-items: center; cursor: pointer; display: grid; gap: 0 .8rem; list-style: none;
  grid-template-columns: .8rem minmax(5rem, 1.2fr) minmax(7rem, 2fr) 8rem 5.5rem;
  padding: .3rem .8rem }
summary::-webkit-details-marker { display: none }
summary::before { content: "\\25b8" } [open] > summary::before { content: "\\25be" }
summary .rate { text-align: right }
.idle summary { color: var(--quiet) } .idle h3 { font-weight: normal }
.many details { margin: .3rem .8rem } .many > summary { grid-template-columns: .8rem 1fr }
.more { padding: .2rem 1rem .8rem 2.4rem }
svg { display: block; height: 1.5rem; overflow: visible; width: 100% } figure { margin: .6rem 0 0 }
figure svg { height: 4rem } figcaption { color: var(--quiet); font-size: .85rem }
.line { fill: none; stroke: var(--curve); stroke-width: 1.5; vector-effect: non-scaling-stroke }
.area { fill: var(--curve); opacity: .18 }
table { border-collapse: collapse; margin-top: .8rem; width: 100% }
caption { color: var(--quiet); font-size: .85rem; text-align: left }
th, td { border-top: 1px solid var(--edge); padding: .15rem 0 .15rem .8rem; text-align: right }
th:first-child { font-weight: normal; overflow-wrap: anywhere; padding-left: 0; text-align: left }
thead th { border: 0; color: var(--quiet); font-size: .85rem; font-weight: normal }
@media (max-width: 40rem) {
  .facts { grid-template-columns: 1fr } .facts dt { margin-top: .3rem }
  .more { padding-left: 1rem }
  summary { gap: 0 .5rem; padding: .3rem .5rem;
    grid-template-columns: .8rem minmax(3.5rem, 1fr) minmax(8.8rem, 1.2fr) 4rem 4.2rem }
  .many details { margin: .3rem .2rem }
}
@media (max-width: 26rem) {
  summary { grid-template-columns: .8rem minmax(3.5rem, 1fr) minmax(5rem, 1.2fr) 4.2rem }
  .past { display: none }
}
"""

DIGEST = "z2DNfanUmfXhbP1iDXvvKSgjm2sJMol9i1hmxSkcSOg="
"""The base64 text of the SHA-256 of STYLE: the only style that a browser may apply. A test compares
it, because `hashlib` would load OpenSSL into the daemon."""
