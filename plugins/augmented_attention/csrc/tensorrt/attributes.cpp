// The operator's fields, and the kernels' settings that they mean.
#include <cmath>

#include "../cuda/layout.h"
#include "operator.h"

namespace lineahead::tensorrt {

const Field kFields[kFieldCount] = {
    {"local", Kind::kString, false},      {"pattern", Kind::kString, false},    {"window", Kind::kInt, false},
    {"feature_map", Kind::kString, false}, {"feature_dim", Kind::kInt, false},  {"normalizer", Kind::kString, false},
    {"normalizes", Kind::kString, false}, {"qk_norm", Kind::kInt, false},       {"local_norm", Kind::kInt, false},
    {"conv_taps", Kind::kInt, false},     {"eps", Kind::kFloat, false},         {"sinks", Kind::kInt, false},
    {"causal", Kind::kInt, false},        {"scale", Kind::kFloat, false},       {"chain", Kind::kInt, true},
    kPrecision,
};

namespace {

// Names by the values of call.h's enumerations.
constexpr const char* kLocals[] = {"none", "relu2", "softmax", "yoso"};
constexpr const char* kPatterns[] = {"none", "grouped", "sliding"};
constexpr const char* kMaps[] = {"none", "identity", "hedgehog", "elu1", "relu", "performer", "rfa"};
constexpr const char* kNormalizers[] = {"none", "denominator", "l2", "rms"};
constexpr const char* kScopes[] = {"all", "global", "local"};

template <size_t kCount>
bool pick(const Value* values, FieldName field, const char* const (&names)[kCount], int32_t& chosen, std::string& error) {
  return choose(kFields[field], values[field], names, static_cast<int32_t>(kCount), chosen, error);
}

}  // namespace

bool Attributes::read(const nvinfer1::PluginFieldCollection* fields, std::string& error) {
  return read_fields(kFields, kFieldCount, fields, values, error) && settle(error);
}

bool Attributes::read(const std::string& text, std::string& error) {
  return read_lines(kFields, kFieldCount, text, values, error) && settle(error);
}

std::string Attributes::text() const { return write_lines(kFields, kFieldCount, values); }

std::vector<nvinfer1::PluginField> Attributes::fields() const { return plugin_fields(kFields, kFieldCount, values); }

bool Attributes::settle(std::string& error) {
  cuda::Settings& s = settings;
  if (!pick(values, kFieldLocal, kLocals, s.local, error) || !pick(values, kFieldPattern, kPatterns, s.pattern, error) ||
      !pick(values, kFieldMap, kMaps, s.map, error) || !pick(values, kFieldNormalizer, kNormalizers, s.normalizer, error) ||
      !pick(values, kFieldNormalizes, kScopes, s.normalizes, error))
    return false;
  s.qk_norm = values[kFieldQkNorm].number != 0, s.local_norm = values[kFieldLocalNorm].number != 0;
  s.window = values[kFieldWindow].number, s.taps = values[kFieldTaps].number, s.sinks = values[kFieldSinks].number;
  s.eps = values[kFieldEps].real, s.scale = values[kFieldScale].real;
  const bool alone = cuda::has_norm(s) && (s.normalizes == cuda::kGlobal || s.local == cuda::kNoLocal);
  s.floor = alone && s.map == cuda::kRfa ? std::exp(-2.0f) : 0.0f;  // feature_maps/rfa.py
  if (!values[kFieldCausal].number) return error = "causal=0: the step operator is causal", false;
  if (s.window < 1 || s.taps < 0 || s.sinks < 0) return error = "window, conv_taps or sinks is out of range", false;
  return settle_precision(values[kFieldPrecision], error);
}

}  // namespace lineahead::tensorrt
