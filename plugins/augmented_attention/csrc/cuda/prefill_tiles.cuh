// Operands of the tensor cores from rows in shared memory, 16 x 16 numbers at a time, and what the prefill kernels share.
//
// A chunk is 64 positions of one head. warp % 4 says which 16 rows of it are a warp's, warp / 4 what it does with them: blocks have
// 16 warps, as a chunk is a chain of products that wait for each other, and a warp alone would wait with them.
#pragma once

#include "block.cuh"
#include "stream_preset.cuh"

namespace lineahead::cuda {

constexpr int kPrefillThreads = 512, kRoles = 4;
constexpr int kChunk = 64, kValueStride = kPassColumns + 8;
constexpr float kPhiScale = 4096;  // features are kept as 16-bit numbers times this: half's least ones are 6e-8

template <Map kMap, int kDim>
struct PrefillShape {
  static constexpr bool kHedge = kMap == kHedgehog;
  static constexpr int kFeatures = kHedge ? 2 * kDim : kDim;
  static constexpr int kKeyStride = kDim + 8, kPhiStride = kFeatures + 8;
  static constexpr int kKeyBytes = kChunk * kKeyStride * 2, kPhiBytes = kChunk * kPhiStride * 2, kValueBytes = kChunk * kValueStride * 2;
  static constexpr int kMapBytes = kDim * kKeyStride * 2;
  static constexpr float kUnscale = kHedge ? 1 / kPhiScale : 1;  // of one feature
};

// The left operand of rows [row, row + 16) and depth [k, k + 16), or its transpose: rows are the depth.
template <typename T>
__device__ __forceinline__ void load_left(const T* rows, int stride, int row, int k, uint32_t (&a)[4]) {
  load_matrices(a, rows + (row + lane_index() % 16) * stride + k + lane_index() / 16 * 8);
}
template <typename T>
__device__ __forceinline__ void load_left_transposed(const T* rows, int stride, int k, int column, uint32_t (&a)[4]) {
  load_matrices_transposed(a, rows + (k + lane_index() % 8 + lane_index() / 16 * 8) * stride + column + lane_index() / 8 % 2 * 8);
}

// Two right operands of 8 columns each, from `column` on: of rows that are columns of the product, or that are its depth.
template <typename T>
__device__ __forceinline__ void load_right(const T* rows, int stride, int column, int k, uint32_t (&b)[4]) {
  load_matrices(b, rows + (column + lane_index() % 8 + lane_index() / 16 * 8) * stride + k + lane_index() / 8 % 2 * 8);
}
template <typename T>
__device__ __forceinline__ void load_right_transposed(const T* rows, int stride, int k, int column, uint32_t (&b)[4]) {
  load_matrices_transposed(b, rows + (k + lane_index() % 16) * stride + column + lane_index() / 16 * 8);
}

// Over the four lanes that hold one row of an accumulator.
__device__ __forceinline__ float row_sum(float x) { return lane_sum(x, 4); }
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, shuffle_xor(x, 1));
  return fmaxf(x, shuffle_xor(x, 2));
}

// Start copying a chunk of rows of `kWidth` numbers from at(r), zeros where that is null.
template <int kWidth, typename T, typename At>
__device__ __forceinline__ void stage_chunk(T* to, int stride, At at) {
  constexpr int kParts = kWidth / 8;
#pragma unroll 4
  for (int i = thread_index(); i < kChunk * kParts; i += kPrefillThreads) {
    const int r = i / kParts, part = i % kParts * 8;
    const T* from = at(r);
    if (from)
      copy_async(to + r * stride + part, from + part);
    else
      *reinterpret_cast<uint4*>(to + r * stride + part) = uint4{0, 0, 0, 0};
  }
}

// The same of rows that follow each other, `step` numbers apart, of which there are `count`.
template <int kWidth, typename T>
__device__ __forceinline__ void stage_rows(T* to, int stride, const T* from, int step, int count) {
  constexpr int kParts = kWidth / 8, kRows = kPrefillThreads / kParts, kTurns = kChunk / kRows > 0 ? kChunk / kRows : 1;
  const int row = thread_index() / kParts, part = thread_index() % kParts * 8;
  to += row * stride + part, from += row * step + part;
#pragma unroll
  for (int i = 0; i < kTurns; ++i, to += kRows * stride, from += kRows * step)
    if (row + i * kRows >= kChunk)
      break;
    else if (row + i * kRows < count)
      copy_async(to, from);
    else
      *reinterpret_cast<uint4*>(to) = uint4{0, 0, 0, 0};
}

