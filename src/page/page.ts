/** HTML pages that open offline: they load no script, style sheet or picture. */
import { markup } from './svg.js';

const STYLE = `
:root { color-scheme: light dark; --ink: #0f172a; --paper: #fff; --rule: #e2e8f0; --quiet: #475569; --bad: #b91c1c; --warm: #fff7ed }
@media (prefers-color-scheme: dark) { :root { --ink: #e2e8f0; --paper: #0f172a; --rule: #334155; --quiet: #94a3b8; --bad: #f87171; --warm: #431407 } }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem; break-after: avoid }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } tr, svg { break-inside: avoid }
th, td { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid var(--rule) }
td.missed { color: var(--bad); font-weight: 600 } svg { max-width: 100%; height: auto; display: block }
.figures { display: flex; flex-wrap: wrap; gap: 1rem } .figures div { border: 1px solid var(--rule); border-radius: .5rem; padding: .6rem 1rem }
.figures b { display: block; font-size: 1.4rem } .figures span { color: var(--quiet) }
@media (max-width: 700px) { table { display: block; overflow-x: auto } }
.told { background: var(--warm); border-left: 4px solid #ea580c; padding: .4rem 1rem }
`;

/** A part of a page under a heading. */
export interface Section {
  readonly title: string;
  /** HTML. */
  readonly body: string;
}

/** An HTML table. Titles and cells are plain text. */
export const table = (titles: readonly string[], rows: ReadonlyArray<readonly string[]>): string =>
  [
    '<table>',
    `<thead><tr>${titles.map((title) => `<th>${markup(title)}</th>`).join('')}</tr></thead>`,
    '<tbody>',
    ...rows.map((row) => `<tr>${row.map(cell).join('')}</tr>`),
    '</tbody></table>',
  ].join('\n');

/** Plain text as HTML, one paragraph a line. */
export const paragraphs = (lines: readonly string[]): string =>
  lines.map((line) => `<p>${markup(line)}</p>`).join('\n');

/**
 * A whole page.
 * @param title plain text
 * @param intro plain text, one paragraph each
 */
export const htmlPage = (title: string, intro: readonly string[], sections: readonly Section[]): string =>
  `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>${markup(title)}</title>
<style>${STYLE}</style>
</head>
<body>
<h1>${markup(title)}</h1>
${paragraphs(intro)}
${sections.map(({ title, body }) => `<h2>${markup(title)}</h2>\n${body}`).join('\n')}
</body>
</html>
`;

const cell = (text: string): string => `<td${text === 'missed' ? ' class="missed"' : ''}>${markup(text)}</td>`;
