// A few rows times a matrix, by a whole block: the product in which the time of the operator goes.
#pragma once

#include "numbers.cuh"

namespace lineahead::cuda {

constexpr int kProductColumns = 128;  // columns that a block works on at a time

__host__ __device__ constexpr int partial_floats(int rows_per_thread) {
  return kWarps * rows_per_thread * kProductColumns;
}

// store(i, j, sum over k < depth of a[i, k] * b[k, j .. j + 3]) for i < rows and j = 0, 4, .. < width, where load(k, j) is
// b[k, j .. j + 3]. `a` is in shared memory, its rows `stride` floats apart; up to kRows - 1 rows after the last are read and
// not used. depth and width are multiples of 4, rows is at most kWarps * kRows. Synchronises after the last store.
template <int kRows, typename Load, typename Store>
__device__ void product(const float* a, int stride, int rows, int depth, int width, float* partial, Load load, Store store) {
  const int vectors = power_of_two(width >= kProductColumns ? kProductColumns / 4 : width / 4);
  const int row_groups = power_of_two((rows + kRows - 1) / kRows), depth_groups = kWarps / row_groups;
  const int lane = lane_index(), depth_group = warp_index() / row_groups, first = warp_index() % row_groups * kRows;
  const int vector = lane % vectors, per_warp = kLanes / vectors;
  const int slot = depth_group * per_warp + lane / vectors, slots = depth_groups * per_warp;
  for (int base = 0; base < width; base += vectors * 4) {
    const int column = base + vector * 4;
    float4 sum[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum[r] = zero4();
    if (column < width && first < rows) {
#pragma unroll 2
      for (int k = slot * 4; k < depth; k += slots * 4) {
        const float4 b0 = load(k, column), b1 = load(k + 1, column), b2 = load(k + 2, column), b3 = load(k + 3, column);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const float4 x = load4(a + (size_t)(first + r) * stride + k);
          add_scaled(sum[r], x.x, b0), add_scaled(sum[r], x.y, b1), add_scaled(sum[r], x.z, b2), add_scaled(sum[r], x.w, b3);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      for (int offset = vectors; offset < kLanes; offset *= 2) {
        const float4 other = make_float4(shuffle_xor(sum[r].x, offset), shuffle_xor(sum[r].y, offset),
                                         shuffle_xor(sum[r].z, offset), shuffle_xor(sum[r].w, offset));
        sum[r] = add(sum[r], other);
      }
      if (lane < vectors) store4(partial + ((size_t)(depth_group * row_groups * kRows + first + r) * vectors + vector) * 4, sum[r]);
    }
    sync_block();
    for (int i = thread_index(); i < rows * vectors; i += kThreads) {
      const int row = i / vectors, j = base + i % vectors * 4;
      float4 total = zero4();
      for (int d = 0; d < depth_groups; ++d) total = add(total, load4(partial + ((size_t)d * row_groups * kRows * vectors + i) * 4));
      if (j < width) store(row, j, total);
    }
    sync_block();
  }
}

}  // namespace lineahead::cuda
