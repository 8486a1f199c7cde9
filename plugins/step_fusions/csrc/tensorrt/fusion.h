// The fused operators as TensorRT sees them: one table of kinds, by the names and in the order of schema.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fields.h"
#include "fusions.h"
#include "library.h"

namespace lineahead::fusions {

using tensorrt::Field;
using tensorrt::Value;

constexpr int32_t kMostPorts = 3, kMostFields = 4;
constexpr char kFusionVersion[] = "1";

struct Ports {
  int32_t count;
  const char* names[kMostPorts];
};

// Shapes, types and pointers of one call.
struct Operands {
  const nvinfer1::PluginTensorDesc* descriptions;  // of the inputs
  const void* const* inputs;
  void* const* outputs;
  void* stream;
};

using Values = Value[kMostFields];

struct Kind {
  const char* name;
  Ports inputs, outputs;
  uint32_t integers, wide, wide_outputs;  // a bit for each port that is always int32, or float32
  int32_t field_count;
  Field fields[kMostFields];
  // Whether the fields' values make sense; the last field is the precision.
  bool (*settle)(const Values& values, std::string& error);
  // Shape of an output as TensorRT's expressions.
  nvinfer1::DimsExprs (*shape)(const Values& values, int32_t output, const nvinfer1::DimsExprs* inputs, nvinfer1::IExprBuilder& builder);
  // Checks the shapes and calls the kernel; on failure says which port is at fault.
  bool (*run)(const Values& values, const Operands& operands, std::string& error);
};

constexpr int32_t kKinds = 5;
extern const Kind kFusions[kKinds];

// One node: its kind and what its fields say.
class Fusion {
 public:
  explicit Fusion(const Kind& kind) : kind_(kind) {}

  const Kind& kind() const { return kind_; }
  bool read(const nvinfer1::PluginFieldCollection* fields, std::string& error);
  bool read(const std::string& text, std::string& error);
  std::string text() const { return tensorrt::write_lines(kind_.fields, kind_.field_count, values_); }
  std::vector<nvinfer1::PluginField> fields() const { return tensorrt::plugin_fields(kind_.fields, kind_.field_count, values_); }

  bool takes(int32_t inputs, int32_t outputs) const { return inputs == kind_.inputs.count && outputs == kind_.outputs.count; }
  // Whether port `position` (inputs, then outputs) may have this type and format, given the first one.
  bool supports(int32_t position, const nvinfer1::PluginTensorDesc& port, const nvinfer1::PluginTensorDesc& first) const;
  nvinfer1::DimsExprs shape(int32_t output, const nvinfer1::DimsExprs* inputs, nvinfer1::IExprBuilder& builder) const {
    return kind_.shape(values_, output, inputs, builder);
  }
  nvinfer1::DataType output_type(int32_t output, const nvinfer1::DataType* inputs) const {
    return kind_.wide_outputs >> output & 1 ? nvinfer1::DataType::kFLOAT : inputs[0];
  }
  // 0 on success; failures are logged.
  int32_t enqueue(const Operands& operands) const;

 private:
  bool settle(std::string& error);

  const Kind& kind_;
  Values values_;
};

// Names and types of a kind's fields, without values.
const nvinfer1::PluginFieldCollection* field_names(const Kind& kind);

// Says in TensorRT's log why a node cannot be made.
void refuse_node(const Kind& kind, const char* node, const std::string& error);

// The creator of kFusions[index].
tensorrt::AnyCreator* creator(int32_t index);

// All kinds as a JSON object: schema.py's description().
std::string describe_fusions();

}  // namespace lineahead::fusions
