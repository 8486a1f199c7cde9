// Calls a plugin library as TensorRT does, behind plain C functions: through the registry of a real TensorRT where one is given.
#include <dlfcn.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include <NvInferRuntime.h>

using namespace nvinfer1;

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kMostDims = 8;
#if NV_TENSORRT_MAJOR >= 10
using Plugin = IPluginV3;
using Creator = IPluginCreatorV3One;
#else
using Plugin = IPluginV2DynamicExt;
using Creator = IPluginCreator;
#endif

std::string messages;

class Log final : public ILogger {
  void log(Severity, const char* text) noexcept override { messages += std::string(text) + "\n"; }
} log_;

class Finder final : public ILoggerFinder {
 public:
  ILogger* findLogger() noexcept override { return &log_; }
} finder;

Creator* creator;
std::vector<Creator*> creators;  // of the library, where there is no registry
#if NV_TENSORRT_MAJOR >= 10
IPluginRegistry* registry;  // of a real TensorRT
IPluginRegistry::PluginLibraryHandle registered = nullptr;  // there
#endif

// Expressions are numbers in place of addresses, worked out at once.
const IDimensionExpr* number(int64_t value) { return reinterpret_cast<const IDimensionExpr*>(value); }
int64_t value_of(const IDimensionExpr& expression) { return reinterpret_cast<int64_t>(&expression); }

struct Expressions final : apiv::VExprBuilder {
#if NV_TENSORRT_MAJOR >= 10
  const IDimensionExpr* constant(int64_t value) override { return number(value); }
  const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) override { return nullptr; }
#else
  const IDimensionExpr* constant(int32_t value) override { return number(value); }
#endif
  const IDimensionExpr* operation(DimensionOperation operation, const IDimensionExpr& first, const IDimensionExpr& second) override {
    return operation == DimensionOperation::kFLOOR_DIV ? number(value_of(first) / value_of(second)) : nullptr;
  }
} expressions;

// As an IExprBuilder lies in memory: what TensorRT's own constructor would make.
struct {
  void* table = nullptr;
  apiv::VExprBuilder* implementation = &expressions;
} expression_builder;

PluginTensorDesc described(const int64_t* dims, int rank, int type, int format) {
  PluginTensorDesc desc{};
  desc.dims.nbDims = rank;
  for (int i = 0; i < rank; ++i) desc.dims.d[i] = dims[i];
  desc.type = static_cast<DataType>(type), desc.format = static_cast<TensorFormat>(format);
  return desc;
}

std::vector<PluginTensorDesc> all(const int64_t* dims, const int* ranks, const int* types, int count) {
  std::vector<PluginTensorDesc> descs;
  for (int i = 0; i < count; ++i) descs.push_back(described(dims + i * kMostDims, ranks[i], types[i], 0));
  return descs;
}

std::vector<DynamicPluginTensorDesc> dynamic(const std::vector<PluginTensorDesc>& descs) {
  std::vector<DynamicPluginTensorDesc> wide(descs.size());
  for (size_t i = 0; i < descs.size(); ++i) {
    wide[i].desc = descs[i], wide[i].min = wide[i].max = descs[i].dims;
#if NV_TENSORRT_MAJOR >= 10
    wide[i].opt = descs[i].dims;
    for (int axis = 0; axis < descs[i].dims.nbDims; ++axis) wide[i].desc.dims.d[axis] = -1;
#endif
  }
  return wide;
}

#if NV_TENSORRT_MAJOR >= 10
template <typename T>
T* part(void* plugin, PluginCapabilityType type) {
  return static_cast<T*>(static_cast<Plugin*>(plugin)->getCapabilityInterface(type));
}
IPluginV3OneBuild* build(void* plugin) { return part<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD); }
IPluginV3OneRuntime* runtime(void* plugin) { return part<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME); }
#else
Plugin* build(void* plugin) { return static_cast<Plugin*>(plugin); }
Plugin* runtime(void* plugin) { return static_cast<Plugin*>(plugin); }
#endif

}  // namespace

// What has been logged since the last time.
EXPORT const char* take_messages() {
  static std::string taken;
  taken.swap(messages);
  messages.clear();
  return taken.c_str();
}

