/**
 * Files of this machine that are sent along with a task: selection, manifest, upload.
 *
 * Small files are hashed here, so that only files that the node lacks are sent. WebCrypto
 * cannot hash in pieces, and a large file should not be in memory as a whole, so the node
 * returns the digest of large files.
 */

import { ApiError, post, upload } from "./api.js";
import { visible } from "./format.js";

export const ENTRIES_MAX = 100_000;
const MANIFEST_BYTES_MAX = 16 << 20;
const PATH_BYTES_MAX = 4096;
const NAME_BYTES_MAX = 255;
const PACKED_BYTES_MAX = 1 << 20; //: larger files are sent alone
const PACK_BYTES = 8 << 20; //: of one request
const ASKED_MAX = 10_000;
const HASHED_AT_ONCE = 32;
const REPLICATE_MS = 600_000;
const SECRET = /^(\.env(?!\.(example|sample|template|dist)$)(\..+)?|id_(rsa|dsa|ecdsa|ed25519)(_sk)?|.*\.(pem|key|p12|pfx|jks|keystore|kdbx|ppk)|\.(netrc|pgpass|npmrc|pypirc)|\.git-credentials|credentials(\.json)?|\.htpasswd|\.vault_pass|secrets?\.(ya?ml|json|toml|ini)|.*\.tfstate)$/i;

const encoder = new TextEncoder();
/** Digests of large files that this page has sent. @type {WeakMap<File, string>} */
const sentBefore = new WeakMap();

/** The reason why a file cannot be sent, with a hint. */
export class Unsendable extends Error {
  constructor(text, hint) {
    super(text);
    this.hint = hint;
  }
}

/**
 * @typedef {object} Tree
 * @property {Map<string, File>} files By path.
 * @property {Set<string>} folders Empty ones.
 * @property {boolean} hasSkipped `.git` was left out.
 */

/** @returns {Tree} */
export const noTree = () => ({ files: new Map(), folders: new Set(), hasSkipped: false });

/** Returns the union of two trees; throws if both have the same name at the top. */
export function joined(tree, more) {
  const has = names(tree);
  for (const name of names(more)) {
    if (has.has(name)) throw new Unsendable(`${visible(name)} was already added.`, "Remove it first, or rename the other one.");
  }
  const files = new Map([...tree.files, ...more.files]);
  const folders = new Set([...tree.folders, ...more.folders]);
  checkCount(files.size + folders.size);
  return { files, folders, hasSkipped: tree.hasSkipped || more.hasSkipped };
}

/** The names at the top of a tree. */
export function names({ files, folders }) {
  return new Set([...files.keys(), ...folders].map((path) => path.split("/", 1)[0]));
}

/** Returns a tree without one name at its top. */
export function without({ files, folders, hasSkipped }, name) {
  const isOther = (path) => path !== name && !path.startsWith(`${name}/`);
  return { files: new Map([...files].filter(([path]) => isOther(path))), folders: new Set([...folders].filter(isOther)), hasSkipped };
}

/** Paths of files whose names look like secrets. */
export const secretsIn = ({ files }) => [...files.keys()].filter((path) => SECRET.test(path.split("/").at(-1)));

/** Returns the files of an `<input type="file">`, or of one for folders. */
export function treeOfInput(list) {
  const tree = noTree();
  for (const file of list) addFile(tree, file.webkitRelativePath || file.name, file);
  return tree;
}

/** Returns dropped files and folders. The entries must be read from the event before it ends. */
export async function treeOfEntries(entries) {
  const tree = noTree();
  const ahead = [...entries];
  while (ahead.length > 0) {
    const entry = ahead.pop();
    const path = entry.fullPath.slice(1);
    if (entry.isFile) {
      addFile(tree, path, await asked(path, (done, failed) => entry.file(done, failed)));
      continue;
    }
    if (isGit(entry.name)) {
      tree.hasSkipped = true;
      continue;
    }
    const below = await childrenOf(entry, path);
    if (below.length === 0) addPath(tree, path, () => tree.folders.add(path));
    checkCount(tree.files.size + tree.folders.size + ahead.length + below.length);
    ahead.push(...below);
  }
  return tree;
}

/** Browsers list a folder in parts. */
async function childrenOf(folder, path) {
  const reader = folder.createReader();
  const children = [];
  for (;;) {
    const some = await asked(path, (done, failed) => reader.readEntries(done, failed));
    if (some.length === 0) return children;
    children.push(...some);
    checkCount(children.length);
  }
}

async function asked(path, ask) {
  try {
    return await new Promise(ask);
  } catch (problem) {
    throw unreadable(path, problem);
  }
}

const unreadable = (path, { name }) =>
  new Unsendable(`${visible(path)} cannot be read (${name}).`, "It was changed or deleted, or you have no permission. Remove it here and add it again.");

