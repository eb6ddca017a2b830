/**
 * Whether a path stays below its folder: it is relative, its parts are separated by "/", and none is "." or "..". It has nothing
 * that another system takes for a separator, a drive or the end of the text. Names from an index, a manifest or a peer are not
 * trusted.
 */
export const isPlainPath = (path: string): boolean =>
  path !== '' && !path.startsWith('/') && !/(^|\/)\.{0,2}(\/|$)|\\|\0|^[a-zA-Z]:/.test(path);

/** Whether a path leads to a hidden file or through a hidden folder. No checkpoint needs these. */
export const isHidden = (path: string): boolean => /(^|\/)\.[^./]/.test(path);
