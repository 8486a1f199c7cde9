// The operator for TensorRT 8.6: IPluginV2DynamicExt.
#include "work.h"

#if !LINEAHEAD_V3

#include <cstring>
#include <memory>
#include <new>

#include "library.h"

namespace lineahead::tensorrt {

namespace {

using namespace nvinfer1;

class Plugin final : public IPluginV2DynamicExt {
 public:
  explicit Plugin(const Attributes& attributes) : work_(attributes), text_(attributes.text()) {}

  const char* getPluginType() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  int32_t getNbOutputs() const noexcept override { return kOutputs; }
  int32_t initialize() noexcept override { return 0; }
  void terminate() noexcept override {}
  size_t getSerializationSize() const noexcept override { return text_.size(); }
  void serialize(void* buffer) const noexcept override { std::memcpy(buffer, text_.data(), text_.size()); }
  void destroy() noexcept override { delete this; }
  void setPluginNamespace(const char* name) noexcept override { namespace_ = name ? name : ""; }
  const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

  DataType getOutputDataType(int32_t index, const DataType* types, int32_t) const noexcept override { return types[kSources[index]]; }

  IPluginV2DynamicExt* clone() const noexcept override {
    Plugin* copy = new (std::nothrow) Plugin(work_.attributes());
    if (copy) copy->namespace_ = namespace_;
    return copy;
  }

  DimsExprs getOutputDimensions(int32_t index, const DimsExprs* inputs, int32_t count, IExprBuilder&) noexcept override {
    return count == kInputs ? shape(index, inputs) : DimsExprs{-1, {}};
  }

  bool supportsFormatCombination(int32_t position, const PluginTensorDesc* ports, int32_t inputs, int32_t outputs) noexcept override {
    return inputs == kInputs && outputs == kOutputs && supports(work_.attributes(), position, ports[position], ports[kQuery], ports[kLength]);
  }

  void configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t count, const DynamicPluginTensorDesc*, int32_t) noexcept override {
    if (count != kInputs) return;
    PluginTensorDesc descriptions[kInputs];
    for (int32_t i = 0; i < kInputs; ++i) descriptions[i] = inputs[i].desc;
    work_.prepare(descriptions);
  }

  size_t getWorkspaceSize(const PluginTensorDesc* inputs, int32_t count, const PluginTensorDesc*, int32_t) const noexcept override {
    return count == kInputs ? work_.workspace(inputs) : 0;
  }

  int32_t enqueue(const PluginTensorDesc* descriptions, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                  void* workspace, cudaStream_t stream) noexcept override {
    return work_.enqueue(descriptions, inputs, outputs, workspace, stream);
  }

 private:
  Work work_;
  std::string text_, namespace_;
};

class Creator final : public IPluginCreator {
 public:
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const PluginFieldCollection* getFieldNames() noexcept override { return field_names(); }
  void setPluginNamespace(const char* name) noexcept override { namespace_ = name ? name : ""; }
  const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

  IPluginV2* createPlugin(const char* name, const PluginFieldCollection* fields) noexcept override {
    Attributes attributes;
    std::string error;
    return made(name, attributes.read(fields, error), attributes, error);
  }

  IPluginV2* deserializePlugin(const char* name, const void* data, size_t size) noexcept override {
    Attributes attributes;
    std::string error;
    return made(name, attributes.read(std::string(static_cast<const char*>(data), size), error), attributes, error);
  }

 private:
  IPluginV2* made(const char* name, bool read, const Attributes& attributes, const std::string& error) {
    if (!read) return log_error(std::string(kName) + " '" + (name ? name : "") + "': " + error), nullptr;
    Plugin* plugin = new (std::nothrow) Plugin(attributes);
    if (plugin) plugin->setPluginNamespace(namespace_.c_str());
    return plugin;
  }

  std::string namespace_ = kNamespace;
};

}  // namespace

nvinfer1::IPluginCreator* creator() {
  static Creator one;
  return &one;
}

}  // namespace lineahead::tensorrt

#endif
