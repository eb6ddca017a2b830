/**
 * A path below a folder, and nothing else: relative, parts separated by "/", none of them "." or "..", nothing that another
 * system takes for a separator, a drive or the end of the text. What names files (an index, a manifest, a peer) is not trusted.
 */
export const isPlainPath = (path: string): boolean =>
  path !== '' && !path.startsWith('/') && !/(^|\/)\.{0,2}(\/|$)|\\|\0|^[a-zA-Z]:/.test(path);

/** Leads to a hidden file, or through a hidden folder: what no checkpoint is made of. */
export const isHidden = (path: string): boolean => /(^|\/)\.[^./]/.test(path);
