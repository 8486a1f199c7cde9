// The best of each row of logits, as one 64-bit key: the score made comparable above, the complement of its place below, so that
// the largest key is the largest score and, among equals, the first. A score that is not a number is larger than all numbers.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kThreads = 256, kPerBlock = 8192;  // scores a block looks at

__device__ uint64_t key(float score, int place) {
  const uint32_t bits = isnan(score) ? 0x7fffffffu : __float_as_uint(score + 0.0f);  // no negative zero
  const uint32_t order = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (uint64_t)order << 32 | (uint32_t)~place;
}

__global__ void best_tokens(const float* logits, unsigned long long* keys, int width) {
  const float* row = logits + (size_t)blockIdx.y * width;
  const int first = blockIdx.x * kPerBlock, last = min(first + kPerBlock, width);
  uint64_t best = 0;
  for (int place = first + threadIdx.x; place < last; place += kThreads) best = max(best, key(row[place], place));
  for (int lane = 16; lane; lane /= 2) best = max(best, __shfl_xor_sync(~0u, best, lane));
  if (threadIdx.x % 32 == 0) atomicMax(keys + blockIdx.y, (unsigned long long)best);
}

}  // namespace

// Enqueue it for `rows` rows of `width` float32 on `stream` (a cudaStream_t); returns a cudaError_t.
extern "C" int lineahead_best_tokens(const float* logits, unsigned long long* keys, int rows, int width, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaMemsetAsync(keys, 0, rows * sizeof(*keys), queue);
  if (error != cudaSuccess) return error;
  best_tokens<<<dim3((width + kPerBlock - 1) / kPerBlock, rows), kThreads, 0, queue>>>(logits, keys, width);
  return cudaGetLastError();
}
