/**
 * The part of the ONNX protobuf schema (onnx/onnx.proto3) that a traced graph needs, with its field names and numbers.
 */
import protobuf from 'protobufjs/light.js';

const message = (fields: Record<string, [id: number, type: string, rule?: 'repeated']>): protobuf.IType => ({
  fields: Object.fromEntries(
    Object.entries(fields).map(([name, [id, type, rule]]) => [name, { id, type, ...(rule && { rule }) }]),
  ),
});

const schema: protobuf.INamespace = {
  nested: {
    OperatorSetIdProto: message({ domain: [1, 'string'], version: [2, 'int64'] }),
    TensorProto: message({
      dims: [1, 'int64', 'repeated'],
      dataType: [2, 'int32'],
      name: [8, 'string'],
      rawData: [9, 'bytes'],
    }),
    DimensionProto: message({ dimValue: [1, 'int64'] }),
    TensorShapeProto: message({ dim: [1, 'DimensionProto', 'repeated'] }),
    TensorTypeProto: message({ elemType: [1, 'int32'], shape: [2, 'TensorShapeProto'] }),
    TypeProto: message({ tensorType: [1, 'TensorTypeProto'] }),
    ValueInfoProto: message({ name: [1, 'string'], type: [2, 'TypeProto'] }),
    AttributeProto: message({
      name: [1, 'string'],
      i: [3, 'int64'],
      ints: [8, 'int64', 'repeated'],
      type: [20, 'int32'],
    }),
    NodeProto: message({
      input: [1, 'string', 'repeated'],
      output: [2, 'string', 'repeated'],
      opType: [4, 'string'],
      attribute: [5, 'AttributeProto', 'repeated'],
      domain: [7, 'string'],
    }),
    GraphProto: message({
      node: [1, 'NodeProto', 'repeated'],
      name: [2, 'string'],
      initializer: [5, 'TensorProto', 'repeated'],
      input: [11, 'ValueInfoProto', 'repeated'],
      output: [12, 'ValueInfoProto', 'repeated'],
    }),
    ModelProto: message({
      irVersion: [1, 'int64'],
      producerName: [2, 'string'],
      graph: [7, 'GraphProto'],
      opsetImport: [8, 'OperatorSetIdProto', 'repeated'],
    }),
  },
};

/** The message of an ONNX model. */
export const ModelProto = protobuf.Root.fromJSON(schema).lookupType('ModelProto');

/** TensorProto.DataType */
export const ElementType = { FLOAT: 1, INT64: 7 } as const;
/** AttributeProto.AttributeType */
export const AttributeType = { INT: 2, INTS: 7 } as const;
