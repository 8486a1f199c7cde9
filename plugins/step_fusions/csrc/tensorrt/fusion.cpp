// What the kinds have in common.
#include "fusion.h"

#include "work.h"

namespace lineahead::fusions {

using nvinfer1::DataType;

bool Fusion::read(const nvinfer1::PluginFieldCollection* fields, std::string& error) {
  return tensorrt::read_fields(kind_.fields, kind_.field_count, fields, values_, error) && settle(error);
}

bool Fusion::read(const std::string& text, std::string& error) {
  return tensorrt::read_lines(kind_.fields, kind_.field_count, text, values_, error) && settle(error);
}

bool Fusion::settle(std::string& error) {
  return tensorrt::settle_precision(values_[kind_.field_count - 1], error) && kind_.settle(values_, error);
}

bool Fusion::supports(int32_t position, const nvinfer1::PluginTensorDesc& port, const nvinfer1::PluginTensorDesc& first) const {
  if (position < 0 || position >= kind_.inputs.count + kind_.outputs.count) return false;
  if (port.format != nvinfer1::TensorFormat::kLINEAR) return false;
  const int32_t output = position - kind_.inputs.count;
  if (output < 0 && kind_.integers >> position & 1) return port.type == DataType::kINT32;
  if (output < 0 ? kind_.wide >> position & 1 : kind_.wide_outputs >> output & 1) return port.type == DataType::kFLOAT;
  return position ? port.type == first.type : tensorrt::allows(values_[kind_.field_count - 1], port.type);
}

int32_t Fusion::enqueue(const Operands& operands) const {
  std::string error;
  if (kind_.run(values_, operands, error)) return 0;
  tensorrt::log_error(std::string(kind_.name) + ": " + error);
  return 1;
}

const nvinfer1::PluginFieldCollection* field_names(const Kind& kind) {
  struct Announced {
    std::vector<nvinfer1::PluginField> fields;
    nvinfer1::PluginFieldCollection collection;
  };
  static const std::vector<Announced> all = [] {
    std::vector<Announced> made(kKinds);
    for (int32_t i = 0; i < kKinds; ++i) {
      made[i].fields = tensorrt::announced_fields(kFusions[i].fields, kFusions[i].field_count);
      made[i].collection = {static_cast<int32_t>(made[i].fields.size()), made[i].fields.data()};
    }
    return made;
  }();
  return &all[&kind - kFusions].collection;
}

void refuse_node(const Kind& kind, const char* node, const std::string& error) {
  tensorrt::log_error(std::string(kind.name) + " '" + (node ? node : "") + "': " + error);
}

namespace {

std::string quoted(const char* text) { return "\"" + std::string(text) + "\""; }

std::string list(const Ports& ports) {
  std::string text = "[";
  for (int32_t i = 0; i < ports.count; ++i) text += (i ? ", " : "") + quoted(ports.names[i]);
  return text + "]";
}

}  // namespace

std::string describe_fusions() {
  static const char* const kinds[] = {"string", "int", "float"};
  std::string text = "{";
  for (int32_t i = 0; i < kKinds; ++i) {
    const Kind& kind = kFusions[i];
    text += (i ? ", " : "") + quoted(kind.name) + ": {\"inputs\": " + list(kind.inputs) + ", \"outputs\": " + list(kind.outputs) + ", \"fields\": {";
    for (int32_t field = 0; field < kind.field_count; ++field)
      text += (field ? ", " : "") + quoted(kind.fields[field].name) + ": " + quoted(kinds[static_cast<int>(kind.fields[field].kind)]);
    text += "}}";
  }
  return text + "}";
}

}  // namespace lineahead::fusions
