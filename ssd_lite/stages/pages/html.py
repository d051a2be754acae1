"""The HTML of a report: escaping of everything a model wrote, tables, and the one style sheet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

STYLE = """
:root{color-scheme:light dark;--ink:#1c2024;--soft:#5a626b;--paper:#fff;--panel:#f5f6f8;--rule:#dcdfe4;
--base:#4a5bc4;--tuned:#c2570c;--gain:#18794e;--loss:#c62a2f;--flat:#5a626b}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#a3abb5;--paper:#15181c;--panel:#1e2329;--rule:#363d46;
--base:#93a2ff;--tuned:#ff9d57;--gain:#56c98d;--loss:#ff8a87;--flat:#a3abb5}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:62rem;padding:1.5rem 1.1rem 4rem;color:var(--ink);background:var(--paper);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;overflow-wrap:break-word}
h1{font-size:1.1rem;font-weight:600;margin:0;color:var(--soft)}
h2{font-size:1.25rem;line-height:1.3;margin:3rem 0 .7rem}
h3{font-size:1rem;margin:1.5rem 0 .4rem}
p{margin:.5rem 0}p,li{max-width:44rem}ul{padding-left:1.2rem}li{margin:.25rem 0}
.soft,figcaption,caption{color:var(--soft);font-size:.9rem}
.verdict{border-left:.35rem solid var(--tone);padding:.2rem 0 .2rem 1rem;margin:1rem 0 1.4rem}
.verdict p{font-size:1.45rem;line-height:1.35;font-weight:600;margin:0;color:var(--tone)}
.gain{--tone:var(--gain)}.loss{--tone:var(--loss)}.flat{--tone:var(--flat)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.93rem;font-variant-numeric:tabular-nums;margin:.6rem 0}
caption{text-align:left;padding-bottom:.4rem}
th,td{text-align:left;vertical-align:top;padding:.38rem 1.1rem .38rem 0;border-bottom:1px solid var(--rule)}
td:last-child,th:last-child{padding-right:0}
thead th{color:var(--soft);font-weight:600;border-bottom:2px solid var(--rule)}
tbody th{font-weight:400}td{white-space:nowrap}td.wrap{white-space:normal;overflow-wrap:anywhere}
.changed th,.changed td{font-weight:600}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:1rem 2rem}
.columns{columns:21rem 2;column-gap:2.5rem}.columns table{width:100%;margin:0 0 1.4rem}.columns tr{break-inside:avoid}
.columns caption{font-weight:600}.columns th{width:65%}.columns thead{position:absolute;clip-path:inset(50%)}
figure{margin:.6rem 0;min-width:0}svg{display:block;width:100%;max-width:33rem;height:auto}
svg text{font:12px system-ui,sans-serif;fill:var(--soft)}
.grid{stroke:var(--rule);stroke-width:1}.axis{stroke:var(--soft);stroke-width:1}
.base{--c:var(--base)}.tuned{--c:var(--tuned)}
.area{fill:var(--c);fill-opacity:.17;stroke:var(--c);stroke-width:1.6}.area.base{stroke-dasharray:5 3}
.line{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round}.line.faint{stroke:var(--soft);stroke-width:1;stroke-opacity:.55}
.dot{fill:var(--c)}.whisker{stroke:var(--c);stroke-width:2.5;stroke-linecap:round;stroke-opacity:.55}
.key{display:inline-block;width:1.5rem;height:0;border-top:3px solid var(--c);vertical-align:middle;margin:0 .35rem 0 0}
.key.base{border-top-style:dashed}.key+span{margin-right:1.1rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:.4rem 1.2rem}
.pair>div{min-width:0}.pair p{font-size:.92rem}
.tag{display:inline-block;border:1px solid currentColor;border-radius:1rem;padding:0 .55rem;
font-size:.82rem;color:var(--flat)}
.tag.pass{color:var(--gain)}.tag.fail{color:var(--loss)}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
pre{background:var(--panel);border-radius:.4rem;padding:.7rem .9rem;margin:.4rem 0;max-height:26rem;overflow:auto;
white-space:pre-wrap;overflow-wrap:anywhere;tab-size:4}
pre.code{white-space:pre;overflow-wrap:normal}
.control{color:var(--loss);outline:1px dotted currentColor}
summary{cursor:pointer;color:var(--soft);font-size:.92rem}
:focus-visible{outline:2px solid var(--base);outline-offset:2px}
.together{white-space:nowrap}
@media(max-width:40rem){td{white-space:normal}body{padding:1rem .8rem 3rem}
table{font-size:.81rem}th,td{padding-right:.45rem}.verdict p{font-size:1.25rem}}
@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--paper:#fff;--panel:#f5f5f5;--rule:#bbb;--base:#4a5bc4;
--tuned:#c2570c;--gain:#18794e;--loss:#c62a2f;--flat:#444}body{font-size:10.5pt;padding:0;max-width:none}
pre{max-height:none;overflow:visible;white-space:pre-wrap}pre.code{white-space:pre-wrap}h2,h3{break-after:avoid}
.pair{grid-template-columns:1fr 1fr}caption{break-after:avoid}figure,tr{break-inside:avoid}
.scroll{overflow:visible}td{white-space:normal}}
"""

# On a phone a cell breaks between a mean and its interval, never inside either.
_INTERVAL, _TOGETHER = re.compile(r"\[[-−+\d., ]+\]|[\d.]+ %"), r'<span class="together">\g<0></span>'


def text(value: object) -> str:
    """Any value as HTML text: escaped, and what a terminal or a browser would obey (escapes, marks of direction,
    carriage returns, lone surrogates) shown as a marked escape instead. Line feeds and tabs stay."""
    parts = []
    for char in str(value):
        if char.isprintable() or char in "\n\t":
            parts.append(escape(char))
        else:
            name = char.encode("unicode_escape").decode("ascii")
            parts.append(f'<span class="control">{name}</span>')
    return "".join(parts)


def block(value: object, *, label: str, code: bool = False) -> str:
    """Text with its own line breaks, in a box that the keyboard can reach and scroll."""
    kind = ' class="code"' if code else ""
    return f'<pre{kind} tabindex="0" role="region" aria-label="{text(label)}">{text(value)}</pre>'


def section(title: str, *parts: str) -> str:
    """A section under its heading; empty parts are left out, and a section of only those is empty itself."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{text(title)}</h2>\n{body}\n</section>" if body else ""


