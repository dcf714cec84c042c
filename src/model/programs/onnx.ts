// Writes a Graph as an ONNX ModelProto. The messages are the part of onnx.proto3 that the programs use, declared by field
// number, and protobufjs encodes them. Nothing here reads ONNX.

import protobuf from 'protobufjs/light.js';
import { OPSET, MICROSOFT, type Attribute, type Constant, type ElementType, type Graph } from './graph.ts';
import { leb128 } from './leb128.ts';
import { DTYPE_BYTES } from '../tensors.ts';

const IR_VERSION = 9;
const ELEMENT_TYPE: Readonly<Record<ElementType, number>> = { float32: 1, uint8: 2, int64: 7 };
const ATTRIBUTE_TYPE = { float: 1, int: 2, string: 3, ints: 7 } as const;
/** The value of a tensor's dataLocation whose data lie outside the message. */
const EXTERNAL = 1;

const root = protobuf.Root.fromJSON({
  nested: {
    ModelProto: {
      fields: {
        irVersion: { type: 'int64', id: 1 },
        producerName: { type: 'string', id: 2 },
        graph: { type: 'GraphProto', id: 7 },
        opsetImport: { rule: 'repeated', type: 'OperatorSetIdProto', id: 8 },
      },
    },
    OperatorSetIdProto: { fields: { domain: { type: 'string', id: 1 }, version: { type: 'int64', id: 2 } } },
    GraphProto: {
      fields: {
        node: { rule: 'repeated', type: 'NodeProto', id: 1 },
        name: { type: 'string', id: 2 },
        initializer: { rule: 'repeated', type: 'TensorProto', id: 5 },
        input: { rule: 'repeated', type: 'ValueInfoProto', id: 11 },
        output: { rule: 'repeated', type: 'ValueInfoProto', id: 12 },
      },
    },
    NodeProto: {
      fields: {
        input: { rule: 'repeated', type: 'string', id: 1 },
        output: { rule: 'repeated', type: 'string', id: 2 },
        opType: { type: 'string', id: 4 },
        attribute: { rule: 'repeated', type: 'AttributeProto', id: 5 },
        domain: { type: 'string', id: 7 },
      },
    },
    AttributeProto: {
      fields: {
        name: { type: 'string', id: 1 },
        f: { type: 'float', id: 2 },
        i: { type: 'int64', id: 3 },
        s: { type: 'bytes', id: 4 },
        ints: { rule: 'repeated', type: 'int64', id: 8, options: { packed: true } },
        type: { type: 'int32', id: 20 },
      },
    },
    TensorProto: {
      fields: {
        dims: { rule: 'repeated', type: 'int64', id: 1, options: { packed: true } },
        dataType: { type: 'int32', id: 2 },
        name: { type: 'string', id: 8 },
        rawData: { type: 'bytes', id: 9 },
        externalData: { rule: 'repeated', type: 'StringStringEntryProto', id: 13 },
        dataLocation: { type: 'int32', id: 14 },
      },
    },
    StringStringEntryProto: { fields: { key: { type: 'string', id: 1 }, value: { type: 'string', id: 2 } } },
    ValueInfoProto: { fields: { name: { type: 'string', id: 1 }, type: { type: 'TypeProto', id: 2 } } },
    TypeProto: {
      fields: { tensorType: { type: 'TensorTypeProto', id: 1 }, sequenceType: { type: 'SequenceTypeProto', id: 4 } },
    },
    SequenceTypeProto: { fields: { elemType: { type: 'TypeProto', id: 1 } } },
    TensorTypeProto: { fields: { elemType: { type: 'int32', id: 1 }, shape: { type: 'TensorShapeProto', id: 2 } } },
    TensorShapeProto: { fields: { dim: { rule: 'repeated', type: 'DimensionProto', id: 1 } } },
    DimensionProto: { fields: { dimValue: { type: 'int64', id: 1 }, dimParam: { type: 'string', id: 2 } } },
  },
});
const ModelProto = root.lookupType('ModelProto');
const GraphProto = root.lookupType('GraphProto');
const TensorProto = root.lookupType('TensorProto');
const [GRAPH_FIELD, INITIALIZER_FIELD, RAW_DATA_FIELD] = [7, 5, 9];

function attribute(name: string, value: Attribute): Record<string, unknown> {
  if (typeof value === 'number') return { name, i: value, type: ATTRIBUTE_TYPE.int };
  if (typeof value === 'string') return { name, s: new TextEncoder().encode(value), type: ATTRIBUTE_TYPE.string };
  if ('float' in value) return { name, f: value.float, type: ATTRIBUTE_TYPE.float };
  return { name, ints: value, type: ATTRIBUTE_TYPE.ints };
}

const bytesOf = ({ data }: Constant): Uint8Array => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

/** The fields that hold a tensor's values, or that say that the values lie beside the message under the tensor's own name. */
function valuesOf(constant: Constant, isBeside: boolean): Record<string, unknown> {
  if (!isBeside) return { rawData: bytesOf(constant) };
  const entries = { location: constant.name, offset: '0', length: String(constant.data.byteLength) };
  return { dataLocation: EXTERNAL, externalData: Object.entries(entries).map(([key, value]) => ({ key, value })) };
}

