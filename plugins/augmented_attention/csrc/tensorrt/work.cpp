// Counters, workspace and calls.
#include "work.h"

#include <algorithm>

#include <cuda_runtime_api.h>

namespace lineahead::tensorrt {

namespace {

constexpr size_t kFewest = 1024;

int32_t fail(const std::string& text) {
  log_error(std::string(kName) + ": " + text);
  return 1;
}

bool is_known(const nvinfer1::PluginTensorDesc* inputs) {
  for (int32_t i = 0; i < kInputs; ++i)
    for (int32_t axis = 0; axis < inputs[i].dims.nbDims; ++axis)
      if (inputs[i].dims.d[axis] < 0) return false;
  return true;
}

}  // namespace

Tickets::~Tickets() {
  for (uint32_t* block : blocks_) cudaFree(block);
}

bool Tickets::reserve(size_t count, std::string& error) {
  if (count <= count_) return true;
  count = std::max({count, 2 * count_, kFewest});
  void* block = nullptr;
  cudaError_t code = cudaMalloc(&block, count * sizeof(uint32_t));
  if (code == cudaSuccess) {
    blocks_.push_back(static_cast<uint32_t*>(block));
    code = cudaMemset(block, 0, count * sizeof(uint32_t));
  }
  if (code == cudaSuccess) code = cudaStreamSynchronize(nullptr);  // other streams do not wait for the default one
  if (code != cudaSuccess) {
    error = std::string("cannot set up its counters: ") + cudaGetErrorString(code) +
            "; run these shapes once before capturing them in a CUDA graph";
    return false;
  }
  count_ = count;
  return true;
}

int32_t Work::prepare(const nvinfer1::PluginTensorDesc* inputs) {
  if (!is_known(inputs)) return 0;  // while building, before shapes are chosen
  cuda::Call call;
  std::string error;
  if (!describe(attributes_, inputs, call, error) || !tickets_.reserve(lineahead_ticket_count(&call), error)) return fail(error);
  return 0;
}

size_t Work::workspace(const nvinfer1::PluginTensorDesc* inputs) const {
  cuda::Call call;
  std::string error;
  if (!is_known(inputs)) return 0;
  if (!describe(attributes_, inputs, call, error)) return fail(error), 0;
  return lineahead_workspace_size(&call);
}

int32_t Work::enqueue(const nvinfer1::PluginTensorDesc* descriptions, const void* const* inputs, void* const* outputs, void* workspace,
                      void* stream) {
  cuda::Call call;
  std::string error;
  if (!describe(attributes_, descriptions, call, error)) return fail(error);
  if (!tickets_.reserve(lineahead_ticket_count(&call), error)) return fail(error);
  point(call, inputs, outputs);
  call.tickets = tickets_.data(), call.workspace = workspace;
  char message[256] = {};
  const int code = lineahead_augmented_attention(&call, stream, message, sizeof message);
  return code ? fail(message) : 0;
}

}  // namespace lineahead::tensorrt
