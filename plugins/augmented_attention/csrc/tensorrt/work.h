// What a plugin object owns and does beyond describing itself: counters on the device, and the call.
#pragma once

#include <vector>

#include "operator.h"

namespace lineahead::tensorrt {

// Zeroed counters on the device. A CUDA graph may hold an older block, so none is freed before the object.
class Tickets {
 public:
  Tickets() = default;
  Tickets(const Tickets&) = delete;  // a clone serves another stream and needs its own
  Tickets& operator=(const Tickets&) = delete;
  ~Tickets();

  bool reserve(size_t count, std::string& error);
  uint32_t* data() const { return blocks_.empty() ? nullptr : blocks_.back(); }

 private:
  std::vector<uint32_t*> blocks_;
  size_t count_ = 0;
};

// One node of a network: its fields, and what it needs to run.
class Work {
 public:
  explicit Work(const Attributes& attributes) : attributes_(attributes) {}

  const Attributes& attributes() const { return attributes_; }
  // Makes room for calls of these shapes; not to be called while a stream is captured. 0 on success; failures are logged.
  int32_t prepare(const nvinfer1::PluginTensorDesc* inputs);
  // Bytes of workspace for calls of these shapes or smaller ones.
  size_t workspace(const nvinfer1::PluginTensorDesc* inputs) const;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* descriptions, const void* const* inputs, void* const* outputs, void* workspace,
                  void* stream);

 private:
  Attributes attributes_;
  Tickets tickets_;
};

// Sends an error to the logger that TensorRT lent, or to standard error.
void log_error(const std::string& text);

}  // namespace lineahead::tensorrt
