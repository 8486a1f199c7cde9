// The operator as TensorRT sees it: ports and fields by the names and in the order of schema.py and tensorrt.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../cuda/call.h"
#include "fields.h"

namespace lineahead::tensorrt {

constexpr char kName[] = "AugmentedAttention", kVersion[] = "1", kNamespace[] = "";

enum Input : int32_t {
  kQuery, kKey, kValue, kAncestors, kLength, kAcceptIndex, kAcceptCount, kState, kNorm, kWindowKey, kWindowValue, kPendingKey,
  kPendingValue, kAlpha, kLocalScale, kConv, kQueryMap, kKeyMap, kInputs,
};
enum Output : int32_t { kOutput, kStateOut, kNormOut, kWindowKeyOut, kWindowValueOut, kPendingKeyOut, kOutputs };
extern const char* const kInputNames[kInputs];
extern const char* const kOutputNames[kOutputs];
// The input whose shape and type an output has; `output` has the value's last axis.
extern const Input kSources[kOutputs];

enum FieldName : int32_t {
  kFieldLocal, kFieldPattern, kFieldWindow, kFieldMap, kFieldFeatureDim, kFieldNormalizer, kFieldNormalizes, kFieldQkNorm,
  kFieldLocalNorm, kFieldTaps, kFieldEps, kFieldSinks, kFieldCausal, kFieldScale, kFieldChain, kFieldPrecision, kFieldCount,
};
extern const Field kFields[kFieldCount];

// The fields of one node, and what the kernels make of them.
struct Attributes {
  Value values[kFieldCount];
  cuda::Settings settings{};

  // Reads the fields; on failure says which one is at fault.
  bool read(const nvinfer1::PluginFieldCollection* fields, std::string& error);
  bool read(const std::string& text, std::string& error);
  // As text that the other `read` takes; the same numbers to the bit.
  std::string text() const;
  // Fields that the first `read` takes; they point into this object.
  std::vector<nvinfer1::PluginField> fields() const;

 private:
  bool settle(std::string& error);
};

// Whether the settings keep something in `output` that is the next call's input: it may be updated in place.
bool is_updated(const cuda::Settings& settings, int32_t output);

// Whether port `position` (inputs, then outputs) may have this type and format, given those before it.
bool supports(const Attributes& attributes, int32_t position, const nvinfer1::PluginTensorDesc& port, const nvinfer1::PluginTensorDesc& query,
              const nvinfer1::PluginTensorDesc& length);

// Sizes and types of a call whose inputs are as described, without pointers; on failure says which port is at fault.
bool describe(const Attributes& attributes, const nvinfer1::PluginTensorDesc* inputs, cuda::Call& call, std::string& error);

void point(cuda::Call& call, const void* const* inputs, void* const* outputs);

// Shape of an output as TensorRT's expressions.
nvinfer1::DimsExprs shape(int32_t output, const nvinfer1::DimsExprs* inputs);

}  // namespace lineahead::tensorrt
