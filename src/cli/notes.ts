/** What was left aside of a folder, a line each; empty where nothing was. */
export const formatNotes = (notes: readonly string[]): string => notes.map((note) => `note: ${note}`).join('\n');
