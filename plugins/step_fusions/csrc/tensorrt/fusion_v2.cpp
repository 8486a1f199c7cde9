// The fused operators for TensorRT 8.6: IPluginV2DynamicExt.
#include "fusion.h"

#if !LINEAHEAD_V3

#include <cstring>
#include <new>

namespace lineahead::fusions {

namespace {

using namespace nvinfer1;

class Plugin final : public IPluginV2DynamicExt {
 public:
  explicit Plugin(const Fusion& fusion) : fusion_(fusion), text_(fusion.text()) {}

  const char* getPluginType() const noexcept override { return fusion_.kind().name; }
  const char* getPluginVersion() const noexcept override { return kFusionVersion; }
  int32_t getNbOutputs() const noexcept override { return fusion_.kind().outputs.count; }
  int32_t initialize() noexcept override { return 0; }
  void terminate() noexcept override {}
  size_t getSerializationSize() const noexcept override { return text_.size(); }
  void serialize(void* buffer) const noexcept override { std::memcpy(buffer, text_.data(), text_.size()); }
  void destroy() noexcept override { delete this; }
  void setPluginNamespace(const char* name) noexcept override { namespace_ = name ? name : ""; }
  const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

  DataType getOutputDataType(int32_t index, const DataType* types, int32_t) const noexcept override {
    return fusion_.output_type(index, types);
  }

  IPluginV2DynamicExt* clone() const noexcept override {
    Plugin* copy = new (std::nothrow) Plugin(fusion_);
    if (copy) copy->namespace_ = namespace_;
    return copy;
  }

  DimsExprs getOutputDimensions(int32_t index, const DimsExprs* inputs, int32_t count, IExprBuilder& builder) noexcept override {
    return count == fusion_.kind().inputs.count ? fusion_.shape(index, inputs, builder) : DimsExprs{-1, {}};
  }

  bool supportsFormatCombination(int32_t position, const PluginTensorDesc* ports, int32_t inputs, int32_t outputs) noexcept override {
    return fusion_.takes(inputs, outputs) && fusion_.supports(position, ports[position], ports[0]);
  }

  void configurePlugin(const DynamicPluginTensorDesc*, int32_t, const DynamicPluginTensorDesc*, int32_t) noexcept override {}
  size_t getWorkspaceSize(const PluginTensorDesc*, int32_t, const PluginTensorDesc*, int32_t) const noexcept override { return 0; }

  int32_t enqueue(const PluginTensorDesc* descriptions, const PluginTensorDesc*, const void* const* inputs, void* const* outputs, void*,
                  cudaStream_t stream) noexcept override {
    return fusion_.enqueue({descriptions, inputs, outputs, stream});
  }

 private:
  Fusion fusion_;
  std::string text_, namespace_;
};

class Creator final : public IPluginCreator {
 public:
  explicit Creator(const Kind& kind) : kind_(kind) {}

  const char* getPluginName() const noexcept override { return kind_.name; }
  const char* getPluginVersion() const noexcept override { return kFusionVersion; }
  const PluginFieldCollection* getFieldNames() noexcept override { return field_names(kind_); }
  void setPluginNamespace(const char* name) noexcept override { namespace_ = name ? name : ""; }
  const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

  IPluginV2* createPlugin(const char* name, const PluginFieldCollection* fields) noexcept override {
    Fusion fusion(kind_);
    std::string error;
    return made(name, fusion.read(fields, error), fusion, error);
  }

  IPluginV2* deserializePlugin(const char* name, const void* data, size_t size) noexcept override {
    Fusion fusion(kind_);
    std::string error;
    return made(name, fusion.read(std::string(static_cast<const char*>(data), size), error), fusion, error);
  }

 private:
  IPluginV2* made(const char* name, bool read, const Fusion& fusion, const std::string& error) {
    if (!read) return refuse_node(kind_, name, error), nullptr;
    Plugin* plugin = new (std::nothrow) Plugin(fusion);
    if (plugin) plugin->setPluginNamespace(namespace_.c_str());
    return plugin;
  }

  const Kind& kind_;
  std::string namespace_;
};

}  // namespace

tensorrt::AnyCreator* creator(int32_t index) {
  static std::vector<Creator> all(kFusions, kFusions + kKinds);
  return &all[index];
}

}  // namespace lineahead::fusions

#endif
