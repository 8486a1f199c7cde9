// Four numbers of any element type at a time, as float, and sums over warps.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "device.cuh"

namespace lineahead::cuda {

constexpr int kThreads = 256, kLanes = 32, kWarps = kThreads / kLanes;

__device__ __forceinline__ int lane_index() { return thread_index() % kLanes; }
__device__ __forceinline__ int warp_index() { return thread_index() / kLanes; }

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

template <typename T>
struct alignas(4 * sizeof(T)) Pack {
  T x[4];
};

template <typename T>
__device__ __forceinline__ float4 load4(const T* from) {
  const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(from);
  return make_float4(to_float(pack.x[0]), to_float(pack.x[1]), to_float(pack.x[2]), to_float(pack.x[3]));
}
template <>
__device__ __forceinline__ float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }

template <typename T>
__device__ __forceinline__ void store4(T* to, float4 v) {
  *reinterpret_cast<Pack<T>*>(to) =
      Pack<T>{from_float<T>(v.x), from_float<T>(v.y), from_float<T>(v.z), from_float<T>(v.w)};
}
template <>
__device__ __forceinline__ void store4(float* to, float4 v) { *reinterpret_cast<float4*>(to) = v; }

template <typename T>
__device__ __forceinline__ float4 rounded(float4 v) {
  v.x = to_float(from_float<T>(v.x)), v.y = to_float(from_float<T>(v.y));
  v.z = to_float(from_float<T>(v.z)), v.w = to_float(from_float<T>(v.w));
  return v;
}

__device__ __forceinline__ float4 zero4() { return make_float4(0, 0, 0, 0); }
__device__ __forceinline__ float4 add(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
__device__ __forceinline__ float4 scaled(float s, float4 v) { return make_float4(s * v.x, s * v.y, s * v.z, s * v.w); }
__device__ __forceinline__ void add_scaled(float4& sum, float s, float4 v) {
  sum.x = fmaf(s, v.x, sum.x), sum.y = fmaf(s, v.y, sum.y), sum.z = fmaf(s, v.z, sum.z), sum.w = fmaf(s, v.w, sum.w);
}
__device__ __forceinline__ float dot(float4 a, float4 b, float sum) {
  return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sum))));
}

// Over groups of `width` neighbouring lanes, a power of two.
__device__ __forceinline__ float lane_sum(float x, int width = kLanes) {
  for (int offset = width / 2; offset; offset /= 2) x += shuffle_xor(x, offset);
  return x;
}
__device__ __forceinline__ float lane_max(float x) {
  for (int offset = kLanes / 2; offset; offset /= 2) x = fmaxf(x, shuffle_xor(x, offset));
  return x;
}

__host__ __device__ constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }
__host__ __device__ constexpr int power_of_two(int n) {  // the least that is not below n
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

}  // namespace lineahead::cuda
