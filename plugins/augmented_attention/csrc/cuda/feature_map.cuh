// Feature maps phi of the global term. A new map is one function here and one case in `finish_row` or `map_number`.
#pragma once

#include "call.h"
#include "product.cuh"

namespace lineahead::cuda {

constexpr float kExponentBound = 30;  // feature_maps/performer.py

__host__ __device__ inline bool has_projection(int map) { return map == kHedgehog || map == kPerformer || map == kRfa; }

// softmax(z) and softmax(-z) of one row z[columns], the first in place of z, the second after it; by one warp.
// Zhang et al., 2024, arXiv:2402.04347.
__device__ inline void two_softmaxes(float* z, int columns) {
  const int first = lane_index() * 4, step = kLanes * 4;
  float top = -INFINITY, bottom = INFINITY;
#pragma unroll 1
  for (int i = first; i < columns; i += step) {
    const float4 v = load4(z + i);
    top = fmaxf(top, fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w))), bottom = fminf(bottom, fminf(fminf(v.x, v.y), fminf(v.z, v.w)));
  }
  top = lane_max(top), bottom = -lane_max(-bottom);
  float up = 0, down = 0;
#pragma unroll 1
  for (int i = first; i < columns; i += step) {
    const float4 v = load4(z + i);
    const float4 a = make_float4(__expf(v.x - top), __expf(v.y - top), __expf(v.z - top), __expf(v.w - top));
    const float4 b = make_float4(__expf(bottom - v.x), __expf(bottom - v.y), __expf(bottom - v.z), __expf(bottom - v.w));
    up += a.x + a.y + (a.z + a.w), down += b.x + b.y + (b.z + b.w);
    store4(z + i, a), store4(z + columns + i, b);
  }
  up = 1 / lane_sum(up), down = 1 / lane_sum(down);
#pragma unroll 1
  for (int i = first; i < columns; i += step) store4(z + i, scaled(up, load4(z + i))), store4(z + columns + i, scaled(down, load4(z + columns + i)));
}

// exp(x' W - |x'|^2 / 2) / sqrt(M), x' = sqrt(scale) x, the exponent held within bounds. `squares` is |x|^2.
// Choromanski et al., 2020, arXiv:2009.14794.
__device__ inline void positive_features(float* z, int columns, float squares, float scale) {
  const float root = sqrtf(scale), half = scale * squares / 2, norm = 1 / sqrtf((float)columns);
#pragma unroll 1
  for (int i = lane_index(); i < columns; i += kLanes) {
    const float exponent = fmaf(root, z[i], -half);
    z[i] = expf(fminf(fmaxf(exponent, -kExponentBound), kExponentBound)) * norm;
  }
}

// [sin(x' W), cos(x' W)] / sqrt(M). Peng et al., 2021, arXiv:2103.02143.
__device__ inline void fourier_features(float* z, int columns, float scale) {
  const float turns = sqrtf(scale) * 0.318309886183790672f, norm = 1 / sqrtf((float)columns);
#pragma unroll 1
  for (int i = lane_index(); i < columns; i += kLanes) {
    float sine, cosine;
    sincospif(turns * z[i], &sine, &cosine);
    z[i] = sine * norm, z[columns + i] = cosine * norm;
  }
}

// From z = x W of one row to its features, in place; by one warp. x[dim] is read by the map that needs its length.
template <typename T>
__device__ void finish_row(const Settings& settings, const T* x, int dim, float* z, int columns) {
  if (settings.map == kHedgehog) {
    two_softmaxes(z, columns);
  } else if (settings.map == kPerformer) {
    float squares = 0;
#pragma unroll 1
    for (int i = lane_index(); i < dim; i += kLanes) squares = fmaf(to_float(x[i]), to_float(x[i]), squares);
    positive_features(z, columns, lane_sum(squares), settings.scale);
  } else {
    fourier_features(z, columns, settings.scale);
  }
}

// One feature of the maps without a projection.
__device__ __forceinline__ float map_number(int map, float x) {
  if (map == kElu1) return x > 0 ? x + 1 : expf(x);  // Qin et al., 2022, arXiv:2210.10340
  return map == kRelu ? fmaxf(x, 0.0f) : x;          // Cai et al., 2022, arXiv:2205.14756; identity
}

// phi of x[rows, dim] to phi[rows, features], rows `stride` and `phi_stride` floats apart, both in shared memory. weight is
// [dim, columns] in global memory, or unused. Synchronises before it returns; rows is at most kWarps * kRows.
template <int kRows, typename T>
__device__ void apply_map(const Call& call, const float* x, int stride, int rows, const T* weight, float* partial, float* phi,
                          int phi_stride) {
  const int dim = call.dim, columns = call.columns, map = call.settings.map;
  if (has_projection(map)) {
    product<kRows>(
        x, stride, rows, dim, columns, partial, [&](int k, int j) { return load4(weight + (size_t)k * columns + j); },
        [&](int i, int j, float4 z) { store4(phi + (size_t)i * phi_stride + j, z); });
    for (int i = warp_index(); i < rows; i += kWarps)
      finish_row(call.settings, x + (size_t)i * stride, dim, phi + (size_t)i * phi_stride, columns);
  } else {
    const int vectors = dim / 4;
    for (int i = thread_index(); i < rows * vectors; i += kThreads) {
      const float4 v = load4(x + (size_t)(i / vectors) * stride + i % vectors * 4);
      store4(phi + (size_t)(i / vectors) * phi_stride + i % vectors * 4,
             make_float4(map_number(map, v.x), map_number(map, v.y), map_number(map, v.z), map_number(map, v.w)));
    }
  }
  sync_block();
}

}  // namespace lineahead::cuda
