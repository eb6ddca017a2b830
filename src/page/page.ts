/** Pages that open offline: no script, no style sheet, no picture from elsewhere. */
import { markup } from './svg.js';

const STYLE = `
body { font: 14px/1.45 system-ui, sans-serif; color: #0f172a; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } th, td { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid #e2e8f0 }
td.missed { color: #b91c1c; font-weight: 600 } svg { max-width: 100%; height: auto }
`;

export interface Section {
  readonly title: string;
  /** HTML. */
  readonly body: string;
}

export const table = (titles: readonly string[], rows: ReadonlyArray<readonly string[]>): string =>
  [
    '<table>',
    `<thead><tr>${titles.map((title) => `<th>${markup(title)}</th>`).join('')}</tr></thead>`,
    '<tbody>',
    ...rows.map((row) => `<tr>${row.map(cell).join('')}</tr>`),
    '</tbody></table>',
  ].join('\n');

export const paragraphs = (lines: readonly string[]): string =>
  lines.map((line) => `<p>${markup(line)}</p>`).join('\n');

/** `intro`: plain text, a paragraph each. */
export const htmlPage = (title: string, intro: readonly string[], sections: readonly Section[]): string =>
  `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
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
