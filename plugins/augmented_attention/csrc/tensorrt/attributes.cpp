// Fields of a node: read from TensorRT or from text, written back.
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "../cuda/layout.h"
#include "operator.h"

namespace lineahead::tensorrt {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

const Field kFields[kFieldCount] = {
    {"local", Kind::kString, false},      {"pattern", Kind::kString, false},    {"window", Kind::kInt, false},
    {"feature_map", Kind::kString, false}, {"feature_dim", Kind::kInt, false},  {"normalizer", Kind::kString, false},
    {"normalizes", Kind::kString, false}, {"qk_norm", Kind::kInt, false},       {"local_norm", Kind::kInt, false},
    {"conv_taps", Kind::kInt, false},     {"eps", Kind::kFloat, false},         {"sinks", Kind::kInt, false},
    {"causal", Kind::kInt, false},        {"scale", Kind::kFloat, false},       {"chain", Kind::kInt, true},
};

namespace {

// Names by the values of call.h's enumerations.
constexpr const char* kLocals[] = {"none", "relu2", "softmax", "yoso"};
constexpr const char* kPatterns[] = {"none", "grouped", "sliding"};
constexpr const char* kMaps[] = {"none", "identity", "hedgehog", "elu1", "relu", "performer", "rfa"};
constexpr const char* kNormalizers[] = {"none", "denominator", "l2", "rms"};
constexpr const char* kScopes[] = {"all", "global", "local"};

template <size_t kCount>
bool choose(const Value* values, FieldName field, const char* const (&names)[kCount], int32_t& chosen, std::string& error) {
  for (size_t i = 0; i < kCount; ++i)
    if (values[field].text == names[i]) return chosen = static_cast<int32_t>(i), true;
  error = std::string("this library has no ") + kFields[field].name + " '" + values[field].text + "'";
  return false;
}

const char* type_name(Kind kind) { return kind == Kind::kString ? "string" : kind == Kind::kInt ? "integer" : "number"; }

bool read_number(const PluginField& field, double& number) {
  switch (field.type) {
    case PluginFieldType::kINT32: return number = *static_cast<const int32_t*>(field.data), true;
    case PluginFieldType::kFLOAT32: return number = *static_cast<const float*>(field.data), true;
    case PluginFieldType::kFLOAT64: return number = *static_cast<const double*>(field.data), true;
#if LINEAHEAD_V3
    case PluginFieldType::kINT64: return number = static_cast<double>(*static_cast<const int64_t*>(field.data)), true;
#endif
    default: return false;
  }
}

bool set(const Field& field, double number, Value& value) {
  if (field.kind == Kind::kFloat) return value.real = static_cast<float>(number), std::isfinite(value.real);
  value.number = static_cast<int32_t>(number);
  return value.number == number;
}

bool read_field(const Field& field, const PluginField& given, Value& value) {
  if (!given.data) return false;
  if (field.kind == Kind::kString) {
    if (given.type != PluginFieldType::kCHAR) return false;
    const char* text = static_cast<const char*>(given.data);
    value.text.assign(text, strnlen(text, given.length > 0 ? given.length : 0));  // with or without its end
    return true;
  }
  double number = 0;
  return read_number(given, number) && std::fabs(number) < 2147483648.0 && set(field, number, value);
}

// Integers in decimal; a float's 32 bits so, whatever the locale.
bool read_text(const Field& field, const std::string& text, Value& value) {
  if (field.kind == Kind::kString) return value.text = text, true;
  char* stop = nullptr;
  const int32_t number = static_cast<int32_t>(std::strtol(text.c_str(), &stop, 10));
  if (text.empty() || *stop) return false;
  value.number = number;
  std::memcpy(&value.real, &number, 4);
  return field.kind == Kind::kInt || std::isfinite(value.real);
}

std::string write_text(const Field& field, const Value& value) {
  if (field.kind == Kind::kString) return value.text;
  int32_t number = value.number;
  if (field.kind == Kind::kFloat) std::memcpy(&number, &value.real, 4);
  return std::to_string(number);
}

int32_t find(const char* name) {
  for (int32_t i = 0; name && i < kFieldCount; ++i)
    if (!std::strcmp(name, kFields[i].name)) return i;
  return kFieldCount;
}

}  // namespace

bool Attributes::read(const nvinfer1::PluginFieldCollection* fields, std::string& error) {
  bool given[kFieldCount] = {};
  for (int32_t i = 0; fields && i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    const int32_t place = find(field.name);
    if (place == kFieldCount) {
      if (field.name && (!std::strcmp(field.name, "plugin_version") || !std::strcmp(field.name, "plugin_namespace"))) continue;
      return error = std::string("this library has no field '") + (field.name ? field.name : "") + "'", false;
    }
    if (!read_field(kFields[place], field, values[place]))
      return error = std::string("field '") + field.name + "' is not a " + type_name(kFields[place].kind), false;
    given[place] = true;
  }
  return settle(given, error);
}

bool Attributes::read(const std::string& text, std::string& error) {
  bool given[kFieldCount] = {};
  for (size_t start = 0, end; start < text.size(); start = end + 1) {
    end = text.find('\n', start);
    if (end == std::string::npos) end = text.size();
    const std::string line = text.substr(start, end - start);
    const size_t equals = line.find('=');
    const int32_t place = equals == std::string::npos ? kFieldCount : find(line.substr(0, equals).c_str());
    if (place == kFieldCount) return error = "serialized data has a line '" + line + "' that this library does not know", false;
    const std::string rest = line.substr(equals + 1);
    if (!read_text(kFields[place], rest, values[place]))
      return error = "serialized data has a line '" + line + "' that is not a " + type_name(kFields[place].kind), false;
    given[place] = true;
  }
  return settle(given, error);
}

std::string Attributes::text() const {
  std::string text;
  for (int32_t i = 0; i < kFieldCount; ++i) text += std::string(kFields[i].name) + "=" + write_text(kFields[i], values[i]) + "\n";
  return text;
}

std::vector<PluginField> Attributes::fields() const {
  std::vector<PluginField> fields;
  for (int32_t i = 0; i < kFieldCount; ++i) {
    const Value& value = values[i];
    if (kFields[i].kind == Kind::kString)
      fields.emplace_back(kFields[i].name, value.text.data(), PluginFieldType::kCHAR, static_cast<int32_t>(value.text.size()));
    else if (kFields[i].kind == Kind::kInt)
      fields.emplace_back(kFields[i].name, &value.number, PluginFieldType::kINT32, 1);
    else
      fields.emplace_back(kFields[i].name, &value.real, PluginFieldType::kFLOAT32, 1);
  }
  return fields;
}

bool Attributes::settle(const bool (&given)[kFieldCount], std::string& error) {
  for (int32_t i = 0; i < kFieldCount; ++i)
    if (!given[i] && !kFields[i].optional) return error = std::string("field '") + kFields[i].name + "' is missing", false;
  cuda::Settings& s = settings;
  if (!choose(values, kFieldLocal, kLocals, s.local, error) || !choose(values, kFieldPattern, kPatterns, s.pattern, error) ||
      !choose(values, kFieldMap, kMaps, s.map, error) || !choose(values, kFieldNormalizer, kNormalizers, s.normalizer, error) ||
      !choose(values, kFieldNormalizes, kScopes, s.normalizes, error))
    return false;
  s.qk_norm = values[kFieldQkNorm].number != 0, s.local_norm = values[kFieldLocalNorm].number != 0;
  s.window = values[kFieldWindow].number, s.taps = values[kFieldTaps].number, s.sinks = values[kFieldSinks].number;
  s.eps = values[kFieldEps].real, s.scale = values[kFieldScale].real;
  const bool alone = cuda::has_norm(s) && (s.normalizes == cuda::kGlobal || s.local == cuda::kNoLocal);
  s.floor = alone && s.map == cuda::kRfa ? std::exp(-2.0f) : 0.0f;  // feature_maps/rfa.py
  if (!values[kFieldCausal].number) return error = "causal=0: the step operator is causal", false;
  if (s.window < 1 || s.taps < 0 || s.sinks < 0) return error = "window, conv_taps or sinks is out of range", false;
  return true;
}

}  // namespace lineahead::tensorrt
