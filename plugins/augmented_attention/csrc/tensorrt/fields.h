// Fields of a node, by a table: read from TensorRT or from text, written back.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <NvInferRuntime.h>

#if NV_TENSORRT_MAJOR < 8 || (NV_TENSORRT_MAJOR == 8 && NV_TENSORRT_MINOR < 6) || NV_TENSORRT_MAJOR == 9
#error "lineahead's plugins need the headers of TensorRT 8.6, or of 10 or later"
#endif
#define LINEAHEAD_V3 (NV_TENSORRT_MAJOR >= 10)

namespace lineahead::tensorrt {

enum class Kind { kString, kInt, kFloat };
struct Field {
  const char* name;
  Kind kind;
  bool optional;
};

struct Value {
  std::string text;
  int32_t number = 0;
  float real = 0;
};

// Each fills `values`, as many as the table has fields; on failure says which field is at fault.
bool read_fields(const Field* table, int32_t count, const nvinfer1::PluginFieldCollection* given, Value* values, std::string& error);
bool read_lines(const Field* table, int32_t count, const std::string& text, Value* values, std::string& error);
// As text that `read_lines` takes; the same numbers to the bit.
std::string write_lines(const Field* table, int32_t count, const Value* values);
// Fields that `read_fields` takes; they point into `values`.
std::vector<nvinfer1::PluginField> plugin_fields(const Field* table, int32_t count, const Value* values);
// Names and types without values.
std::vector<nvinfer1::PluginField> announced_fields(const Field* table, int32_t count);
// A type for all float ports of a node: a weakly typed network takes another one where it finds that faster, or does not look.
constexpr Field kPrecision{"precision", Kind::kString, true};
// Makes a precision that was left out "any"; on failure says what is wrong with it.
bool settle_precision(Value& precision, std::string& error);
// Whether a float port may have `type`.
bool allows(const Value& precision, nvinfer1::DataType type);
// Which of `names` a field has, as its place.
bool choose(const Field& field, const Value& value, const char* const* names, int32_t count, int32_t& chosen, std::string& error);

}  // namespace lineahead::tensorrt
