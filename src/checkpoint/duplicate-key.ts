/** A key that occurs again later in the same object, so that its value does not count. */
export interface OverriddenKey {
  /** The key with its escapes resolved. */
  readonly key: string;
  /** The position of its opening quote in the text. */
  readonly start: number;
}

/**
 * Finds a key that occurs twice in one object of a JSON text; undefined if there is none. `JSON.parse` silently keeps the last
 * one, but a header with two entries for one name is ambiguous and must be refused. The text must be valid JSON.
 */
export const duplicateKey = (json: string): string | undefined => overriddenKeys(json)[0]?.key;

/** All keys that occur again later in the same object. A key that occurs three times is listed twice. */
export function overriddenKeys(json: string): OverriddenKey[] {
  const overridden: OverriddenKey[] = [];
  const open: Array<Map<string, number> | undefined> = []; // keys of each enclosing object so far; undefined for an array
  let lastString = '';
  let lastStart = 0;
  for (let i = 0; i < json.length; i++) {
    switch (json[i]) {
      case '"': {
        const end = closingQuote(json, i);
        lastString = json.slice(i, end + 1);
        lastStart = i;
        i = end;
        break;
      }
      case ':': {
        const keys = open.at(-1);
        // Escapes can spell one name in several ways, so decoded names are compared.
        const key = lastString.includes('\\') ? (JSON.parse(lastString) as string) : lastString.slice(1, -1);
        const start = keys?.get(key);
        if (start !== undefined) overridden.push({ key, start });
        keys?.set(key, lastStart);
        break;
      }
      case '{':
        open.push(new Map());
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
  return overridden;
}

function closingQuote(json: string, opening: number): number {
  for (let i = opening + 1; i < json.length; i++) {
    if (json[i] === '\\') i++;
    else if (json[i] === '"') return i;
  }
  return json.length;
}
