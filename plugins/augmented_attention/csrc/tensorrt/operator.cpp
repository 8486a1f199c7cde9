// Shapes, types and calls of the operator.
#include "operator.h"

#include "../cuda/layout.h"

namespace lineahead::tensorrt {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginTensorDesc;

const char* const kInputNames[kInputs] = {
    "query", "key", "value", "ancestors", "length", "accept_index", "accept_count", "state", "norm", "window_key", "window_value",
    "pending_key", "pending_value", "alpha", "local_scale", "conv", "query_map", "key_map"};
const char* const kOutputNames[kOutputs] = {"output", "state", "norm", "window_key", "window_value", "pending_key"};
const Input kSources[kOutputs] = {kQuery, kState, kNorm, kWindowKey, kWindowValue, kKey};

namespace {

bool is_index(int32_t input) { return input == kLength || input == kAcceptIndex || input == kAcceptCount; }

bool is_wide(int32_t input) { return input == kState || input == kNorm; }

bool is_integer(DataType type) {
#if LINEAHEAD_V3
  if (type == DataType::kINT64) return true;
#endif
  return type == DataType::kINT32;
}

int32_t type_of(DataType type) {
  return type == DataType::kFLOAT ? cuda::kFloat : type == DataType::kHALF ? cuda::kHalf : cuda::kBFloat16;
}

int64_t volume(const Dims& dims) {
  int64_t count = 1;
  for (int32_t i = 0; i < dims.nbDims; ++i) count *= dims.d[i];
  return count;
}

std::string text_of(const Dims& dims) {
  std::string text = "[";
  for (int32_t i = 0; i < dims.nbDims; ++i) text += (i ? ", " : "") + std::to_string(dims.d[i]);
  return text + "]";
}

struct Shapes {
  const PluginTensorDesc* inputs;
  std::string& error;

  int32_t at(Input port, int32_t axis) const { return static_cast<int32_t>(inputs[port].dims.d[axis]); }

