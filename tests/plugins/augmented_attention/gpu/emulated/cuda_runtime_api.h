// As much of CUDA's runtime as TensorRT's headers and the plugins use, on a CPU: device memory is the host's.
#pragma once

#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>

using cudaEvent_t = void*;
inline cudaError_t cudaMalloc(void** block, size_t size) {
  *block = std::malloc(size);
  if (*block) std::memset(*block, 0xff, size);
  return *block ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaFree(void* block) { return std::free(block), cudaSuccess; }
inline cudaError_t cudaMemset(void* block, int byte, size_t size) { return std::memset(block, byte, size), cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
