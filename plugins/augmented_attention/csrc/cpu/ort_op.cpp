// The operator as an ONNX Runtime custom operator for the CPU: domain "lineahead", op_type "AugmentedAttention", version 1.
//
// Ports are those of schema.INPUTS and schema.OUTPUTS, in order. State outputs may be bound to the buffers of the state inputs;
// the call then writes only what the commit changes. Pending tensors may not be shared between input and output.
#include <climits>
#include <new>
#include <stdexcept>
#include <string>

#include "ort_abi.h"
#include "step.h"

namespace {

using namespace lineahead;
using ort_abi::Api;

enum Input {
  kQuery, kKey, kValue, kAncestors, kLength, kAcceptIndex, kAcceptCount, kState, kNorm, kWindowKey, kWindowValue,
  kPendingKey, kPendingValue, kAlpha, kLocalScale, kConv, kQueryMap, kKeyMap, kInputs
};
constexpr const char* kInputNames[kInputs] = {
    "query", "key", "value", "ancestors", "length", "accept_index", "accept_count", "state", "norm", "window_key",
    "window_value", "pending_key", "pending_value", "alpha", "local_scale", "conv", "query_map", "key_map"};
enum Output { kOutput, kStateOut, kNormOut, kWindowKeyOut, kWindowValueOut, kPendingKeyOut, kOutputs };

void check(const Api& api, ort_abi::Status* status) {
  if (!status) return;
  api.call<void>(ort_abi::kReleaseStatus, status);
  throw std::runtime_error("a call into ONNX Runtime failed");
}

// Runs `body`; an exception becomes a status that ONNX Runtime reports with the node's name.
template <typename Body>
ort_abi::Status* guarded(const Api& api, Body body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    const std::string text = std::string("lineahead AugmentedAttention: ") + error.what();
    return api.call<ort_abi::Status*>(ort_abi::kCreateStatus, ort_abi::kInvalidArgument, text.c_str());
  }
}

struct Tensor {
  const void* data = nullptr;
  size_t rank = 0;
  int64_t dim[4] = {};

  const float* floats() const { return static_cast<const float*>(data); }
  const int64_t* integers() const { return static_cast<const int64_t*>(data); }
  int64_t count() const {
    int64_t total = 1;
    for (size_t i = 0; i < rank; ++i) total *= dim[i];
    return total;
  }
};

