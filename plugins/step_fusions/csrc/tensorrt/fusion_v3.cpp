// The fused operators for TensorRT 10 and later: IPluginV3 with its three capabilities.
#include "fusion.h"

#if LINEAHEAD_V3

#include <new>

namespace lineahead::fusions {

namespace {

using namespace nvinfer1;

class Plugin final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime {
 public:
  explicit Plugin(const Fusion& fusion)
      : fusion_(fusion), timing_("lineahead " LINEAHEAD_SOURCE_HASH "\n" + fusion.text()), fields_(fusion_.fields()) {
    collection_.nbFields = static_cast<int32_t>(fields_.size());
    collection_.fields = fields_.data();
  }

  IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
      case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
      case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }
  IPluginV3* clone() noexcept override { return new (std::nothrow) Plugin(fusion_); }

  const char* getPluginName() const noexcept override { return fusion_.kind().name; }
  const char* getPluginVersion() const noexcept override { return kFusionVersion; }
  const char* getPluginNamespace() const noexcept override { return ""; }

  int32_t getNbOutputs() const noexcept override { return fusion_.kind().outputs.count; }
  const char* getTimingCacheID() noexcept override { return timing_.c_str(); }

  int32_t configurePlugin(const DynamicPluginTensorDesc*, int32_t inputs, const DynamicPluginTensorDesc*, int32_t outputs) noexcept override {
    return !fusion_.takes(inputs, outputs);
  }

  int32_t getOutputDataTypes(DataType* outputs, int32_t count, const DataType* inputs, int32_t input_count) const noexcept override {
    if (!fusion_.takes(input_count, count)) return 1;
    for (int32_t i = 0; i < count; ++i) outputs[i] = fusion_.output_type(i, inputs);
    return 0;
  }

  int32_t getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*, int32_t, DimsExprs* outputs, int32_t count,
                          IExprBuilder& builder) noexcept override {
    if (!fusion_.takes(input_count, count)) return 1;
    for (int32_t i = 0; i < count; ++i) outputs[i] = fusion_.shape(i, inputs, builder);
    return outputs[0].nbDims < 0;
  }

  bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* ports, int32_t inputs,
                                 int32_t outputs) noexcept override {
    return fusion_.takes(inputs, outputs) && fusion_.supports(position, ports[position].desc, ports[0].desc);
  }

  size_t getWorkspaceSize(const DynamicPluginTensorDesc*, int32_t, const DynamicPluginTensorDesc*, int32_t) const noexcept override {
    return 0;
  }
  int32_t onShapeChange(const PluginTensorDesc*, int32_t, const PluginTensorDesc*, int32_t) noexcept override { return 0; }

  int32_t enqueue(const PluginTensorDesc* descriptions, const PluginTensorDesc*, const void* const* inputs, void* const* outputs, void*,
                  cudaStream_t stream) noexcept override {
    return fusion_.enqueue({descriptions, inputs, outputs, stream});
  }

  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }
  const PluginFieldCollection* getFieldsToSerialize() noexcept override { return &collection_; }

 private:
  Fusion fusion_;
  std::string timing_;
  std::vector<PluginField> fields_;
  PluginFieldCollection collection_{};
};

class Creator final : public IPluginCreatorV3One {
 public:
  explicit Creator(const Kind& kind) : kind_(kind) {}

  const char* getPluginName() const noexcept override { return kind_.name; }
  const char* getPluginVersion() const noexcept override { return kFusionVersion; }
  const char* getPluginNamespace() const noexcept override { return ""; }
  const PluginFieldCollection* getFieldNames() noexcept override { return field_names(kind_); }

  IPluginV3* createPlugin(const char* name, const PluginFieldCollection* fields, TensorRTPhase) noexcept override {
    Fusion fusion(kind_);
    std::string error;
    if (fusion.read(fields, error)) return new (std::nothrow) Plugin(fusion);
    return refuse_node(kind_, name, error), nullptr;
  }

 private:
  const Kind& kind_;
};

}  // namespace

tensorrt::AnyCreator* creator(int32_t index) {
  static std::vector<Creator> all(kFusions, kFusions + kKinds);
  return &all[index];
}

}  // namespace lineahead::fusions

#endif
