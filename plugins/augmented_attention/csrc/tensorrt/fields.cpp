// Fields of a node: read from TensorRT or from text, written back.
#include "fields.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

namespace lineahead::tensorrt {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

namespace {

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

int32_t find(const Field* table, int32_t count, const char* name) {
  for (int32_t i = 0; name && i < count; ++i)
    if (!std::strcmp(name, table[i].name)) return i;
  return count;
}

bool all_given(const Field* table, int32_t count, const std::vector<bool>& given, std::string& error) {
  for (int32_t i = 0; i < count; ++i)
    if (!given[i] && !table[i].optional) return error = std::string("field '") + table[i].name + "' is missing", false;
  return true;
}

}  // namespace

bool read_fields(const Field* table, int32_t count, const nvinfer1::PluginFieldCollection* fields, Value* values, std::string& error) {
  std::vector<bool> given(count);
  for (int32_t i = 0; fields && i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    const int32_t place = find(table, count, field.name);
    if (place == count) {
      if (field.name && (!std::strcmp(field.name, "plugin_version") || !std::strcmp(field.name, "plugin_namespace"))) continue;
      return error = std::string("this library has no field '") + (field.name ? field.name : "") + "'", false;
    }
    if (!read_field(table[place], field, values[place]))
      return error = std::string("field '") + field.name + "' is not a " + type_name(table[place].kind), false;
    given[place] = true;
  }
  return all_given(table, count, given, error);
}

bool read_lines(const Field* table, int32_t count, const std::string& text, Value* values, std::string& error) {
  std::vector<bool> given(count);
  for (size_t start = 0, end; start < text.size(); start = end + 1) {
    end = text.find('\n', start);
    if (end == std::string::npos) end = text.size();
    const std::string line = text.substr(start, end - start);
    const size_t equals = line.find('=');
    const int32_t place = equals == std::string::npos ? count : find(table, count, line.substr(0, equals).c_str());
    if (place == count) return error = "serialized data has a line '" + line + "' that this library does not know", false;
    const std::string rest = line.substr(equals + 1);
    if (!read_text(table[place], rest, values[place]))
      return error = "serialized data has a line '" + line + "' that is not a " + type_name(table[place].kind), false;
    given[place] = true;
  }
  return all_given(table, count, given, error);
}

std::string write_lines(const Field* table, int32_t count, const Value* values) {
  std::string text;
  for (int32_t i = 0; i < count; ++i) text += std::string(table[i].name) + "=" + write_text(table[i], values[i]) + "\n";
  return text;
}

std::vector<PluginField> plugin_fields(const Field* table, int32_t count, const Value* values) {
  std::vector<PluginField> fields;
  for (int32_t i = 0; i < count; ++i) {
    const Value& value = values[i];
    if (table[i].kind == Kind::kString)
      fields.emplace_back(table[i].name, value.text.data(), PluginFieldType::kCHAR, static_cast<int32_t>(value.text.size()));
    else if (table[i].kind == Kind::kInt)
      fields.emplace_back(table[i].name, &value.number, PluginFieldType::kINT32, 1);
    else
      fields.emplace_back(table[i].name, &value.real, PluginFieldType::kFLOAT32, 1);
  }
  return fields;
}

std::vector<PluginField> announced_fields(const Field* table, int32_t count) {
  constexpr PluginFieldType types[] = {PluginFieldType::kCHAR, PluginFieldType::kINT32, PluginFieldType::kFLOAT32};
  std::vector<PluginField> fields;
  for (int32_t i = 0; i < count; ++i)
    fields.emplace_back(table[i].name, nullptr, types[static_cast<int>(table[i].kind)], table[i].kind == Kind::kString ? 0 : 1);
  return fields;
}

bool settle_precision(Value& precision, std::string& error) {
  constexpr const char* names[] = {"any", "fp32", "fp16", "bf16"};
  int32_t chosen = 0;
  if (precision.text.empty()) precision.text = names[0];
  return choose(kPrecision, precision, names, LINEAHEAD_V3 ? 4 : 3, chosen, error);
}

bool allows(const Value& precision, nvinfer1::DataType type) {
  const bool any = precision.text == "any";
  if (type == nvinfer1::DataType::kFLOAT) return any || precision.text == "fp32";
  if (type == nvinfer1::DataType::kHALF) return any || precision.text == "fp16";
#if LINEAHEAD_V3
  if (type == nvinfer1::DataType::kBF16) return any || precision.text == "bf16";
#endif
  return false;
}

bool choose(const Field& field, const Value& value, const char* const* names, int32_t count, int32_t& chosen, std::string& error) {
  for (int32_t i = 0; i < count; ++i)
    if (value.text == names[i]) return chosen = i, true;
  error = std::string("this library has no ") + field.name + " '" + value.text + "'";
  return false;
}

}  // namespace lineahead::tensorrt