/**
 * Returns a GraphProto. The nodes and outputs of `first` stand before the graph's own. The values of the constants in `beside`
 * lie outside the message.
 */
function graphMessage(
  graph: Graph,
  {
    first = { node: [], output: [] },
    beside = new Set(),
  }: {
    readonly first?: { readonly node: readonly object[]; readonly output: readonly object[] };
    readonly beside?: ReadonlySet<Constant>;
  } = {},
): Record<string, unknown> {
  return {
    name: graph.name,
    node: [
      ...first.node,
      ...graph.nodes.map((node) => ({
        input: node.inputs,
        output: node.outputs,
        opType: node.op,
        domain: node.domain,
        attribute: Object.entries(node.attributes).map(([name, value]) => attribute(name, value)),
      })),
    ],
    initializer: graph.constants.map((constant) => ({
      name: constant.name,
      dims: constant.dims,
      dataType: ELEMENT_TYPE[constant.type],
      ...valuesOf(constant, beside.has(constant)),
    })),
    input: graph.inputs.map(({ name, type, dims }) => ({
      name,
      type: {
        tensorType: {
          elemType: ELEMENT_TYPE[type],
          shape: { dim: dims.map((dim) => (typeof dim === 'number' ? { dimValue: dim } : { dimParam: dim })) },
        },
      },
    })),
    output: [
      ...first.output,
      ...graph.outputs.map(({ name, type }) => ({ name, type: { tensorType: { elemType: ELEMENT_TYPE[type] } } })),
    ],
  };
}

const MODEL_FIELDS = {
  irVersion: IR_VERSION,
  producerName: 'gptd',
  opsetImport: [
    { domain: '', version: OPSET },
    { domain: MICROSOFT, version: 1 },
  ],
};

/** Constants of at least so many bytes are kept beside the message, where the engine's checks of shapes need not read them. */
const BESIDE_BYTES_MIN = 4096;

/**
 * Returns a ModelProto for ONNX Runtime, and beside it the large constants by their names, which ONNX Runtime copies from where
 * they are. The program gets one more output before the others, called `emptySequence`: an empty sequence of tensors.
 */
export function encodeOnnxBeside(
  graph: Graph,
  { emptySequence }: { readonly emptySequence: string },
): { readonly model: Uint8Array; readonly beside: readonly { readonly path: string; readonly data: Uint8Array }[] } {
  const large = graph.constants.filter(({ data }) => data.byteLength >= BESIDE_BYTES_MIN);
  const type = { sequenceType: { elemType: { tensorType: { elemType: ELEMENT_TYPE.float32 } } } };
  const first = {
    node: [{ opType: 'SequenceEmpty', input: [], output: [emptySequence] }],
    output: [{ name: emptySequence, type }],
  };
  const message = { ...MODEL_FIELDS, graph: graphMessage(graph, { first, beside: new Set(large) }) };
  return {
    model: ModelProto.encode(message).finish(),
    beside: large.map((constant) => ({ path: constant.name, data: bytesOf(constant) })),
  };
}

/** The bytes of the largest message that readers accept. */
export const ONNX_BYTES_MAX = 2 ** 31 - 1;

/**
 * Returns a ModelProto in pieces, for a model whose weights do not fit in memory at once. The inputs that `weights` names become
 * constants, and `piecesOf` yields the little-endian values of one tensor. `sizeBytes` is the length of the whole message, which
 * no reader accepts above ONNX_BYTES_MAX. A message's fields may stand in any order, so the weights come last.
 */
export function encodeOnnxInPieces(
  graph: Graph,
  { weights, piecesOf }: { weights: ReadonlySet<string>; piecesOf: (name: string) => Iterable<Uint8Array> },
): { readonly sizeBytes: number; readonly pieces: Iterable<Uint8Array> } {
  const tensors = graph.inputs
    .filter(({ name }) => weights.has(name))
    .map(({ name, type, dims }) => {
      const rawBytes = DTYPE_BYTES.float32 * dims.reduce<number>((product, length) => product * Number(length), 1);
      const fields = TensorProto.encode({ name, dims, dataType: ELEMENT_TYPE[type] }).finish();
      const head = Buffer.concat([fields, lengthPrefix(RAW_DATA_FIELD, rawBytes)]);
      const frame = Buffer.concat([lengthPrefix(INITIALIZER_FIELD, head.length + rawBytes), head]);
      return { name: name, frame, sizeBytes: frame.length + rawBytes };
    });
  const rest = GraphProto.encode(
    graphMessage({ ...graph, inputs: graph.inputs.filter(({ name }) => !weights.has(name)) }),
  ).finish();
  const graphBytes = tensors.reduce((sum, { sizeBytes }) => sum + sizeBytes, rest.length);
  const begin = Buffer.concat([ModelProto.encode(MODEL_FIELDS).finish(), lengthPrefix(GRAPH_FIELD, graphBytes), rest]);
  function* pieces(): Generator<Uint8Array> {
    yield begin;
    for (const { name, frame } of tensors) {
      yield frame;
      yield* piecesOf(name);
    }
  }
  return { sizeBytes: begin.length - rest.length + graphBytes, pieces: pieces() };
}

/** The tag and the length that precede a field of bytes or of a nested message. */
const lengthPrefix = (field: number, length: number): Uint8Array =>
  Uint8Array.from([(field << 3) | 2, ...leb128(length)]);
