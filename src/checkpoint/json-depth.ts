/**
 * Whether a JSON text nests objects and lists deeper than `limit`. Text that is deeper than any real file must be refused before
 * it is parsed, because later code walks it by recursion. For text that is not JSON the answer means nothing.
 */
export function isDeeperThan(limit: number, json: string): boolean {
  let depth = 0;
  for (let i = 0; i < json.length; i++) {
    switch (json[i]) {
      case '"': // skips to the closing quote
        for (i++; i < json.length && json[i] !== '"'; i++) if (json[i] === '\\') i++;
        break;
      case '{':
      case '[':
        if (++depth > limit) return true;
        break;
      case '}':
      case ']':
        depth--;
        break;
    }
  }
  return false;
}
