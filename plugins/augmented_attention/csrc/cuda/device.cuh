// The hardware as the kernels use it. Tests replace this file with one that runs a block's threads on a CPU.
#pragma once

#include <cuda_runtime.h>

namespace lineahead::cuda {

__device__ __forceinline__ int thread_index() { return threadIdx.x; }
__device__ __forceinline__ uint3 block_index() { return blockIdx; }
__device__ __forceinline__ dim3 grid_size() { return gridDim; }

__device__ __forceinline__ char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }
__device__ __forceinline__ float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
__device__ __forceinline__ unsigned ballot(bool vote) { return __ballot_sync(0xffffffffu, vote); }
__device__ __forceinline__ int bit_count(unsigned bits) { return __popc(bits); }

// Start copying 16 bytes to shared memory; `wait_copies` waits for all that this thread started.
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  const unsigned address = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}
__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ __forceinline__ void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

// Whether the calling block is the last of `count` to come here; the counter is zero again after that.
__device__ __forceinline__ bool last_to_arrive(unsigned* counter, unsigned count) {
  __threadfence();
  return atomicInc(counter, count - 1) == count - 1;
}

}  // namespace lineahead::cuda
