// The best of each row of logits, as its key.
#include "token_key.cuh"

namespace {

constexpr int kThreads = 256, kPerBlock = 8192;  // scores a block looks at

__global__ void best_tokens(const float* logits, unsigned long long* keys, int width) {
  const float* row = logits + (size_t)blockIdx.y * width;
  const int first = blockIdx.x * kPerBlock, last = min(first + kPerBlock, width);
  uint64_t best = 0;
  for (int place = first + threadIdx.x; place < last; place += kThreads) best = max(best, lineahead::cuda::token_key(row[place], place));
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
