/**
 * Whether a JSON text nests objects and lists more than `limit` deep. What is deeper than any real file is refused before it is
 * parsed: whoever walks it later does so by recursion. Any text may be given; of what is no JSON the answer means nothing.
 */
export function isDeeperThan(limit: number, json: string): boolean {
  let depth = 0;
  for (let i = 0; i < json.length; i++) {
    switch (json[i]) {
      case '"': // to the closing quote
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
