"""How the report looks, by day, by night, on a phone and on paper."""

from minipalm.plot.style import COLORS, INK, RULE

# --- colours, which the figures use too -----------------------------------------------

VARIABLES = {"#ffffff": "paper", INK: "ink", RULE: "rule"} | {
    color: name for name, color in COLORS.items()
}
DARK = {
    "paper": "#14171c",
    "ink": "#dfe3e8",
    "rule": "#343a44",
    "sft": "#a3a8ae",
    "ppo": "#4aa8e0",
    "unpenalised": "#f07f2e",
    "gold": "#f2cf6b",
    "proxy": "#c193e0",
    "chosen": "#1fae87",
    "rejected": "#e3a0c5",
    "other": "#8fd0f5",
}


def theme() -> str:
    """The colours, light and dark, as CSS variables."""
    light = {name: color for color, name in VARIABLES.items()}

    def rule(colors: dict[str, str]) -> str:
        return ":root{" + "".join(f"--{n}:{c};" for n, c in colors.items()) + "}"

    dark = f"@media screen and (prefers-color-scheme:dark){{{rule(DARK)}}}"
    return f"{rule(light)}\n{dark}\n"


# --- the rest -----------------------------------------------------------------------

CSS = """
* { box-sizing: border-box; }
html { font-size: 17px; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif;
}
main { max-width: 47rem; margin: 0 auto; padding: 3rem 1.25rem 4rem; }
h1, h2, h3, h4 { line-height: 1.25; text-wrap: balance; }
h1 { font-size: 2rem; margin: 0.3rem 0 1.6rem; letter-spacing: -0.01em; }
h2 {
  font-size: 1.35rem; margin: 3.2rem 0 1rem; padding-top: 0.9rem;
  border-top: 1px solid var(--rule);
}
p { margin: 0 0 1rem; }
code { font: 0.88em ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; }
.origin, table, figcaption, h4, small, .tiles, figure text {
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif !important;
}
.origin { font-size: 0.82rem; color: var(--sft); margin: 0; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: 0.75rem; padding: 0; margin: 0; list-style: none;
}
.tiles li {
  border: 1px solid var(--rule); border-radius: 0.5rem; padding: 0.7rem 0.9rem;
  font-size: 0.82rem; line-height: 1.4;
}
.tiles b {
  display: block; font-size: 1.6rem; line-height: 1.3; color: var(--ppo);
  font-variant-numeric: tabular-nums;
}
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; }
th, td { padding: 0.28rem 0.5rem; text-align: right; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; }
tbody th { text-align: left; font-weight: 400; padding-left: 0; }
thead th { font-weight: 600; }
thead tr:last-child > * { border-bottom: 2px solid var(--rule); }
tbody tr > * { border-bottom: 1px solid var(--rule); }
tbody td:nth-child(odd) { color: var(--ppo); font-weight: 600; }
tbody .both td { color: var(--ppo); font-weight: 600; }
tbody .part th { padding-left: 1.2rem; color: var(--sft); }
figure { margin: 1.6rem 0; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { font-size: 0.82rem; color: var(--sft); margin-top: 0.4rem; }
article { margin: 0 0 1.8rem; break-inside: avoid; }
h3 { font-size: 1.02rem; margin: 0 0 0.5rem; }
small { font-size: 0.78rem; font-weight: 400; color: var(--sft); margin-left: 0.4rem; }
.answers {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr));
  gap: 0.75rem;
}
.answer {
  border-top: 3px solid var(--rule); padding: 0.5rem 0 0; overflow-wrap: anywhere;
  line-height: 1.45;
}
.answer p { margin: 0; font-size: 0.95rem; }
.answer.sft { border-color: var(--sft); }
.answer.ppo { border-color: var(--ppo); }
.answer.unpenalised { border-color: var(--unpenalised); }
h4 { font-size: 0.82rem; margin: 0 0 0.25rem; }
h4 .gold { float: right; font-weight: 400; font-variant-numeric: tabular-nums; }
h4 .gold::before { content: "● "; color: var(--gold); }
dt { font-weight: 700; }
dd { margin: 0 0 0.8rem; }
@media (max-width: 30rem) {
  html { font-size: 16px; }
  main { padding: 1.5rem 1rem; }
  h1 { font-size: 1.5rem; }
  h2 { margin-top: 2.2rem; }
  table { font-size: 0.8rem; }
  th, td { padding: 0.25rem 0.2rem; }
  tbody th { white-space: normal; }
  tbody .part th { padding-left: 0.8rem; }
  figure .wide { margin: 0 -1rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
}
@media print {
  html { font-size: 11pt; }
  main { max-width: none; padding: 0; }
  .wide { overflow: visible; }
  h2 { break-after: avoid; }
}
"""
