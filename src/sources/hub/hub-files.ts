/** Opens models on the Hugging Face hub. */
import type { Files } from '../files.js';
import { lazyFiles } from '../lazy-files.js';
import type { SourceOptions } from '../source-options.js';
import { openWeb } from '../web/web.js';
import { webFiles } from '../web/web-files.js';
import { parseHubLocation } from './hub-location.js';
import { hubPlace } from './hub-place.js';
import { hubSettings } from './hub-settings.js';

/** The files of a model on the hub. The settings are read at the first use. */
export function hubFiles(location: string, options: SourceOptions): Files {
  const wanted = parseHubLocation(location);
  return lazyFiles(async () => {
    const settings = await hubSettings(options.web?.env ?? process.env);
    const remedy = `Wait some minutes${settings.token ? '' : ', or give a token in HF_TOKEN: the limits are higher with one'}, then run the command again.`;
    const web = openWeb(new URL(settings.endpoint).origin, remedy, options);
    return webFiles(location, web, hubPlace(wanted, settings, web, options.peers?.cache));
  });
}