def paragraph(value: str, *, soft: bool = False) -> str:
    """A paragraph of plain text."""
    kind = ' class="soft"' if soft else ""
    return f"<p{kind}>{text(value)}</p>"


def bullets(lines: Sequence[str]) -> str:
    """A list of plain sentences."""
    return "<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>"


def figure(drawing: str, caption: str) -> str:
    """A plot with its caption; empty where there is nothing to draw."""
    return f"<figure>{drawing}<figcaption>{text(caption)}</figcaption></figure>" if drawing else ""


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str, wide: int | None = None) -> str:
    """A table of plain values whose first column names the row. `wide` is the column whose text may wrap."""
    if not rows:
        return ""
    top = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    body = "".join(_row(row, wide) for row in rows)
    return (
        f'<div class="scroll"><table><caption>{text(caption)}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _row(row: Sequence[object], wide: int | None) -> str:
    wrapped = ' class="wrap"'
    cells = "".join(
        f"<td{wrapped if index == wide else ''}>{_INTERVAL.sub(_TOGETHER, text(value))}</td>"
        for index, value in enumerate(row[1:], 1)
    )
    return f'<tr><th scope="row">{text(row[0])}</th>{cells}</tr>'


def page(title: str, body: str) -> str:
    """A whole document without anything from outside: the policy in it forbids scripts and requests."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
