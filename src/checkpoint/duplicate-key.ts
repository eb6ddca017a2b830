/**
 * Finds a key that occurs twice in one object of a JSON text. `JSON.parse` silently keeps the last one, but a header or an index
 * with two entries for one name is ambiguous and must be refused. The text must be valid JSON.
 */
export function duplicateKey(json: string): string | undefined {
  const open: Array<Set<string> | undefined> = []; // keys of each enclosing object so far; undefined for an array
  let lastString = '';
  for (let i = 0; i < json.length; i++) {
    switch (json[i]) {
      case '"': {
        const end = closingQuote(json, i);
        lastString = json.slice(i, end + 1);
        i = end;
        break;
      }
      case ':': {
        const keys = open.at(-1);
        // Escapes can spell one name in several ways, so decoded names are compared.
        const key = lastString.includes('\\') ? (JSON.parse(lastString) as string) : lastString.slice(1, -1);
        if (keys?.has(key)) return key;
        keys?.add(key);
        break;
      }
      case '{':
        open.push(new Set());
        break;
      case '[':
        open.push(undefined);
        break;
      case '}':
      case ']':
        open.pop();
        break;
    }
  }
  return undefined;
}

function closingQuote(json: string, opening: number): number {
  for (let i = opening + 1; ; i++) {
    if (json[i] === '\\') i++;
    else if (json[i] === '"') return i;
  }
}
