/** The notes on a checkpoint, one line each; empty if there are none. */
export const formatNotes = (notes: readonly string[]): string => notes.map((note) => `note: ${note}`).join('\n');
