// Feature maps phi of the global term. A new map is one function here and one case in `apply_map`.
#pragma once

#include "call.h"
#include "product.cuh"

namespace lineahead::cuda {

// softmax(z) and softmax(-z) of one row z[columns], the first in place of z, the second after it; by one warp.
__device__ inline void two_softmaxes(float* z, int columns) {
  const int lane = lane_index();
  float top = -INFINITY, bottom = -INFINITY;
  for (int i = lane; i < columns; i += kLanes) top = fmaxf(top, z[i]), bottom = fmaxf(bottom, -z[i]);
  top = lane_max(top), bottom = lane_max(bottom);
  float up = 0, down = 0;
  for (int i = lane; i < columns; i += kLanes) {
    const float a = __expf(z[i] - top), b = __expf(-z[i] - bottom);
    up += a, down += b;
    z[i] = a, z[columns + i] = b;
  }
  up = 1 / lane_sum(up), down = 1 / lane_sum(down);
  for (int i = lane; i < columns; i += kLanes) z[i] *= up, z[columns + i] *= down;
}

// phi of x[rows, dim] to phi[rows, features], rows `stride` and `phi_stride` floats apart, both in shared memory. weight is
// [dim, columns] in global memory, or unused. Synchronises before it returns; rows is at most kWarps * kRows.
template <int kRows, typename T>
__device__ void apply_map(const Call& call, const float* x, int stride, int rows, const T* weight, float* partial, float* phi,
                          int phi_stride) {
  const int dim = call.dim, columns = call.columns;
  if (call.settings.map == kHedgehog) {  // [softmax(x W), softmax(-x W)]: Zhang et al., 2024, arXiv:2402.04347
    product<kRows>(
        x, stride, rows, dim, columns, partial, [&](int k, int j) { return load4(weight + (size_t)k * columns + j); },
        [&](int i, int j, float4 z) { store4(phi + (size_t)i * phi_stride + j, z); });
    for (int i = warp_index(); i < rows; i += kWarps) two_softmaxes(phi + (size_t)i * phi_stride, columns);
  } else {  // identity
    const int vectors = dim / 4;
    for (int i = thread_index(); i < rows * vectors; i += kThreads)
      store4(phi + (size_t)(i / vectors) * phi_stride + i % vectors * 4, load4(x + (size_t)(i / vectors) * stride + i % vectors * 4));
  }
  sync_block();
}

}  // namespace lineahead::cuda