std::string shape_text(const int64_t* dim, size_t rank) {
  std::string text = "[";
  for (size_t i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(dim[i]);
  return text + "]";
}

class Context {
 public:
  Context(const Api& api, ort_abi::KernelContext* context) : api_(api), context_(context) {
    for (size_t i = 0; i < kInputs; ++i) input_[i] = read(i);
  }

  const Tensor& operator[](Input i) const { return input_[i]; }

  void expect(Input i, std::initializer_list<int64_t> shape) const {
    const Tensor& tensor = input_[i];
    if (tensor.rank == shape.size() && std::equal(shape.begin(), shape.end(), tensor.dim)) return;
    throw std::runtime_error(std::string(kInputNames[i]) + " has shape " + shape_text(tensor.dim, tensor.rank) +
                             ", expected " + shape_text(shape.begin(), shape.size()));
  }

  float* output(Output i, const int64_t* dim, size_t rank) const {
    ort_abi::Value* value = nullptr;
    check(api_, api_.call<ort_abi::Status*>(ort_abi::kKernelContext_GetOutput, context_, size_t{i}, dim, rank, &value));
    void* data = nullptr;
    check(api_, api_.call<ort_abi::Status*>(ort_abi::kGetTensorMutableData, value, &data));
    return static_cast<float*>(data);
  }

  float* output_like(Output i, Input like) const { return output(i, input_[like].dim, input_[like].rank); }

  // An unused port: its output repeats its input.
  void pass(Output i, Input from) const {
    copy(input_[from].floats(), output_like(i, from), (size_t)input_[from].count());
  }

  void parallel(size_t count, void (*function)(void*, size_t), void* data) const {
    if (count == 1) return function(data, 0);
    check(api_, api_.call<ort_abi::Status*>(ort_abi::kKernelContext_ParallelFor, context_, function, count, count, data));
  }

 private:
  Tensor read(size_t i) const {
    const ort_abi::Value* value = nullptr;
    check(api_, api_.call<ort_abi::Status*>(ort_abi::kKernelContext_GetInput, context_, i, &value));
    if (!value) throw std::runtime_error(std::string(kInputNames[i]) + " is missing");
    Tensor tensor;
    void* data = nullptr;
    check(api_, api_.call<ort_abi::Status*>(ort_abi::kGetTensorMutableData, value, &data));
    tensor.data = data;
    ort_abi::ShapeInfo* info = nullptr;
    check(api_, api_.call<ort_abi::Status*>(ort_abi::kGetTensorTypeAndShape, value, &info));
    ort_abi::Status* status = api_.call<ort_abi::Status*>(ort_abi::kGetDimensionsCount, info, &tensor.rank);
    const bool fits = tensor.rank <= 4;
    if (!status && fits)
      status = api_.call<ort_abi::Status*>(ort_abi::kGetDimensions, info, &tensor.dim[0], tensor.rank);
    api_.call<void>(ort_abi::kReleaseTensorTypeAndShapeInfo, info);
    check(api_, status);
    if (!fits) throw std::runtime_error(std::string(kInputNames[i]) + " has more than 4 axes");
    return tensor;
  }

  const Api& api_;
  ort_abi::KernelContext* context_;
  Tensor input_[kInputs];
};

// The node's attributes, by the names of schema.AttentionSettings.
class Attributes {
 public:
  Attributes(const Api& api, const ort_abi::KernelInfo* info) : api_(api), info_(info) {}

  Settings settings() const {
    Settings settings{};
    settings.local = static_cast<Local>(choice("local", {"none", "relu2", "softmax"}));
    settings.pattern = static_cast<Pattern>(choice("pattern", {"none", "grouped", "sliding"}));
    settings.denominator = choice("normalizer", {"none", "denominator"}) == 1;
    const std::string map = text("feature_map");
    settings.map = find_feature_map(map);
    if (!settings.map && map != "none") lacks("feature_map", map);
    // Graphs of older versions do not name these.
    if (const std::string scope = text("normalizes", "all"); scope != "all") lacks("normalizes", scope);
    if (integer("local_norm", 0)) lacks("local_norm", "true");
    if (!integer("causal", 1)) lacks("causal", "false");
    settings.window = integer("window");
    settings.taps = (int)integer("conv_taps");
    settings.sinks = (int)integer("sinks");
    settings.qk_norm = integer("qk_norm") != 0;
    settings.eps = number("eps");
    settings.scale = number("scale");
    if (settings.window < 1 || settings.taps < 0 || settings.sinks < 0)
      throw std::runtime_error("window, conv_taps or sinks out of range");
    return settings;
  }

 private:
  void found(ort_abi::Status* status, const char* name) const {
    if (!status) return;
    api_.call<void>(ort_abi::kReleaseStatus, status);
    throw std::runtime_error(std::string("attribute '") + name + "' is missing or has another type");
  }

  // native.lacking reads this sentence: whoever loads the graph runs the function body instead, and says so.
  [[noreturn]] static void lacks(const char* name, const std::string& value) {
    throw std::runtime_error(std::string("this library has no ") + name + " '" + value + "'");
  }

  int64_t integer(const char* name, int64_t absent) const {
    int64_t value = absent;
    if (auto* status = api_.call<ort_abi::Status*>(ort_abi::kKernelInfoGetAttribute_int64, info_, name, &value)) {
      api_.call<void>(ort_abi::kReleaseStatus, status);
      return absent;
    }
    return value;
  }

  std::string text(const char* name, const char* absent) const {
    char value[64] = {};
    size_t size = sizeof value;
    char* out = value;
    if (auto* status = api_.call<ort_abi::Status*>(ort_abi::kKernelInfoGetAttribute_string, info_, name, out, &size)) {
      api_.call<void>(ort_abi::kReleaseStatus, status);
      return absent;
    }
    return value;
  }

  int64_t integer(const char* name) const {
    int64_t value = 0;
    found(api_.call<ort_abi::Status*>(ort_abi::kKernelInfoGetAttribute_int64, info_, name, &value), name);
    return value;
  }

  float number(const char* name) const {
    float value = 0;
    found(api_.call<ort_abi::Status*>(ort_abi::kKernelInfoGetAttribute_float, info_, name, &value), name);
    return value;
  }

  std::string text(const char* name) const {
    char value[64] = {};
    size_t size = sizeof value;
    char* out = value;
    found(api_.call<ort_abi::Status*>(ort_abi::kKernelInfoGetAttribute_string, info_, name, out, &size), name);
    return value;
  }

  int choice(const char* name, std::initializer_list<const char*> names) const {
    const std::string value = text(name);
    int index = 0;
    for (const char* one : names) {
      if (value == one) return index;
      ++index;
    }
    lacks(name, value);
  }

  const Api& api_;
  const ort_abi::KernelInfo* info_;
};

// Sizes and input pointers of a call, with every shape and index that memory safety rests on checked.
Call bind_inputs(const Settings& settings, const Context& in) {
  Call call{};
  call.settings = settings;
  const Tensor &q = in[kQuery], &k = in[kKey], &v = in[kValue];
  if (q.rank != 4 || k.rank != 4 || v.rank != 4 || in[kPendingKey].rank != 4 || in[kAcceptIndex].rank != 2)
    throw std::runtime_error("query, key, value and pending_key have 4 axes, accept_index has 2");
  const int64_t B = q.dim[0], H = q.dim[1], T = q.dim[2], D = q.dim[3], Hkv = k.dim[1], Dv = v.dim[3];
  const int64_t C = settings.ring_rows() + settings.sinks, P = in[kPendingKey].dim[2], A = in[kAcceptIndex].dim[1];
  if (Hkv < 1 || H % Hkv) throw std::runtime_error("the number of query heads is no multiple of the key heads");
  in.expect(kKey, {B, Hkv, T, D}), in.expect(kValue, {B, Hkv, T, Dv});
  in.expect(kAncestors, {B, T, T}), in.expect(kLength, {B});
  in.expect(kAcceptIndex, {B, A}), in.expect(kAcceptCount, {B});
  in.expect(kWindowKey, {B, Hkv, C, D}), in.expect(kWindowValue, {B, Hkv, C, Dv});
  in.expect(kPendingKey, {B, Hkv, P, D}), in.expect(kPendingValue, {B, Hkv, P, Dv});
  int64_t F = 0, M = 0;
  if (settings.has_state()) {
    const bool learned = in[kKeyMap].rank == 3;
    if (learned) M = in[kKeyMap].dim[2], in.expect(kKeyMap, {Hkv, D, M}), in.expect(kQueryMap, {H, D, M});
    F = settings.map->width((int)D, (int)M);
    if (F < 1) throw std::runtime_error("key_map is missing");
    in.expect(kState, {B, Hkv, F, Dv});
    if (settings.has_norm()) in.expect(kNorm, {B, Hkv, F});
    if (in[kAlpha].count() != 1) in.expect(kAlpha, {H});
  }
  if (settings.local != Local::kNone && in[kLocalScale].count() != 1) in.expect(kLocalScale, {H});
  if (settings.taps) in.expect(kConv, {H, settings.taps});
  call.batch = (int)B, call.heads = (int)H, call.shared = (int)Hkv, call.nodes = (int)T, call.dim = (int)D;
  call.value_dim = (int)Dv, call.features = (int)F, call.columns = (int)M, call.window_rows = (int)C;
  call.rows = (int)settings.ring_rows(), call.pending = (int)P, call.accepted = (int)A;
  call.query = q.floats(), call.key = k.floats(), call.value = v.floats();
  call.ancestors = static_cast<const bool*>(in[kAncestors].data);
  call.length = in[kLength].integers();
  call.accept_index = in[kAcceptIndex].integers(), call.accept_count = in[kAcceptCount].integers();
  call.state = in[kState].floats(), call.norm = in[kNorm].floats();
  call.window_key = in[kWindowKey].floats(), call.window_value = in[kWindowValue].floats();
  call.pending_key = in[kPendingKey].floats(), call.pending_value = in[kPendingValue].floats();
  call.alpha = in[kAlpha].floats(), call.alpha_step = in[kAlpha].count() > 1;
  call.local_scale = in[kLocalScale].floats(), call.local_scale_step = in[kLocalScale].count() > 1;
  call.conv = in[kConv].floats(), call.query_map = in[kQueryMap].floats(), call.key_map = in[kKeyMap].floats();
  for (int64_t b = 0; b < B; ++b) {
    if (call.length[b] < 0) throw std::runtime_error("length is negative");
    if (call.accept_count[b] < 0 || call.accept_count[b] > A) throw std::runtime_error("accept_count exceeds accept_index");
    for (int64_t i = 0; i < call.accept_count[b]; ++i)
      if (const int64_t row = call.accept_index[b * A + i]; row < 0 || row >= P)
        throw std::runtime_error("accept_index " + std::to_string(row) + " is no row of the pending tensors");
  }
  return call;
}

void compute(const Settings& settings, const Context& context) {
  Call call = bind_inputs(settings, context);
  const int64_t shape[4] = {call.batch, call.heads, call.nodes, call.value_dim};
  call.output = context.output(kOutput, shape, 4);
  if (settings.has_state()) call.state_out = context.output_like(kStateOut, kState);
  else context.pass(kStateOut, kState);
  if (settings.has_norm()) call.norm_out = context.output_like(kNormOut, kNorm);
  else context.pass(kNormOut, kNorm);
  call.window_key_out = context.output_like(kWindowKeyOut, kWindowKey);
  call.window_value_out = context.output_like(kWindowValueOut, kWindowValue);
  call.pending_key_out = context.output_like(kPendingKeyOut, kKey);
  if (!call.batch || !call.nodes) return;
  step(call, [&](size_t count, void (*function)(void*, size_t), void* data) { context.parallel(count, function, data); });
}

struct Kernel {
  const Api& api;
  Settings settings;
};

ort_abi::Status* create_kernel(const ort_abi::CustomOp*, const Api* api, const ort_abi::KernelInfo* info, void** kernel) {
  return guarded(*api, [&] { *kernel = new Kernel{*api, Attributes(*api, info).settings()}; });
}

ort_abi::Status* compute_kernel(void* kernel, ort_abi::KernelContext* context) {
  const Kernel& self = *static_cast<Kernel*>(kernel);
  return guarded(self.api, [&] { compute(self.settings, Context(self.api, context)); });
}

ort_abi::ElementType input_type(const ort_abi::CustomOp*, size_t i) {
  if (i == kAncestors) return ort_abi::kBool;
  return i >= kLength && i <= kAcceptCount ? ort_abi::kInt64 : ort_abi::kFloat;
}

ort_abi::CustomOp describe() {
  using Op = ort_abi::CustomOp;
  Op op{};
  op.version = ort_abi::kApiVersion;
  op.GetName = [](const Op*) { return "AugmentedAttention"; };
  op.GetExecutionProviderType = [](const Op*) { return "CPUExecutionProvider"; };
  op.GetInputType = input_type;
  op.GetInputTypeCount = [](const Op*) { return size_t{kInputs}; };
  op.GetOutputType = [](const Op*, size_t) { return ort_abi::kFloat; };
  op.GetOutputTypeCount = [](const Op*) { return size_t{kOutputs}; };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.GetInputCharacteristic = [](const Op*, size_t) { return ort_abi::kRequired; };
  op.GetOutputCharacteristic = [](const Op*, size_t) { return ort_abi::kRequired; };
  op.GetInputMemoryType = [](const Op*, size_t) { return ort_abi::kMemoryDefault; };
  op.CreateKernelV2 = create_kernel;
  op.KernelComputeV2 = compute_kernel;
  op.GetStartVersion = [](const Op*) { return 1; };
  op.GetEndVersion = [](const Op*) { return INT_MAX; };
  return op;
}

}  // namespace

// Called by ONNX Runtime when the library is given to SessionOptions.register_custom_ops_library.
extern "C" __attribute__((visibility("default"))) ort_abi::Status* RegisterCustomOps(ort_abi::SessionOptions* options,
                                                                                    const ort_abi::ApiBase* base) {
  const Api* api = base->GetApi(ort_abi::kApiVersion);
  if (!api) return nullptr;  // older than 1.17: ONNX Runtime then reports the unknown operator
  return guarded(*api, [&] {
    static const ort_abi::CustomOp op = describe();
    // Sessions keep a pointer to it, for as long as the library is loaded.
    static ort_abi::CustomOpDomain* const domain = [api] {
      ort_abi::CustomOpDomain* made = nullptr;
      check(*api, api->call<ort_abi::Status*>(ort_abi::kCreateCustomOpDomain, "lineahead", &made));
      check(*api, api->call<ort_abi::Status*>(ort_abi::kCustomOpDomain_Add, made, &op));
      return made;
    }();
    check(*api, api->call<ort_abi::Status*>(ort_abi::kAddCustomOpDomain, options, domain));
  });
}
