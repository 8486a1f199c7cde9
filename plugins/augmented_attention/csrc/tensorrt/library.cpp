// What the library exports: to TensorRT's loadLibrary (and so trtexec --dynamicPlugins) its creators, to everyone what it is.
#include "library.h"

#include <cstdio>

#include "fusion.h"
#include "work.h"

#define LINEAHEAD_EXPORT extern "C" __attribute__((visibility("default")))
#define LINEAHEAD_TEXT_OF(x) #x
#define LINEAHEAD_TEXT(x) LINEAHEAD_TEXT_OF(x)
#ifndef LINEAHEAD_ARCHITECTURES
#define LINEAHEAD_ARCHITECTURES ""
#endif

namespace lineahead::tensorrt {

namespace {

nvinfer1::ILoggerFinder* finder = nullptr;

std::string quoted(const char* text) { return "\"" + std::string(text) + "\""; }

template <size_t kCount>
std::string list(const char* const (&names)[kCount]) {
  std::string text = "[";
  for (const char* name : names) text += (text.size() > 1 ? ", " : "") + quoted(name);
  return text + "]";
}

std::string describe_library() {
  static const char* const kinds[] = {"string", "int", "float"};
  std::string fields, aliased;
  for (const Field& field : kFields)
    fields += (fields.empty() ? "" : ", ") + quoted(field.name) + ": " + quoted(kinds[static_cast<int>(field.kind)]);
  cuda::Settings all{};
  all.map = cuda::kIdentity, all.normalizer = cuda::kDenominator;
  for (int32_t i = 0; i < kOutputs; ++i)
    if (is_updated(all, i)) aliased += (aliased.empty() ? "" : ", ") + quoted(kOutputNames[i]);
  return "{\"name\": " + quoted(kName) + ", \"version\": " + quoted(kVersion) + ", \"namespace\": " + quoted(kNamespace) +
         ", \"inputs\": " + list(kInputNames) + ", \"outputs\": " + list(kOutputNames) + ", \"aliased\": [" + aliased +
         "], \"fields\": {" + fields + "}, \"fusions\": " + fusions::describe_fusions() + ", \"build\": {\"source_hash\": " + quoted(LINEAHEAD_SOURCE_HASH) +
         ", \"tensorrt\": \"" LINEAHEAD_TEXT(NV_TENSORRT_MAJOR) "." LINEAHEAD_TEXT(NV_TENSORRT_MINOR) "." LINEAHEAD_TEXT(
             NV_TENSORRT_PATCH) "\", \"interface\": " + quoted(LINEAHEAD_V3 ? "IPluginV3" : "IPluginV2DynamicExt") +
         ", \"architectures\": " + quoted(LINEAHEAD_ARCHITECTURES) + "}}";
}

}  // namespace

void log_error(const std::string& text) {
  nvinfer1::ILogger* logger = finder ? finder->findLogger() : nullptr;
  if (logger)
    logger->log(nvinfer1::ILogger::Severity::kERROR, text.c_str());
  else
    std::fprintf(stderr, "%s\n", text.c_str());
}

const nvinfer1::PluginFieldCollection* field_names() {
  static const std::vector<nvinfer1::PluginField> fields = announced_fields(kFields, kFieldCount);
  static const nvinfer1::PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  return &collection;
}

}  // namespace lineahead::tensorrt

// A JSON object: tensorrt.py's description(), and `build`.
LINEAHEAD_EXPORT const char* lineahead_plugin_description() {
  static const std::string text = lineahead::tensorrt::describe_library();
  return text.c_str();
}

LINEAHEAD_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { lineahead::tensorrt::finder = finder; }

namespace {

// The attention's creator first, then those of the fused operators.
const std::vector<lineahead::tensorrt::AnyCreator*>& all_creators() {
  static const std::vector<lineahead::tensorrt::AnyCreator*> all = [] {
    std::vector<lineahead::tensorrt::AnyCreator*> made{lineahead::tensorrt::creator()};
    for (int32_t i = 0; i < lineahead::fusions::kKinds; ++i) made.push_back(lineahead::fusions::creator(i));
    return made;
  }();
  return all;
}

}  // namespace

#if LINEAHEAD_V3
LINEAHEAD_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
#else
LINEAHEAD_EXPORT nvinfer1::IPluginCreator* const* getPluginCreators(int32_t& count) {
#endif
  count = static_cast<int32_t>(all_creators().size());
  return all_creators().data();
}

#if !LINEAHEAD_V3
// Put the creators into a registry: 8.6's own loadLibrary crashes in some builds of its Python package. Returns how many are not new.
LINEAHEAD_EXPORT int lineahead_register(nvinfer1::IPluginRegistry* registry) {
  int known = 0;
  for (nvinfer1::IPluginCreator* one : all_creators()) known += !registry->registerCreator(*one, "");
  return known;
}
#endif