  bool rank(Input port, int32_t axes) const {
    if (inputs[port].dims.nbDims == axes) return true;
    error = std::string(kInputNames[port]) + " has shape " + text_of(inputs[port].dims) + ", not " + std::to_string(axes) + " axes";
    return false;
  }
  template <typename... Sizes>
  bool is(Input port, Sizes... sizes) const {
    const int64_t wanted[] = {sizes...};
    const Dims& dims = inputs[port].dims;
    bool same = dims.nbDims == static_cast<int32_t>(sizeof...(sizes));
    for (int32_t i = 0; same && i < dims.nbDims; ++i) same = dims.d[i] == wanted[i];
    if (same) return true;
    error = std::string(kInputNames[port]) + " has shape " + text_of(dims) + ", not [";
    for (size_t i = 0; i < sizeof...(sizes); ++i) error += (i ? ", " : "") + std::to_string(wanted[i]);
    error += "]";
    return false;
  }
  // One number, or one a head.
  bool per_head(Input port, int32_t heads) const { return volume(inputs[port].dims) == 1 || is(port, heads); }
};

bool check(const cuda::Call& call, const Shapes& shapes) {
  const cuda::Settings& settings = call.settings;
  const int64_t batch = call.batch, heads = call.heads, shared = call.shared, nodes = call.nodes, dim = call.dim;
  const int64_t wide = call.value_dim, rows = cuda::ring_rows(settings) + settings.sinks;
  if (!shapes.is(kKey, batch, shared, nodes, dim) || !shapes.is(kValue, batch, shared, nodes, wide)) return false;
  if (!shapes.is(kAncestors, batch, nodes, nodes) || !shapes.is(kLength, batch) || !shapes.is(kAcceptCount, batch)) return false;
  if (!shapes.is(kAcceptIndex, batch, call.accepted)) return false;
  if (!shapes.is(kWindowKey, batch, shared, rows, dim) || !shapes.is(kWindowValue, batch, shared, rows, wide)) return false;
  if (!shapes.is(kPendingKey, batch, shared, call.pending, dim) || !shapes.is(kPendingValue, batch, shared, call.pending, wide))
    return false;
  if (cuda::has_state(settings) && !shapes.is(kState, batch, shared, call.features, wide)) return false;
  if (cuda::has_norm(settings) && !shapes.is(kNorm, batch, shared, call.features)) return false;
  if (settings.taps && !shapes.is(kConv, heads, settings.taps)) return false;
  if (call.columns && (!shapes.is(kQueryMap, heads, dim, call.columns) || !shapes.is(kKeyMap, shared, dim, call.columns)))
    return false;
  return shapes.per_head(kAlpha, call.heads) && shapes.per_head(kLocalScale, call.heads);
}

}  // namespace

bool is_updated(const cuda::Settings& settings, int32_t output) {
  if (output == kStateOut) return cuda::has_state(settings);
  if (output == kNormOut) return cuda::has_norm(settings);
  return output == kWindowKeyOut || output == kWindowValueOut;
}

bool supports(const Attributes& attributes, int32_t position, const PluginTensorDesc& port, const PluginTensorDesc& query,
              const PluginTensorDesc& length) {
  if (position < 0 || position >= kInputs + kOutputs || port.format != nvinfer1::TensorFormat::kLINEAR) return false;
  const int32_t input = position < kInputs ? position : kSources[position - kInputs];
  if (is_wide(input)) return port.type == DataType::kFLOAT;
  if (input == kLength) return is_integer(port.type);
  if (is_index(input)) return port.type == length.type;
  if (input == kAncestors) return port.type == DataType::kINT32 || (LINEAHEAD_V3 && port.type == DataType::kBOOL);
  return position == kQuery ? allows(attributes.values[kFieldPrecision], port.type) : port.type == query.type;
}

bool describe(const Attributes& attributes, const PluginTensorDesc* inputs, cuda::Call& call, std::string& error) {
  const Shapes shapes{inputs, error};
  const int32_t fours[] = {kQuery, kKey, kValue, kPendingKey};
  for (const int32_t port : fours)
    if (!shapes.rank(static_cast<Input>(port), 4)) return false;
  if (!shapes.rank(kAcceptIndex, 2)) return false;
  call = cuda::Call{};
  call.settings = attributes.settings;
  call.type = type_of(inputs[kQuery].type);
  call.index_bytes = inputs[kLength].type == DataType::kINT32 ? 4 : 8;
  call.ancestor_bytes = inputs[kAncestors].type == DataType::kBOOL ? 1 : 4;
  call.batch = shapes.at(kQuery, 0), call.heads = shapes.at(kQuery, 1), call.nodes = shapes.at(kQuery, 2);
  call.shared = shapes.at(kKey, 1), call.dim = shapes.at(kQuery, 3), call.value_dim = shapes.at(kValue, 3);
  call.pending = shapes.at(kPendingKey, 2), call.accepted = shapes.at(kAcceptIndex, 1);
  call.chain = attributes.values[kFieldChain].number;
  if (cuda::has_state(call.settings)) {
    if (!shapes.rank(kState, 4)) return false;
    call.features = shapes.at(kState, 2);
    const int32_t map = call.settings.map;
    if (map == cuda::kHedgehog || map == cuda::kPerformer || map == cuda::kRfa) {
      if (!shapes.rank(kQueryMap, 3)) return false;
      call.columns = shapes.at(kQueryMap, 2);
    }
  }
  call.alpha_step = volume(inputs[kAlpha].dims) > 1, call.local_scale_step = volume(inputs[kLocalScale].dims) > 1;
  return check(call, shapes);
}

void point(cuda::Call& call, const void* const* inputs, void* const* outputs) {
  call.query = inputs[kQuery], call.key = inputs[kKey], call.value = inputs[kValue];
  call.ancestors = inputs[kAncestors], call.length = inputs[kLength];
  call.accept_index = inputs[kAcceptIndex], call.accept_count = inputs[kAcceptCount];
  call.state = static_cast<const float*>(inputs[kState]), call.norm = static_cast<const float*>(inputs[kNorm]);
  call.window_key = inputs[kWindowKey], call.window_value = inputs[kWindowValue];
  call.pending_key = inputs[kPendingKey], call.pending_value = inputs[kPendingValue];
  call.alpha = inputs[kAlpha], call.local_scale = inputs[kLocalScale], call.conv = inputs[kConv];
  call.query_map = inputs[kQueryMap], call.key_map = inputs[kKeyMap];
  call.output = outputs[kOutput];
  call.state_out = static_cast<float*>(outputs[kStateOut]), call.norm_out = static_cast<float*>(outputs[kNormOut]);
  call.window_key_out = outputs[kWindowKeyOut], call.window_value_out = outputs[kWindowValueOut];
  call.pending_key_out = outputs[kPendingKeyOut];
}

nvinfer1::DimsExprs shape(int32_t output, const nvinfer1::DimsExprs* inputs) {
  nvinfer1::DimsExprs dims = inputs[kSources[output]];
  if (output == kOutput) dims.d[3] = inputs[kValue].d[3];
  return dims;
}

}  // namespace lineahead::tensorrt
