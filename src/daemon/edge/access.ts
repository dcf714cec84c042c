// Who may talk to the daemon. Every request names a host that is the daemon's own, comes from no foreign page, and carries the
// token; only /healthz answers without one. A web page can reach loopback, so being local proves nothing.

import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import { chmodSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import type { IncomingMessage } from 'node:http';
import { isIPv6 } from 'node:net';
import path from 'node:path';
import { GptdError } from '../../model/errors.ts';
import { BEARER_SUBPROTOCOL_PREFIX } from '../protocol/daemon.ts';

/** A shorter token could be guessed. */
export const TOKEN_CHARACTERS_MIN = 16;
const TOKEN_BYTES = 32;
const LOOPBACK_NAMES: ReadonlySet<string> = new Set(['localhost', '127.0.0.1', '[::1]']);

const isLoopback = (host: string): boolean =>
  host === 'localhost' || host === '::1' || host === '[::1]' || /^127(\.\d{1,3}){3}$/.test(host);

export interface AccessRules {
  readonly token: string;
  /** The address that the daemon is bound to, as a URL writes it. */
  readonly host: string;
  readonly port: number;
  /** Origins beside the daemon's own, such as `http://localhost:5173`. */
  readonly allowOrigins: readonly string[];
}

export type Refusal = { readonly status: 401 | 403; readonly message: string };

/**
 * Refuses what would open the daemon unsafely: a bind beyond loopback while there is no token yet, as whoever opens it to a
 * network must hold the token first, or a token that can be guessed. Throws `unauthorized`; writes nothing.
 */
export function checkAccess({
  dataDir,
  host,
  token,
}: {
  dataDir: string;
  host: string;
  token?: string | undefined;
}): void {
  const file = tokenFile(dataDir);
  const known = token ?? (existsSync(file) ? readFileSync(file, 'utf8').trim() : undefined);
  if (known === undefined && !isLoopback(host)) {
    throw new GptdError(
      'unauthorized',
      `Refusing to listen on ${host} without a token: start once on 127.0.0.1 to make ${file}, or set GPTD_TOKEN.`,
    );
  }
  if (known !== undefined && known.length < TOKEN_CHARACTERS_MIN) {
    throw new GptdError(
      'unauthorized',
      `The token has ${known.length} characters: at least ${TOKEN_CHARACTERS_MIN} are needed, or no token at all to have one made in ${file}.`,
    );
  }
}

/** The token of a data directory that this daemon has locked: the given one, the stored one, or a new one. */
export function loadToken({ dataDir, token }: { dataDir: string; token?: string | undefined }): string {
  const file = tokenFile(dataDir);
  if (token !== undefined || !existsSync(file)) {
    writeFileSync(file, `${token ?? randomBytes(TOKEN_BYTES).toString('base64url')}\n`, { mode: 0o600 });
  }
  chmodSync(file, 0o600);
  return readFileSync(file, 'utf8').trim();
}

const tokenFile = (dataDir: string): string => path.join(dataDir, 'token');

/** Why a request's Host or Origin is refused, null when they are in order. */
export function refuseSource(request: IncomingMessage, rules: AccessRules): Refusal | null {
  const { host = '', origin } = request.headers;
  const name = host.replace(/:\d+$/, '').toLowerCase();
  if (!LOOPBACK_NAMES.has(name) && name !== rules.host.toLowerCase() && name !== wildcardAddress(request, rules)) {
    return {
      status: 403,
      message: `Host "${host}" is not this daemon's: use ${rules.host}:${rules.port} or a loopback name.`,
    };
  }
  if (origin === undefined || origin === `http://${host}` || rules.allowOrigins.includes(origin)) return null;
  return {
    status: 403,
    message: `Origin "${origin}" is not allowed: start the daemon with --allow-origin ${origin} if it is yours.`,
  };
}

/** Browsers ask whether they may send before they do, and keep the answer for so long. */
const PREFLIGHT_SECONDS = 600;

/**
 * The headers that a browser needs before it hands a reply to a page of an allowed origin, and whether it asks for them only. There
 * are none for any other origin, and the daemon's own pages need none.
 */
export function crossOrigin(
  { method, headers }: IncomingMessage,
  { allowOrigins }: AccessRules,
): { readonly headers: Readonly<Record<string, string>>; readonly isPreflight: boolean } {
  const { origin } = headers;
  if (origin === undefined || !allowOrigins.includes(origin)) return { headers: {}, isPreflight: false };
  const allowed = { 'access-control-allow-origin': origin, vary: 'Origin' };
  if (method !== 'OPTIONS' || headers['access-control-request-method'] === undefined)
    return { headers: allowed, isPreflight: false };
  return {
    headers: {
      ...allowed,
      'access-control-allow-methods': 'GET, HEAD, POST, PUT',
      // Clients, OpenAI's own among them, add headers that differ. All of them may be sent, as nothing but the token is trusted.
      'access-control-allow-headers': headers['access-control-request-headers'] ?? '',
      'access-control-max-age': String(PREFLIGHT_SECONDS),
    },
    isPreflight: true,
  };
}

/** When the daemon is bound to every address of the machine, its own address is the one by which the request came. */
function wildcardAddress({ socket }: IncomingMessage, { host }: AccessRules): string | null {
  if (host !== '0.0.0.0' && host !== '[::]') return null;
  const address = (socket.localAddress ?? '').replace(/^::ffff:/, '');
  return isIPv6(address) ? `[${address}]` : address;
}

/** Why a request's token is refused, null when it is right. */
export function refuseToken(request: IncomingMessage, rules: AccessRules): Refusal | null {
  const offered = bearerToken(request);
  if (offered === null)
    return { status: 401, message: 'No token: send "Authorization: Bearer <token>" with the token in DATA/token.' };
  return sameToken(offered, rules.token)
    ? null
    : { status: 401, message: 'Wrong token: the right one is in DATA/token.' };
}

function bearerToken({ headers }: IncomingMessage): string | null {
  const bearer = /^Bearer\s+(\S+)\s*$/i.exec(headers.authorization ?? '')?.[1];
  if (bearer !== undefined) return bearer;
  const protocols = (headers['sec-websocket-protocol'] ?? '').split(',').map((protocol) => protocol.trim());
  const offered = protocols.find((protocol) => protocol.startsWith(BEARER_SUBPROTOCOL_PREFIX));
  return offered?.slice(BEARER_SUBPROTOCOL_PREFIX.length) ?? null;
}

/** Digests have one length, whatever was offered, so the comparison always takes the same time. */
function sameToken(a: string, b: string): boolean {
  const digest = (text: string): Buffer => createHash('sha256').update(text).digest();
  return timingSafeEqual(digest(a), digest(b));
}
