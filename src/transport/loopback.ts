import { BlockList, isIP } from 'node:net';

const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8, 'ipv4');
loopback.addAddress('::1', 'ipv6');

/** `[::1]` → `::1`. URLs put an IPv6 address in brackets; sockets take it without. */
export const bareHost = (host: string): string => host.replace(/^\[(.*)\]$/, '$1');

/** Whether a host is this machine only. Names are not resolved: every name except localhost counts as outside. */
export function isLoopback(host: string): boolean {
  const address = bareHost(host);
  const family = isIP(address);
  if (family === 0) return address.toLowerCase() === 'localhost';
  return loopback.check(address, family === 4 ? 'ipv4' : 'ipv6');
}
