// Scores and weights of the streaming kernel.
#pragma once

#include "blend.cuh"
#include "stream_map.cuh"

namespace lineahead::cuda {

// A lane's part of a 16 x 16 operand: rows lane / 4 and 8 below, from column k on.
template <typename T>
__device__ __forceinline__ void load_operand(const T* upper, const T* lower, int k, uint32_t (&a)[4]) {
  const int at = k + lane_index() % 4 * 2;
  a[0] = upper ? *reinterpret_cast<const uint32_t*>(upper + at) : 0;
  a[1] = lower ? *reinterpret_cast<const uint32_t*>(lower + at) : 0;
  a[2] = upper ? *reinterpret_cast<const uint32_t*>(upper + at + 8) : 0;
  a[3] = lower ? *reinterpret_cast<const uint32_t*>(lower + at + 8) : 0;
}

// q . k of all columns to `weight`.
template <typename T>
__device__ __forceinline__ void score(const Stream<T>& s, const QueryTile& tile) {
  const Layout& layout = s.layout;
  const int r = lane_index() / 4, q = lane_index() % 4;
  const T *upper = r < tile.count ? s.row(r) : nullptr, *lower = r + 8 < tile.count ? s.row(r + 8) : nullptr;
#pragma unroll 1
  for (int base = warp_index() * 8; base < layout.columns; base += kWarps * 8) {
    const T* key = s.key(base + r) + q * 2;
    float sum[4] = {};
#pragma unroll 4
    for (int k = 0; k < s.call.dim; k += 16) {
      uint32_t a[4];
      load_operand(upper, lower, k, a);
      multiply(sum, a, *reinterpret_cast<const uint32_t*>(key + k), *reinterpret_cast<const uint32_t*>(key + k + 8), T{});
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (r + i / 2 * 8 < tile.count) s.weight(r + i / 2 * 8)[base + q * 2 + i % 2] = sum[i];
  }
}

// 1 / length of every column's key and of every query row, for kernels of cosines (`local_norm`).
template <typename T>
__device__ __forceinline__ void measure_lengths(const Stream<T>& s, const QueryTile& tile) {
  const int dim = s.call.dim, columns = s.layout.columns;
#pragma unroll 1
  for (int i = warp_index(); i < s.count() + tile.count; i += kWarps) {
    const T* row = i < s.count() ? s.key(i) : s.row(i - s.count());
    float squares = 0;
#pragma unroll 1
    for (int d = lane_index(); d < dim; d += kLanes) squares = fmaf(to_float(row[d]), to_float(row[d]), squares);
    const float inverse = 1 / sqrtf(lane_sum(squares) + s.call.settings.eps);
    if (lane_index() == 0) s.floats(s.layout.length)[i < s.count() ? i : columns + i - s.count()] = inverse;
  }
}

// phi(q) . phi(k) of the far pairs to `weight`; a warp takes a key, 8 of its lanes a row.
template <typename T>
__device__ __forceinline__ void score_far(const Stream<T>& s, const QueryTile& tile) {
  constexpr int kPairLanes = 8;
  const int lane = lane_index() % kPairLanes, features = s.call.features;
#pragma unroll 1
  for (int n = s.list.folds + warp_index(); n < s.list.count(); n += kWarps) {
    const int c = s.listed(n), position = s.tables.position[c];
    const float* key = s.phi(n);
#pragma unroll 1
    for (int first = 0; first < tile.count; first += kLanes / kPairLanes) {
      const int i = first + lane_index() / kPairLanes, row = i < tile.count ? i : 0, t = tile.node(row);
      const bool far = i < tile.count && sight(s, t, s.integers(s.layout.start)[t], c, position) == Sight::kFar;
      if (!ballot(far)) continue;
      float sum = 0;
#pragma unroll 2
      for (int f = lane * 4; f < features; f += kPairLanes * 4) sum = dot(load4(s.phi_query(row) + f), load4(key + f), sum);
      sum = lane_sum(sum, kPairLanes);
      if (far && lane == 0) s.weight(i)[c] = sum;
    }
  }
}

// Scores of one row become final weights of the columns, and phi(q) is scaled so that phi(q) S is the global term; by one warp,
// of which a lane takes every 32nd column, at most 8.
template <typename T>
__device__ __forceinline__ void weigh_row(const Stream<T>& s, const QueryTile& tile, int i) {
  const Settings& settings = s.call.settings;
  const int t = tile.node(i), start = s.integers(s.layout.start)[t], lane = lane_index(), features = s.features();
  const int columns = s.layout.columns, folds = s.list.folds;
  float *phi = s.phi_query(i), *weight = s.weight(i);
  const float* lengths = s.floats(s.layout.length);
  const float* given = s.floats(s.layout.gain) + (tile.head(i) - tile.first_head) * (2 + settings.taps);
  const float own = settings.local_norm ? lengths[columns + i] : settings.scale;
  float peak = -INFINITY, near = 0, far = 0;
  unsigned is_local = 0, is_far = 0, bit = 1;
#pragma unroll 1
  for (int c = lane; c < columns; c += kLanes, bit *= 2) {
    const Sight seen = sight(s, t, start, c, s.tables.position[c]);
    if (seen == Sight::kFar) is_far |= bit, far += weight[c];
    if (seen != Sight::kLocal) continue;
    const float x = weight[c] * (settings.local_norm ? own * lengths[c] : own);
    is_local |= bit, weight[c] = x, peak = fmaxf(peak, x);
  }
  if (settings.local == kSoftmax) peak = lane_max(peak);
  bit = 1;
#pragma unroll 1
  for (int c = lane; c < columns; c += kLanes, bit *= 2)
    if (is_local & bit) near += weight[c] = local_weight(settings.local, weight[c], peak);
  if (has_norm(settings))
#pragma unroll 1
    for (int f = lane * 4; f < features; f += kLanes * 4) {
      float4 norm = load4(s.floats(s.layout.norm) + f);
#pragma unroll 1
      for (int n = 0; n < folds; ++n) norm = add(norm, load4(s.phi(n) + f));
      far = dot(load4(phi + f), norm, far);
    }
  const bool divides = settings.normalizer == kDenominator;
  const Gains gain = gains(settings, Part::kWhole, given[0], given[1], divides ? lane_sum(near) : 0, divides ? lane_sum(far) : 0);
#pragma unroll 1
  for (int f = lane * 4; f < features; f += kLanes * 4) store4(phi + f, scaled(gain.far, load4(phi + f)));
  bit = 1;
#pragma unroll 1
  for (int c = lane; c < columns; c += kLanes, bit *= 2) {
    float w = is_local & bit ? gain.near * weight[c] : is_far & bit ? gain.far * weight[c] : 0;
    if (settings.taps) {
      const int lag = tap(s, t, c, s.tables.position[c]);
      if (lag >= 0) w += given[2 + lag];
    }
    weight[c] = w;
  }
}

}  // namespace lineahead::cuda
