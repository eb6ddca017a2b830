/** Locations on the Hugging Face hub: `hf://org/name[@revision][/folder]`. */
import { isPlainPath } from '../../checkpoint/plain-path.js';
import { InvalidLocationError } from '../../errors.js';
import { publicLocation } from '../../location.js';

export interface HubLocation {
  /** The location as the user gave it. */
  readonly location: string;
  /** `org/name`. */
  readonly repo: string;
  /** A branch, a tag or a commit. */
  readonly revision: string;
  /** A folder in the repository; empty for its root. */
  readonly below: string;
}

const FORM = 'hf://org/name, hf://org/name@revision or hf://org/name/folder';
/** Revisions of the hub itself have slashes, which no other revision here may have unescaped. */
const REVISION = 'refs/(?:pr|convert)/[^/@]+|[^/@]+';
const LOCATION = new RegExp(`^hf://([^/@]+)/([^/@]+)(?:@(${REVISION}))?(?:/(.*))?$`, 'i');

/** Parses a location without a slash at its end. Throws an `InvalidLocationError`. */
export function parseHubLocation(location: string): HubLocation {
  const [, org = '', name = '', revision = 'main', below = ''] = LOCATION.exec(location) ?? [];
  const shown = publicLocation(location);
  if (org === '') throw new InvalidLocationError(shown, 'it does not name a repository', FORM);
  if (/^(?:datasets|spaces|buckets)$/.test(org))
    throw new InvalidLocationError(shown, `it names one of the hub's ${org}, not a model`, FORM);
  // huggingface_hub's validate_repo_id has the same rule.
  for (const part of [org, name])
    if (!/^\w(?:[\w.-]*\w)?$/.test(part) || /--|\.\./.test(part))
      throw new InvalidLocationError(shown, `"${part}" is no name on the hub`, FORM);
  if (below !== '' && !isPlainPath(below)) throw new InvalidLocationError(shown, `"${below}" is no folder`, FORM);
  return { location, repo: `${org}/${name}`, revision: decodeURIComponent(revision), below };
}