// Work with the creator of this name from now on; 0 when there is one.
EXPORT int choose(const char* name, const char* version) {
  creator = nullptr;
#if NV_TENSORRT_MAJOR >= 10
  if (registry) creator = static_cast<Creator*>(registry->getCreator(name, version, ""));
#endif
  for (Creator* one : creators)
    if (!std::strcmp(one->getPluginName(), name) && !std::strcmp(one->getPluginVersion(), version)) creator = one;
  return creator ? 0 : 4;
}

// 0 when the plugin's creator was found: in TensorRT's registry when `tensorrt` names its library, else in the library itself.
EXPORT int open_library(const char* path, const char* tensorrt, const char* name, const char* version) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return messages += dlerror(), 1;
  int32_t count = 0;
#if NV_TENSORRT_MAJOR >= 10
  if (tensorrt) {
    void* real = dlopen(tensorrt, RTLD_NOW | RTLD_GLOBAL);
    if (!real) return messages += dlerror(), 2;
    registry = reinterpret_cast<IPluginRegistry* (*)()>(dlsym(real, "getPluginRegistry"))();
    if (!(registered = registry->loadLibrary(path))) return 3;
  } else {
    auto all = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"))(count);
    for (int32_t i = 0; i < count; ++i) creators.push_back(static_cast<Creator*>(all[i]));
  }
#else
  (void)tensorrt;
  IPluginCreator* const* all = reinterpret_cast<IPluginCreator* const* (*)(int32_t&)>(dlsym(library, "getPluginCreators"))(count);
  creators.assign(all, all + count);
#endif
  reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
  return choose(name, version);
}

// A registry takes no second library with the same creators.
EXPORT void close_library() {
#if NV_TENSORRT_MAJOR >= 10
  if (registered) registry->deregisterLibrary(registered);
  registered = nullptr;
#endif
}

EXPORT int tensorrt_version() { return NV_TENSORRT_MAJOR * 100 + NV_TENSORRT_MINOR; }

EXPORT int field_count() { return creator->getFieldNames()->nbFields; }
EXPORT const char* field_name(int index) { return creator->getFieldNames()->fields[index].name; }
EXPORT int field_type(int index) { return static_cast<int>(creator->getFieldNames()->fields[index].type); }

EXPORT void* create(int count, const char* const* names, const int* types, const void* const* data, const int* lengths) {
  std::vector<PluginField> fields;
  for (int i = 0; i < count; ++i) fields.emplace_back(names[i], data[i], static_cast<PluginFieldType>(types[i]), lengths[i]);
  const PluginFieldCollection collection{count, fields.data()};
#if NV_TENSORRT_MAJOR >= 10
  return creator->createPlugin("node", &collection, TensorRTPhase::kBUILD);
#else
  return static_cast<Plugin*>(creator->createPlugin("node", &collection));
#endif
}

// As an engine does: what is serialized makes another plugin.
EXPORT void* reload(void* plugin) {
#if NV_TENSORRT_MAJOR >= 10
  return creator->createPlugin("node", runtime(plugin)->getFieldsToSerialize(), TensorRTPhase::kRUNTIME);
#else
  std::vector<char> data(runtime(plugin)->getSerializationSize());
  runtime(plugin)->serialize(data.data());
  return static_cast<Plugin*>(creator->deserializePlugin("node", data.data(), data.size()));
#endif
}

// Deserializes any bytes (8.6 alone).
EXPORT void* from_bytes(const char* data, size_t size) {
#if NV_TENSORRT_MAJOR >= 10
  return (void)data, (void)size, nullptr;
#else
  return static_cast<Plugin*>(creator->deserializePlugin("node", data, size));
#endif
}

// As an execution context does.
EXPORT void* attach(void* plugin) {
#if NV_TENSORRT_MAJOR >= 10
  return runtime(plugin)->attachToContext(nullptr);
#else
  return runtime(plugin)->clone();
#endif
}

EXPORT void destroy(void* plugin) {
#if NV_TENSORRT_MAJOR >= 10
  delete static_cast<Plugin*>(plugin);
#else
  runtime(plugin)->destroy();
#endif
}

