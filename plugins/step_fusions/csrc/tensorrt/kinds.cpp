// The table of kinds: fields, shapes and calls of each.
#include "call.h"
#include "fusion.h"

namespace lineahead::fusions {

using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::IExprBuilder;
using nvinfer1::PluginTensorDesc;

namespace {

int32_t type_of(const PluginTensorDesc& port) {
  using nvinfer1::DataType;
  return port.type == DataType::kFLOAT ? cuda::kFloat : port.type == DataType::kHALF ? cuda::kHalf : cuda::kBFloat16;
}

int32_t last(const Dims& dims) { return dims.nbDims ? static_cast<int32_t>(dims.d[dims.nbDims - 1]) : 0; }

// Rows before the last axis.
int32_t rows(const Dims& dims) {
  int64_t count = 1;
  for (int32_t i = 0; i + 1 < dims.nbDims; ++i) count *= dims.d[i];
  return static_cast<int32_t>(count);
}

bool has_shape(const char* name, const Dims& dims, const std::vector<int64_t>& wanted, std::string& error) {
  bool same = dims.nbDims == static_cast<int32_t>(wanted.size());
  for (int32_t i = 0; same && i < dims.nbDims; ++i) same = dims.d[i] == wanted[i];
  if (same) return true;
  error = std::string(name) + " has shape [";
  for (int32_t i = 0; i < dims.nbDims; ++i) error += (i ? ", " : "") + std::to_string(dims.d[i]);
  error += "], not [";
  for (size_t i = 0; i < wanted.size(); ++i) error += (i ? ", " : "") + std::to_string(wanted[i]);
  error += "]";
  return false;
}

template <typename Call>
bool enqueue(int (*function)(const Call*, void*, char*, size_t), const Call& call, void* stream, std::string& error) {
  char message[256] = {};
  if (!function(&call, stream, message, sizeof message)) return true;
  return error = message, false;
}

bool settle_none(const Values&, std::string&) { return true; }

bool settle_norm(const Values& values, std::string& error) {
  if (values[0].real >= 0) return true;
  return error = "epsilon is negative", false;
}

DimsExprs norm_shape(const Values&, int32_t, const DimsExprs* inputs, IExprBuilder&) { return inputs[0]; }

template <bool kAdds>
bool run_norm(const Values& values, const Operands& operands, std::string& error) {
  const Dims& dims = operands.descriptions[0].dims;
  if (kAdds && !has_shape("residual", operands.descriptions[1].dims, {dims.d, dims.d + dims.nbDims}, error)) return false;
  if (!has_shape("weight", operands.descriptions[kAdds ? 2 : 1].dims, {last(dims)}, error)) return false;
  Norm call{};
  call.type = type_of(operands.descriptions[0]), call.rows = rows(dims), call.width = last(dims), call.epsilon = values[0].real;
  call.x = operands.inputs[0], call.residual = kAdds ? static_cast<const float*>(operands.inputs[1]) : nullptr;
  call.weight = static_cast<const float*>(operands.inputs[kAdds ? 2 : 1]);
  call.normed = operands.outputs[0], call.total = kAdds ? static_cast<float*>(operands.outputs[1]) : nullptr;
  return enqueue(lineahead_rms_norm, call, operands.stream, error);
}

enum RotaryField { kHeads, kKvHeads, kHeadDim };

bool settle_rotary(const Values& values, std::string& error) {
  const int32_t dim = values[kHeadDim].number;
  if (values[kHeads].number > 0 && values[kKvHeads].number > 0 && dim > 0 && dim % 2 == 0) return true;
  return error = "heads, kv_heads or head_dim is out of range", false;
}

DimsExprs rotary_shape(const Values& values, int32_t output, const DimsExprs* inputs, IExprBuilder& builder) {
  DimsExprs dims{};
  if (inputs[0].nbDims != 3) return dims.nbDims = -1, dims;
  dims.nbDims = 4;
  dims.d[0] = inputs[0].d[0], dims.d[1] = builder.constant(values[output ? kKvHeads : kHeads].number);
  dims.d[2] = inputs[0].d[1], dims.d[3] = builder.constant(values[kHeadDim].number);
  return dims;
}

bool run_rotary(const Values& values, const Operands& operands, std::string& error) {
  const Dims& dims = operands.descriptions[0].dims;
  Rotary call{};
  call.type = type_of(operands.descriptions[0]);
  call.heads = values[kHeads].number, call.shared = values[kKvHeads].number, call.dim = values[kHeadDim].number;
  const int64_t width = (call.heads + 2 * static_cast<int64_t>(call.shared)) * call.dim;
  const int64_t batch = dims.nbDims == 3 ? dims.d[0] : -1, nodes = dims.nbDims == 3 ? dims.d[1] : -1;
  if (!has_shape("product", dims, {batch, nodes, width}, error)) return false;
  if (!has_shape("cos", operands.descriptions[1].dims, {batch, nodes, call.dim / 2}, error)) return false;
  if (!has_shape("sin", operands.descriptions[2].dims, {batch, nodes, call.dim / 2}, error)) return false;
  call.batch = static_cast<int32_t>(batch), call.nodes = static_cast<int32_t>(nodes);
  call.product = operands.inputs[0];
  call.cos = static_cast<const float*>(operands.inputs[1]), call.sin = static_cast<const float*>(operands.inputs[2]);
  call.query = operands.outputs[0], call.key = operands.outputs[1], call.value = operands.outputs[2];
  return enqueue(lineahead_rotary_heads, call, operands.stream, error);
}

DimsExprs table_shape(const Values&, int32_t, const DimsExprs* inputs, IExprBuilder&) {
  DimsExprs dims{};
  if (inputs[0].nbDims != 2 || inputs[1].nbDims != 1) return dims.nbDims = -1, dims;
  dims.nbDims = 3;
  dims.d[0] = inputs[0].d[0], dims.d[1] = inputs[0].d[1], dims.d[2] = inputs[1].d[0];
  return dims;
}

bool run_table(const Values&, const Operands& operands, std::string& error) {
  const Dims &positions = operands.descriptions[0].dims, &frequencies = operands.descriptions[1].dims;
  if (positions.nbDims != 2) return error = "positions have " + std::to_string(positions.nbDims) + " axes, not 2", false;
  if (!has_shape("frequencies", frequencies, {last(frequencies)}, error)) return false;
  Table call{};
  call.rows = rows(positions) * last(positions), call.half = last(frequencies);
  call.positions = static_cast<const int32_t*>(operands.inputs[0]), call.frequencies = static_cast<const float*>(operands.inputs[1]);
  call.cos = static_cast<float*>(operands.outputs[0]), call.sin = static_cast<float*>(operands.outputs[1]);
  return enqueue(lineahead_rotary_table, call, operands.stream, error);
}

constexpr const char* kActivations[] = {"silu", "gelu_tanh", "gelu"};  // by the values of Activation

bool activation(const Values& values, int32_t& chosen, std::string& error) {
  const Field field{"activation", tensorrt::Kind::kString, false};
  return tensorrt::choose(field, values[0], kActivations, 3, chosen, error);
}

bool settle_gate(const Values& values, std::string& error) {
  int32_t chosen = 0;
  return activation(values, chosen, error);
}

DimsExprs gate_shape(const Values&, int32_t, const DimsExprs* inputs, IExprBuilder& builder) {
  DimsExprs dims = inputs[0];
  if (dims.nbDims < 1) return dims.nbDims = -1, dims;
  const nvinfer1::IDimensionExpr*& width = dims.d[dims.nbDims - 1];
  width = builder.operation(nvinfer1::DimensionOperation::kFLOOR_DIV, *width, *builder.constant(2));
  return dims;
}

bool run_gate(const Values& values, const Operands& operands, std::string& error) {
  const Dims& dims = operands.descriptions[0].dims;
  if (last(dims) % 2) return error = "product has an odd width", false;
  Gate call{};
  if (!activation(values, call.activation, error)) return false;
  call.type = type_of(operands.descriptions[0]), call.rows = rows(dims), call.width = last(dims) / 2;
  call.product = operands.inputs[0], call.output = operands.outputs[0];
  return enqueue(lineahead_gated_unit, call, operands.stream, error);
}

constexpr tensorrt::Kind kInteger = tensorrt::Kind::kInt, kReal = tensorrt::Kind::kFloat, kText = tensorrt::Kind::kString;

}  // namespace

const Kind kFusions[kKinds] = {
    {"AddRMSNorm", {3, {"x", "residual", "weight"}}, {2, {"normed", "total"}}, 0, 6, 2, 2, {{"epsilon", kReal, false}, tensorrt::kPrecision},
     settle_norm, norm_shape, run_norm<true>},
    {"RMSNorm", {2, {"x", "weight"}}, {1, {"normed"}}, 0, 2, 0, 2, {{"epsilon", kReal, false}, tensorrt::kPrecision}, settle_norm, norm_shape,
     run_norm<false>},
    {"RotaryHeads", {3, {"product", "cos", "sin"}}, {3, {"query", "key", "value"}}, 0, 6, 0, 4,
     {{"heads", kInteger, false}, {"kv_heads", kInteger, false}, {"head_dim", kInteger, false}, tensorrt::kPrecision}, settle_rotary,
     rotary_shape, run_rotary},
    {"GatedUnit", {1, {"product"}}, {1, {"output"}}, 0, 0, 0, 2, {{"activation", kText, false}, tensorrt::kPrecision}, settle_gate, gate_shape,
     run_gate},
    {"RotaryTable", {2, {"positions", "frequencies"}}, {2, {"cos", "sin"}}, 1, 2, 3, 1, {tensorrt::kPrecision}, settle_none, table_shape,
     run_table},
};

}  // namespace lineahead::fusions
