// A binary frame of the monitor, as docs/monitor.md describes it: JSON, then arrays.

const TYPES = { f4: Float32Array, f8: Float64Array, u2: Uint16Array };

/** The frame's JSON, its `blocks` by name: {values, shape}. */
export function decode(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  const blocks = {};
  for (const [name, type, shape] of head.blocks) {
    const size = shape.reduce((a, b) => a * b, 1) * TYPES[type].BYTES_PER_ELEMENT;
    blocks[name] = { values: new TYPES[type](buffer.slice(at, at + size)), shape };
    at += size;
  }
  return { ...head, blocks };
}
