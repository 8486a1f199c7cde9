// The operator for TensorRT 10 and later: IPluginV3 with its three capabilities.
#include "work.h"

#if LINEAHEAD_V3

#include <new>

#include "library.h"

#define LINEAHEAD_ALIASES (NV_TENSORRT_MAJOR > 10 || NV_TENSORRT_MINOR >= 3)

namespace lineahead::tensorrt {

namespace {

using namespace nvinfer1;

#if LINEAHEAD_ALIASES
using Build = IPluginV3OneBuildV2;
#else
using Build = IPluginV3OneBuild;
#endif

class Plugin final : public IPluginV3, public IPluginV3OneCore, public Build, public IPluginV3OneRuntime {
 public:
  explicit Plugin(const Attributes& attributes)
      : work_(attributes), timing_("lineahead " LINEAHEAD_SOURCE_HASH "\n" + attributes.text()), fields_(work_.attributes().fields()) {
    collection_.nbFields = static_cast<int32_t>(fields_.size());
    collection_.fields = fields_.data();
  }

  IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
      case PluginCapabilityType::kBUILD: return static_cast<Build*>(this);
      case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }
  IPluginV3* clone() noexcept override { return new (std::nothrow) Plugin(work_.attributes()); }

  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t getNbOutputs() const noexcept override { return kOutputs; }
  const char* getTimingCacheID() noexcept override { return timing_.c_str(); }

  int32_t configurePlugin(const DynamicPluginTensorDesc*, int32_t inputs, const DynamicPluginTensorDesc*, int32_t outputs) noexcept override {
    if (inputs == kInputs && outputs == kOutputs) return 0;
    return log_error(std::string(kName) + " takes " + std::to_string(kInputs) + " inputs and gives " + std::to_string(kOutputs) +
                     " outputs, not " + std::to_string(inputs) + " and " + std::to_string(outputs)), 1;
  }

  int32_t getOutputDataTypes(DataType* outputs, int32_t count, const DataType* inputs, int32_t input_count) const noexcept override {
    if (input_count != kInputs || count != kOutputs) return 1;
    for (int32_t i = 0; i < kOutputs; ++i) outputs[i] = inputs[kSources[i]];
    return 0;
  }

  int32_t getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*, int32_t, DimsExprs* outputs, int32_t count,
                          IExprBuilder&) noexcept override {
    if (input_count != kInputs || count != kOutputs) return 1;
    for (int32_t i = 0; i < kOutputs; ++i) outputs[i] = shape(i, inputs);
    return 0;
  }

  bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* ports, int32_t inputs,
                                 int32_t outputs) noexcept override {
    return inputs == kInputs && outputs == kOutputs &&
           supports(work_.attributes(), position, ports[position].desc, ports[kQuery].desc, ports[kLength].desc);
  }

  size_t getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t count, const DynamicPluginTensorDesc*,
                          int32_t) const noexcept override {
    if (count != kInputs) return 0;
    PluginTensorDesc largest[kInputs];
    for (int32_t i = 0; i < kInputs; ++i) largest[i] = inputs[i].desc, largest[i].dims = inputs[i].max;
    return work_.workspace(largest);
  }

#if LINEAHEAD_ALIASES
  int32_t getAliasedInput(int32_t output) noexcept override {
    return is_updated(work_.attributes().settings, output) ? kSources[output] : -1;
  }
#endif

  int32_t onShapeChange(const PluginTensorDesc* inputs, int32_t count, const PluginTensorDesc*, int32_t) noexcept override {
    return count == kInputs ? work_.prepare(inputs) : 1;
  }

  int32_t enqueue(const PluginTensorDesc* descriptions, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                  void* workspace, cudaStream_t stream) noexcept override {
    return work_.enqueue(descriptions, inputs, outputs, workspace, stream);
  }

  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }  // with counters of its own
  const PluginFieldCollection* getFieldsToSerialize() noexcept override { return &collection_; }

 private:
  Work work_;
  std::string timing_;
  std::vector<PluginField> fields_;
  PluginFieldCollection collection_{};
};

class Creator final : public IPluginCreatorV3One {
 public:
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }
  const PluginFieldCollection* getFieldNames() noexcept override { return field_names(); }

  IPluginV3* createPlugin(const char* name, const PluginFieldCollection* fields, TensorRTPhase) noexcept override {
    Attributes attributes;
    std::string error;
    if (attributes.read(fields, error)) return new (std::nothrow) Plugin(attributes);
    return log_error(std::string(kName) + " '" + (name ? name : "") + "': " + error), nullptr;
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* creator() {
  static Creator one;
  return &one;
}

}  // namespace lineahead::tensorrt

#endif
