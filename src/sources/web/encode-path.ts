/** A path as it is written in a URL. */
export const encodePath = (path: string): string => path.split('/').map(encodeURIComponent).join('/');