// The row of a key or value as the commit leaves them: `window` [Hkv, rows, kDim] and `nodes` [Hkv, T, kDim] of one sequence's
// heads, `head` counting both. Null where there is none.
template <int kDim, typename T>
__device__ __forceinline__ const T* row_at(const Call& call, const Plan& plan, size_t head, const void* window, const void* nodes, int position) {
  const int node = position - plan.total;
  if (node >= 0) return node < call.nodes ? static_cast<const T*>(nodes) + (head * call.nodes + node) * kDim : nullptr;
  if (position < 0 || node < -plan.ring) return nullptr;
  return static_cast<const T*>(window) + (head * (plan.ring + call.settings.sinks) + position % plan.ring) * kDim;
}

// A slice of S, transposed, over the block's warps, as accumulators of kBands x kTiles products; and of the norm.
template <int kFeatures>
struct StateSlice {
  static constexpr int kWide = 16, kTiles = kWide / 8, kGroups = kFeatures / kWide, kBands = kGroups == 16 ? 2 : 1;
  float s[kBands][kTiles][4];
  float norm[kTiles][2];

  __device__ static int first_feature() { return warp_index() % kGroups * kWide; }
  __device__ static int first_column(int band) { return (kBands == 2 ? band : warp_index() / kGroups) * 16; }
  __device__ static bool is_used() { return kBands == 2 || warp_index() / kGroups < 2; }  // there are more warps than parts
  __device__ static bool has_norm() { return first_column(0) == 0; }
  __device__ static int feature(int n, int e) { return first_feature() + n * 8 + lane_index() % 4 * 2 + e % 2; }
  __device__ static int column(int band, int e) { return first_column(band) + lane_index() / 4 + e / 2 * 8; }

  template <typename Visit>
  __device__ __forceinline__ void each(Visit visit) {
    if (!is_used()) return;
#pragma unroll
    for (int m = 0; m < kBands; ++m)
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) visit(s[m][n][e], feature(n, e), column(m, e));
  }
  template <typename Visit>
  __device__ __forceinline__ void each_norm(Visit visit) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) visit(norm[n][0], feature(n, 0)), visit(norm[n][1], feature(n, 1));
  }

  // += factor phi^T v of a chunk, and where `sums`, the norm += factor times the sum of its first `count` rows; phi is the sum of
  // kParts matrices, `part` numbers apart. A chunk is summed by itself: the tensor cores round sums down, and what they add to
  // would drift.
  template <int kParts, typename T>
  __device__ __forceinline__ void fold(const T* value, const T* phi, int stride, int part, float factor, bool sums, int count) {
    if (!is_used()) return;
    float sum[kBands][kTiles][4] = {}, ones[kTiles][4] = {};
#pragma unroll
    for (int k = 0; k < kChunk; k += 16) {
      uint32_t a[kBands][4];
#pragma unroll
      for (int m = 0; m < kBands; ++m) load_left_transposed(value, kValueStride, k, first_column(m), a[m]);
      const int row = k + lane_index() % 4 * 2;
      const uint32_t low = pack(row < count, row + 1 < count, T{}), high = pack(row + 8 < count, row + 9 < count, T{});
      const uint32_t one[4] = {low, low, high, high};
#pragma unroll
      for (int p = 0; p < kParts; ++p)
#pragma unroll
        for (int n = 0; n < kTiles; n += 2) {
          uint32_t b[4];
          load_right_transposed(phi + p * part, stride, k, first_feature() + n * 8, b);
#pragma unroll
          for (int m = 0; m < kBands; ++m) multiply(sum[m][n], a[m], b[0], b[1], T{}), multiply(sum[m][n + 1], a[m], b[2], b[3], T{});
          if (sums) multiply(ones[n], one, b[0], b[1], T{}), multiply(ones[n + 1], one, b[2], b[3], T{});
        }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int m = 0; m < kBands; ++m)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[m][n][e] = fmaf(factor, sum[m][n][e], s[m][n][e]);
      if (sums) norm[n][0] = fmaf(factor, ones[n][0], norm[n][0]), norm[n][1] = fmaf(factor, ones[n][1], norm[n][1]);
    }
  }
};

}  // namespace lineahead::cuda
