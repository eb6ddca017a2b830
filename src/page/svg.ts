/** The frame of an SVG picture, and the colours that pictures share. Pictures are text: they load nothing and run nothing. */

/** Escapes text for HTML and XML. */
export const markup = (plain: string): string =>
  plain.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;').replace(/"/g, '&quot;');

// Every colour can be read on white and on black.
export const OURS = '#ea580c';
export const OTHER = '#7c8aa0';
export const COLOURS = [OURS, '#3b82f6', '#16a34a', '#a855f7', '#0891b2', '#ca8a04', '#db2777', OTHER] as const;

/** Pixels, rounded to a tenth: more digits make files larger and pictures no better. */
export const round = (pixels: number): number => Math.round(10 * pixels) / 10;

/** Pixels. */
export interface Size {
  readonly width: number;
  readonly height: number;
}

/**
 * An SVG element for a page. Text and axes take the colour of the text around it.
 * @param size pixels
 * @param body SVG
 */
export const svg = ({ width, height }: Size, title: string, body: readonly string[]): string =>
  [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" font-family="system-ui, sans-serif" font-size="12" fill="currentColor">`,
    `<title>${markup(title)}</title>`,
    ...body,
    '</svg>',
  ].join('\n');

const STANDALONE = `<style>
svg { color-scheme: light dark; color: #334155; background: #fff }
@media (prefers-color-scheme: dark) { svg { color: #e2e8f0; background: #0f172a } }
</style>`;

/** An SVG file of its own, light or dark as the reader's system is. Parameters as for {@link svg}. */
export const svgFile = (size: Size, title: string, body: readonly string[]): string =>
  `${svg(size, title, [STANDALONE, ...body])}\n`;