EXPORT int output_count(void* plugin) { return build(plugin)->getNbOutputs(); }

EXPORT int aliased_input(void* plugin, int output) {
#if NV_TENSORRT_MAJOR >= 10
  return part<IPluginV3OneBuildV2>(plugin, PluginCapabilityType::kBUILD)->getAliasedInput(output);
#else
  return (void)plugin, (void)output, -1;
#endif
}

EXPORT int is_supported(void* plugin, int position, const int* types, const int* formats, int inputs, int outputs) {
  std::vector<PluginTensorDesc> descs;
  for (int i = 0; i < inputs + outputs; ++i) descs.push_back(described(nullptr, 0, types[i], formats[i]));
#if NV_TENSORRT_MAJOR >= 10
  return build(plugin)->supportsFormatCombination(position, dynamic(descs).data(), inputs, outputs);
#else
  return build(plugin)->supportsFormatCombination(position, descs.data(), inputs, outputs);
#endif
}

EXPORT int output_types(void* plugin, const int* types, int inputs, int* found, int outputs) {
  std::vector<DataType> given, made(outputs);
  for (int i = 0; i < inputs; ++i) given.push_back(static_cast<DataType>(types[i]));
#if NV_TENSORRT_MAJOR >= 10
  if (build(plugin)->getOutputDataTypes(made.data(), outputs, given.data(), inputs)) return 1;
#else
  for (int i = 0; i < outputs; ++i) made[i] = build(plugin)->getOutputDataType(i, given.data(), inputs);
#endif
  for (int i = 0; i < outputs; ++i) found[i] = static_cast<int>(made[i]);
  return 0;
}

// Shapes of the outputs from those of the inputs, kMostDims numbers each.
EXPORT int output_shapes(void* plugin, const int64_t* dims, const int* ranks, int inputs, int64_t* found, int* found_ranks, int outputs) {
  std::vector<DimsExprs> given(inputs), made(outputs);
  for (int i = 0; i < inputs; ++i) {
    given[i].nbDims = ranks[i];
    for (int axis = 0; axis < ranks[i]; ++axis) given[i].d[axis] = number(dims[i * kMostDims + axis]);
  }
  IExprBuilder& builder = *reinterpret_cast<IExprBuilder*>(&expression_builder);
#if NV_TENSORRT_MAJOR >= 10
  if (build(plugin)->getOutputShapes(given.data(), inputs, nullptr, 0, made.data(), outputs, builder)) return 1;
#else
  for (int i = 0; i < outputs; ++i) made[i] = build(plugin)->getOutputDimensions(i, given.data(), inputs, builder);
#endif
  for (int i = 0; i < outputs; ++i) {
    found_ranks[i] = made[i].nbDims;
    for (int axis = 0; axis < made[i].nbDims; ++axis) found[i * kMostDims + axis] = value_of(*made[i].d[axis]);
  }
  return 0;
}

EXPORT size_t workspace_size(void* plugin, const int64_t* dims, const int* ranks, const int* types, int inputs) {
  const auto descs = all(dims, ranks, types, inputs);
#if NV_TENSORRT_MAJOR >= 10
  return build(plugin)->getWorkspaceSize(dynamic(descs).data(), inputs, nullptr, 0);
#else
  return build(plugin)->getWorkspaceSize(descs.data(), inputs, nullptr, 0);
#endif
}

// The shapes' announcement; 8.6's returns nothing.
EXPORT int announce(void* plugin, const int64_t* dims, const int* ranks, const int* types, int inputs) {
  const auto descs = all(dims, ranks, types, inputs);
#if NV_TENSORRT_MAJOR >= 10
  return runtime(plugin)->onShapeChange(descs.data(), inputs, nullptr, 0);
#else
  return runtime(plugin)->configurePlugin(dynamic(descs).data(), inputs, nullptr, 0), 0;
#endif
}

EXPORT int enqueue(void* plugin, const int64_t* dims, const int* ranks, const int* types, int inputs, const void* const* in, void* const* out,
                   void* workspace) {
  const auto descs = all(dims, ranks, types, inputs);
  return runtime(plugin)->enqueue(descs.data(), nullptr, in, out, workspace, nullptr);
}
