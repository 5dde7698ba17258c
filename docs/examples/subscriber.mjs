// Prints one array of what `rtdsae serve` publishes, a line a bin. Written from docs/wire.md alone; needs Node and `npm install zeromq@6`.
//
//     node subscriber.mjs tcp://127.0.0.1:5556 factors every          every bin, holes told
//     node subscriber.mjs tcp://127.0.0.1:5556 factors newest 1000    always the newest bin; ends after 1000
//
// A line is `seq t_bin flags value value ...`, on stdout; whatever else there is to say goes to stderr.
import { createHash } from "node:crypto";
import { Subscriber } from "zeromq";

const HEADER = 64;
const VERSION = 1;
const SHOWN = 8;
const FLAGS = ["gap", "anchored", "late", "swapped", "backfill"];
const LATENTS = Buffer.from("latents\0");
const SCHEMA = Buffer.from("schema\0\0");

const hex = (id) => id.toString(16).padStart(8, "0");

/** Where the wanted array lies in the payload of the bins of one schema; no values where they do not have it. */
function readSchema(json, wanted, known) {
  const schema = { id: createHash("sha256").update(json).digest().readUInt32LE(0), first: 0, values: 0, count: 0 };
  if (schema.id === known?.id) return known;
  for (const { name, shape } of JSON.parse(json.toString("utf8")).arrays) {
    const values = shape.reduce((product, length) => product * length, 1);
    if (name === wanted) Object.assign(schema, { first: schema.count, values });
    schema.count += values;
  }
  if (!schema.values) console.error(`schema ${hex(schema.id)} has no array ${wanted}`);
  return schema;
}

/** The header of a bin, or null where the frame is none. */
function readHeader(frame) {
  if (frame.length < HEADER || frame.readUInt16LE(8) !== VERSION) return null;
  const count = frame.readUInt32LE(60);
  if (frame.length !== HEADER + 4 * count) return null;
  return {
    flags: frame.readUInt16LE(10),
    run: frame.readUInt32LE(12),
    seq: frame.readBigUInt64LE(16),
    tBin: frame.readDoubleLE(32),
    schema: frame.readUInt32LE(56),
    count,
  };
}

const [endpoint, array, mode, bins] = process.argv.slice(2);
if (!endpoint || !array || !["every", "newest"].includes(mode)) {
  console.error("usage: node subscriber.mjs ENDPOINT ARRAY every|newest [BINS]");
  process.exit(2);
}
// A daemon's computer that fails says no goodbye: ask it for a sign of life, and else connect anew.
const OPTIONS = {
  linger: 0,
  tcpKeepalive: 1,
  tcpKeepaliveIdle: 2,
  tcpKeepaliveInterval: 1,
  tcpKeepaliveCount: 3,
  connectTimeout: 2000,
};
let left = bins === undefined ? Infinity : Number(bins);
let schema = null;
let last = null;
let asked = 0;

// Every bin: schemas and bins on one socket, in the order in which they were sent. The newest bin: a socket that
// conflates keeps one message of whatever kind, so that schemas need another.
const binSocket = new Subscriber({ conflate: mode === "newest", ...OPTIONS });
const schemaSocket = mode === "newest" ? new Subscriber(OPTIONS) : binSocket;
const sockets = new Set([schemaSocket, binSocket]);
for (const socket of sockets) socket.connect(endpoint);
schemaSocket.subscribe(SCHEMA);
binSocket.subscribe(LATENTS);

function askForSchema() {
  if (Date.now() - asked < 1000) return; // once a second is enough
  asked = Date.now();
  schemaSocket.unsubscribe(SCHEMA);
  schemaSocket.subscribe(SCHEMA);
}

/** Tells restarts and holes; false for a bin that came before. */
function follow({ run, seq }) {
  if (last && run !== last.run) console.error(`the daemon restarted: run ${hex(run)}`);
  const due = !last ? seq : run === last.run ? last.seq + 1n : 0n;
  if (mode === "every" && seq > due) console.error(`${seq - due} bins are missing before seq ${seq}`);
  if (seq < due) {
    console.error(`seq ${seq} is passed over: it came before`);
    return false;
  }
  last = { run, seq };
  return true;
}

function takeBin(frame) {
  const header = readHeader(frame);
  if (!header) {
    console.error(`a frame of ${frame.length} bytes that is no bin of version ${VERSION} is passed over`);
    return;
  }
  if (!follow(header)) return;
  if (schema?.id !== header.schema || schema.count !== header.count) {
    console.error(`seq ${header.seq} is passed over: its schema ${hex(header.schema)} has not come`);
    askForSchema();
  } else if (schema.values) {
    const flags = FLAGS.filter((_, bit) => (header.flags >> bit) & 1).join("+") || "-";
    const shown = Math.min(schema.values, SHOWN);
    const values = Array.from({ length: shown }, (_, i) => frame.readFloatLE(HEADER + 4 * (schema.first + i)));
    console.log(`${header.seq} ${header.tBin.toFixed(9)} ${flags} ${values.join(" ")}`);
    left -= 1;
  }
}

function takeFrame(frame) {
  const topic = frame.subarray(0, 8);
  if (topic.equals(LATENTS)) takeBin(frame);
  else if (topic.equals(SCHEMA)) {
    try {
      schema = readSchema(frame.subarray(8), array, schema);
    } catch (error) {
      console.error(`a schema that cannot be read is passed over: ${error.message}`);
    }
  }
}

async function read(socket) {
  for await (const [frame] of socket) {
    if (left > 0) takeFrame(frame);
    if (left <= 0) for (const each of sockets) each.close();
  }
}

await Promise.all([...sockets].map(read));