const isGit = (name) => name.toLowerCase() === ".git";

function addFile(tree, path, file) {
  if (path.split("/").some(isGit)) tree.hasSkipped = true;
  else addPath(tree, path, () => tree.files.set(path, file));
}

function addPath(tree, path, add) {
  const parts = path.split("/").map((part) => encoder.encode(part).length);
  if (Math.max(...parts) > NAME_BYTES_MAX || encoder.encode(path).length > PATH_BYTES_MAX) {
    throw new Unsendable(`The name ${visible(path).slice(0, 80)}… is too long.`, `At most ${NAME_BYTES_MAX} bytes for a name and ${PATH_BYTES_MAX} for a path are allowed.`);
  }
  add();
  checkCount(tree.files.size + tree.folders.size);
}

function checkCount(many) {
  if (many > ENTRIES_MAX) throw new Unsendable(`There are more than ${ENTRIES_MAX.toLocaleString()} files.`, "Send fewer files, or one archive.");
}

/**
 * Sends a tree to the node of this page, which copies it to the nodes that store the task.
 * @param {Tree} tree
 * @param {{signal: AbortSignal, tell: (progress: {text: string, sent: number, of: number}) => void}} how
 * @returns {Promise<{sha256: string, node: string}>} The reference in a task.
 */
export async function sendTree(tree, { signal, tell }) {
  const sending = new Sending(tree, signal, tell);
  return sending.run();
}

class Sending {
  /** @type {Map<string, string>} Digests by path. */
  #digests = new Map();
  #node = "";
  #sentBytes = 0;
  #ofBytes = 0;

  constructor(tree, signal, tell) {
    this.tree = tree;
    this.signal = signal;
    this.tell = tell;
  }

  async run() {
    await this.#hash();
    await this.#send(await this.#missing());
    const manifest = encodeManifest(this.tree, this.#digests);
    if (manifest.length > MANIFEST_BYTES_MAX) throw new Unsendable("The list of files is too long.", "Send fewer files, or one archive.");
    const sha256 = await digestOf(manifest);
    await upload(`/api/v1/files/${sha256}`, new Blob([manifest]), { signal: this.signal, progress: () => {} });
    this.#say("Copying the files to other nodes");
    const sent = { sha256, node: this.#node };
    await post("/api/v1/files/replicate", sent, { quiet: true, signal: this.signal, timeoutMs: REPLICATE_MS });
    return sent;
  }

  #say(text, part = this.#sentBytes) {
    this.tell({ text, sent: part, of: this.#ofBytes });
  }

  /** Hashes small files, a few at a time. */
  async #hash() {
    const small = [...this.tree.files].filter(([, file]) => file.size <= PACKED_BYTES_MAX);
    for (let at = 0; at < small.length; at += HASHED_AT_ONCE) {
      this.signal.throwIfAborted();
      this.#say(`Reading ${Math.min(at + HASHED_AT_ONCE, small.length)} of ${small.length} files`);
      await Promise.all(small.slice(at, at + HASHED_AT_ONCE).map(async ([path, file]) => {
        this.#digests.set(path, await digestOfFile(path, file));
      }));
    }
    for (const [path, file] of this.tree.files) {
      const known = sentBefore.get(file);
      if (known !== undefined) this.#digests.set(path, known);
    }
  }

  /** Returns the digests that the node lacks. */
  async #missing() {
    const known = [...new Set(this.#digests.values())];
    const missing = new Set();
    for (let at = 0; at === 0 || at < known.length; at += ASKED_MAX) {
      const asked = { sha256: known.slice(at, at + ASKED_MAX) };
      const answer = await post("/api/v1/files/missing", asked, { quiet: true, signal: this.signal });
      this.#node = answer.node;
      for (const digest of answer.missing) missing.add(digest);
    }
    return missing;
  }

  async #send(missing) {
    const once = new Map(); // Equal files are sent once.
    const alone = [];
    for (const [path, file] of this.tree.files) {
      const digest = this.#digests.get(path);
      if (digest !== undefined && !missing.has(digest)) continue;
      if (file.size > PACKED_BYTES_MAX) alone.push([path, file]);
      else once.set(digest, [path, file]);
    }
    const files = [...alone, ...once.values()];
    this.#ofBytes = files.reduce((sum, [, file]) => sum + file.size, 0);
    for (const pack of packsOf(once)) await this.#sendPack(pack);
    for (const [path, file] of alone) {
      const { sha256 } = await this.#upload("/api/v1/files", file, file.size, visible(path), [[path, file]]);
      sentBefore.set(file, sha256);
      this.#digests.set(path, sha256);
    }
  }

  async #sendPack(pack) {
    const parts = pack.flatMap(([digest, [, file]]) => [packHeader(digest, file.size), file]);
    const size = pack.reduce((sum, [, [, file]]) => sum + file.size, 0);
    const text = pack.length === 1 ? visible(pack[0][1][0]) : `${pack.length} small files`;
    await this.#upload("/api/v1/files/pack", new Blob(parts), size, text, pack.map(([, one]) => one));
  }

  async #upload(path, body, size, text, files) {
    this.#say(`Sending ${text}`);
    const progress = (sent) => this.#say(`Sending ${text}`, this.#sentBytes + Math.min(sent, size));
    try {
      const answer = await upload(path, body, { signal: this.signal, progress });
      this.#sentBytes += size;
      return answer;
    } catch (problem) {
      if (problem instanceof ApiError) await this.#checkUnchanged(files);
      throw problem;
    }
  }

