// Numbers 16 bytes at a time where rows allow it, else one at a time, as float; and the launch of a kernel for either.
#pragma once

#include <cstdio>
#include <initializer_list>

#include <cuda_runtime.h>

#include "call.h"
#include "fusions.h"
#include "numbers.cuh"

namespace lineahead::fusions {

using namespace lineahead::cuda;

template <typename T, int kCount>
struct alignas(kCount == 1 ? sizeof(T) : 16) Vector {
  T x[kCount];
};

template <typename T, int kCount>
__device__ __forceinline__ void load(float (&to)[kCount], const T* from) {
  const Vector<T, kCount> vector = *reinterpret_cast<const Vector<T, kCount>*>(from);
  for (int i = 0; i < kCount; ++i) to[i] = to_float(vector.x[i]);
}

template <typename T, int kCount>
__device__ __forceinline__ void store(T* to, const float (&from)[kCount]) {
  Vector<T, kCount> vector;
  for (int i = 0; i < kCount; ++i) vector.x[i] = from_float<T>(from[i]);
  *reinterpret_cast<Vector<T, kCount>*>(to) = vector;
}

template <typename T, int kVectorCount>
struct Form {
  using Type = T;
  static constexpr int kCount = kVectorCount;
};

// Calls `run` with the Form for a type and for rows of `width` numbers at `pointers`.
template <typename Run>
cudaError_t with_form(int32_t type, int32_t width, std::initializer_list<const void*> pointers, const Run& run) {
  bool aligned = width % (type == kFloat ? 4 : 8) == 0;
  for (const void* one : pointers) aligned = aligned && reinterpret_cast<size_t>(one) % 16 == 0;
  if (type == kFloat) return aligned ? run(Form<float, 4>{}) : run(Form<float, 1>{});
  if (type == kHalf) return aligned ? run(Form<__half, 8>{}) : run(Form<__half, 1>{});
  return aligned ? run(Form<__nv_bfloat16, 8>{}) : run(Form<__nv_bfloat16, 1>{});
}

template <typename Call>
cudaError_t launch(void (*kernel)(const Call), const Call& call, unsigned blocks, unsigned threads, size_t bytes, void* stream) {
  void* arguments[] = {const_cast<Call*>(&call)};
  return cudaLaunchKernel(kernel, dim3(blocks), dim3(threads), arguments, bytes, static_cast<cudaStream_t>(stream));
}

inline int finish(cudaError_t error, char* message, size_t message_size) {
  if (error != cudaSuccess) std::snprintf(message, message_size, "%s", cudaGetErrorString(error));
  return error != cudaSuccess;
}

inline int refuse(const char* reason, char* message, size_t message_size) {
  std::snprintf(message, message_size, "%s", reason);
  return 1;
}

constexpr int64_t kMostItems = 1ll << 31;  // of a launch, counted in int

}  // namespace lineahead::fusions
