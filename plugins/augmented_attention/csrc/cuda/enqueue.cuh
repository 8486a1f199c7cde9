// One launch.
#pragma once

#include <cuda_runtime.h>

#include "numbers.cuh"
#include "layout.h"

namespace lineahead::cuda {

inline cudaError_t enqueue(const void* kernel, const Call& call, const Layout& layout, dim3 grid, int bytes, cudaStream_t stream,
                           int threads = kThreads) {
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  int ring = ring_rows(call.settings);
  void* arguments[] = {const_cast<Call*>(&call), const_cast<Layout*>(&layout), &ring};
  return cudaLaunchKernel(kernel, grid, dim3(threads), arguments, bytes, stream);
}

}  // namespace lineahead::cuda