  /** Throws an error if a file has changed, which no node can detect. */
  async #checkUnchanged(files) {
    for (const [path, file] of files) {
      const expected = file.size <= PACKED_BYTES_MAX ? this.#digests.get(path) : undefined;
      if (expected === undefined) await read(path, file.slice(0, 1));
      else if ((await digestOfFile(path, file)) !== expected) throw unreadable(path, { name: "it changed" });
    }
  }
}

/** Yields small files in groups of about `PACK_BYTES`. @param {Map<string, [string, File]>} once */
function* packsOf(once) {
  let pack = [];
  let size = 0;
  for (const one of once) {
    if (pack.length > 0 && size + one[1][1].size > PACK_BYTES) {
      yield pack;
      pack = [];
      size = 0;
    }
    pack.push(one);
    size += one[1][1].size;
  }
  if (pack.length > 0) yield pack;
}

/** The header of a file in a pack: its digest, and its size in four bytes. */
function packHeader(digest, size) {
  const header = new Uint8Array(36);
  header.set(bytesOf(digest));
  new DataView(header.buffer).setUint32(32, size);
  return header;
}

async function read(path, blob) {
  try {
    return await blob.arrayBuffer();
  } catch (problem) {
    throw unreadable(path, problem);
  }
}

const digestOfFile = async (path, file) => digestOf(await read(path, file));

async function digestOf(data) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const bytesOf = (hex) => Uint8Array.from({ length: hex.length / 2 }, (_, at) => parseInt(hex.slice(2 * at, 2 * at + 2), 16));

/**
 * The manifest of a tree, in msgpack: files, links (browsers show none) and empty
 * folders, sorted by path. @param {Map<string, string>} digests by path
 */
export function encodeManifest({ files, folders }, digests) {
  const sorted = [...files].sort(([one], [other]) => byCodePoint(one, other));
  const parts = [array(3), array(sorted.length)];
  for (const [path, file] of sorted) {
    const mtime = BigInt(file.lastModified) * 1_000_000n;
    // Browsers do not say whether a file is executable.
    parts.push(array(5), text(path), [0xc4, 32], bytesOf(digests.get(path)), integer(BigInt(file.size)), integer(mtime), [0xc2]);
  }
  parts.push(array(0), array(folders.size));
  for (const path of [...folders].sort(byCodePoint)) parts.push(text(path));
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** The order that nodes use; that of JavaScript differs if a character has two units. */
function byCodePoint(one, other) {
  const least = Math.min(one.length, other.length);
  for (let at = 0; at < least; at += 1) {
    const a = one.charCodeAt(at);
    const b = other.charCodeAt(at);
    if (a !== b) return rank(a) - rank(b);
  }
  return one.length - other.length;
}

/** A surrogate is part of a character above all that have one unit. */
const rank = (unit) => (unit >= 0xd800 && unit <= 0xdfff ? unit + 0x10000 : unit);

const big = (many, size) => Array.from({ length: size }, (_, at) => Number((BigInt(many) >> BigInt(8 * (size - 1 - at))) & 0xffn));
const array = (many) => (many < 16 ? [0x90 | many] : many < 0x10000 ? [0xdc, ...big(many, 2)] : [0xdd, ...big(many, 4)]);

function text(value) {
  const data = encoder.encode(value);
  const { length } = data;
  const head = length < 32 ? [0xa0 | length] : length < 0x100 ? [0xd9, length] : [0xda, ...big(length, 2)];
  return Uint8Array.from([...head, ...data]);
}

/** Integers take as few bytes as possible, so that equal trees have equal manifests. */
function integer(value) {
  if (value >= -0x20n && value < 0x80n) return big(value, 1);
  const isSigned = value < 0n;
  const fits = (size) => (isSigned ? BigInt.asIntN(8 * size, value) : BigInt.asUintN(8 * size, value)) === value;
  const at = [1, 2, 4, 8].findIndex(fits);
  return [(isSigned ? 0xd0 : 0xcc) + at, ...big(value, 1 << at)];
}
