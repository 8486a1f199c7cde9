// Attention of one tile of query rows: the query heads of one key/value head, head by head, node by node.
#pragma once

#include "blend.cuh"
#include "commit.cuh"

namespace lineahead::cuda {

constexpr int kDotLanes = 8;  // lanes that share one key
constexpr int kDotKeys = kLanes / kDotLanes;

// Query rows [start, start + count) of the block's heads.
struct Tile {
  int start, count, nodes, first_head;

  __device__ int head(int i) const { return first_head + (start + i) / nodes; }
  __device__ int node(int i) const { return (start + i) % nodes; }
};

// Queries of the tile to `row`, and their features to the front of `weight`.
template <int kRows, typename T>
__device__ void load_queries(const Block<T>& block, const Tile& tile) {
  const Call& call = block.call;
  float* row = block.floats(block.layout.row);
  for (int i = warp_index(); i < tile.count; i += kWarps) {
    const size_t from = ((size_t)block.b * call.heads + tile.head(i)) * call.nodes + tile.node(i);
    load_row(static_cast<const T*>(call.query) + from * call.dim, call.dim, call.settings.qk_norm != 0, call.settings.eps,
             row + (size_t)i * call.dim);
  }
  sync_block();
  if (!block.has_state()) return;
  for (int i = 0, rows; i < tile.count; i += rows) {  // each query head has its own projection
    rows = least(tile.count - i, call.nodes - tile.node(i));
    apply_map<kRows>(call, row + (size_t)i * call.dim, call.dim, rows, block.query_map(tile.head(i)), block.partial(),
                     block.weight() + (size_t)i * block.layout.weight_stride, block.layout.weight_stride);
  }
}

// scale * q . k of the local pairs to `weight`; normalises the nodes' keys and, if `publish`, writes them to pending_key_out.
template <typename T>
__device__ void score(const Block<T>& block, const Tile& tile, bool publish) {
  const Call& call = block.call;
  const Settings& settings = call.settings;
  const int count = block.plan.columns(), lane = lane_index() % kDotLanes, steps = kMaxDim / (4 * kDotLanes);
  for (int base = warp_index() * kDotKeys; base < count; base += kWarps * kDotKeys) {
    const int c = base + lane_index() / kDotLanes, node = c - block.plan.first_node();
    const bool here = c < count, fresh = here && node >= 0;
    const T* from = block.key_row(here ? c : count - 1);
    float4 key[steps];
    float squares = 0;
#pragma unroll
    for (int u = 0; u < steps; ++u) {
      const int d = (u * kDotLanes + lane) * 4;
      key[u] = d < call.dim ? load4(from + d) : zero4();
      squares = dot(key[u], key[u], squares);
    }
    squares = lane_sum(squares, kDotLanes);
    const float inverse = 1 / sqrtf(squares + settings.eps);
#pragma unroll
    for (int u = 0; u < steps; ++u) {
      const int d = (u * kDotLanes + lane) * 4;
      if (fresh && settings.qk_norm) key[u] = rounded<T>(scaled(inverse, key[u]));
      if (fresh && publish && d < call.dim)
        store4(static_cast<T*>(call.pending_key_out) + (block.head * call.nodes + node) * call.dim + d, key[u]);
    }
    if (settings.local == kNoLocal) continue;
    for (int i = 0; i < tile.count; ++i) {
      const float* query = block.floats(block.layout.row) + (size_t)i * call.dim;
      float sum = 0, length = 0;
#pragma unroll
      for (int u = 0; u < steps; ++u) {
        const int d = (u * kDotLanes + lane) * 4;
        if (d >= call.dim) continue;
        sum = dot(load4(query + d), key[u], sum);
        if (settings.local_norm) length = dot(load4(query + d), load4(query + d), length);
      }
      sum = lane_sum(sum, kDotLanes);
      sum *= settings.local_norm ? inverse / sqrtf(lane_sum(length, kDotLanes) + settings.eps) : settings.scale;
      if (here && lane == 0 && sight(settings, block.plan, block.tables, tile.node(i), c) == Sight::kLocal)
        block.weight()[(size_t)i * block.layout.weight_stride + block.features() + c] = sum;
    }
  }
}

// phi(q) . phi(k) of the far pairs to `weight`. Overwrites `row`.
template <int kRows, typename T>
__device__ void score_far(const Block<T>& block, const Tile& tile) {
  const Call& call = block.call;
  const int count = block.has_state() ? block.tables.flags[0] : 0, lane = lane_index() % kDotLanes, stride = block.layout.weight_stride;
  float *row = block.floats(block.layout.row), *phi = block.floats(block.layout.phi);
  for (int start = 0; start < count; start += block.layout.fold_tile) {
    const int rows = least(block.layout.fold_tile, count - start);
    sync_block();
    for (int n = warp_index(); n < rows; n += kWarps) {
      const int c = block.tables.far[start + n];
      const bool fresh = c >= block.plan.first_node();
      load_row(block.key_row(c), call.dim, fresh && call.settings.qk_norm, call.settings.eps, row + (size_t)n * call.dim);
    }
    sync_block();
    apply_map<kRows>(call, row, call.dim, rows, block.key_map(), block.partial(), phi, call.features);
    const int groups = (rows + kDotKeys - 1) / kDotKeys;
    for (int job = warp_index(); job < tile.count * groups; job += kWarps) {
      const int i = job / groups, n = job % groups * kDotKeys + lane_index() / kDotLanes;
      const bool here = n < rows;
      float* weight = block.weight() + (size_t)i * stride;
      const float* key = phi + (size_t)(here ? n : 0) * call.features;
      float sum = 0;
      for (int f = lane * 4; f < call.features; f += kDotLanes * 4) sum = dot(load4(weight + f), load4(key + f), sum);
      sum = lane_sum(sum, kDotLanes);
      const int c = block.tables.far[start + (here ? n : 0)];
      if (here && lane == 0 && sight(call.settings, block.plan, block.tables, tile.node(i), c) == Sight::kFar)
        weight[call.features + c] = sum;
    }
  }
  sync_block();
}

// Scores of one row become final weights of the columns, and phi(q) is scaled so that phi(q) S is the global term; by one warp.
template <typename T>
__device__ void weigh_row(const Block<T>& block, const Tile& tile, int i, Part part) {
  const Call& call = block.call;
  const Settings& settings = call.settings;
  const int t = tile.node(i), h = tile.head(i), lane = lane_index(), count = block.plan.columns(), features = block.features();
  float *phi = block.weight() + (size_t)i * block.layout.weight_stride, *weight = phi + features;
  const float alpha = to_float(static_cast<const T*>(call.alpha)[h * call.alpha_step]);
  const float local_scale = to_float(static_cast<const T*>(call.local_scale)[h * call.local_scale_step]);
  float peak = -INFINITY, near = 0, far = 0;
  if (settings.local == kSoftmax) {
    for (int c = lane; c < count; c += kLanes)
      if (sight(settings, block.plan, block.tables, t, c) == Sight::kLocal) peak = fmaxf(peak, weight[c]);
    peak = lane_max(peak);
  }
  for (int c = lane; c < count; c += kLanes) {
    const Sight seen = sight(settings, block.plan, block.tables, t, c);
    if (seen == Sight::kLocal) near += weight[c] = local_weight(settings.local, weight[c], peak);
    if (seen == Sight::kFar) far += weight[c];
  }
  if (block.has_norm())
    for (int f = lane; f < features; f += kLanes) far = fmaf(phi[f], block.norm()[f], far);
  const bool divides = settings.normalizer == kDenominator;
  const Gains gain = gains(settings, part, alpha, local_scale, divides ? lane_sum(near) : 0, divides ? lane_sum(far) : 0);
  for (int f = lane; f < features; f += kLanes) phi[f] *= gain.far;
  const T* filter = static_cast<const T*>(call.conv) + (size_t)h * settings.taps;
  for (int c = lane; c < round_up(count, 4); c += kLanes) {
    float w = 0;
    if (c < count) {
      const Sight seen = sight(settings, block.plan, block.tables, t, c);
      w = seen == Sight::kLocal ? gain.near * weight[c] : seen == Sight::kFar ? gain.far * weight[c] : 0;
      const int lag = tap(settings, block.plan, block.tables, t, c);
      if (lag >= 0) w = fmaf(gain.conv, to_float(filter[lag]), w);
    }
    weight[c] = w;
  }
}

template <int kRows, typename T>
__device__ void combine(const Block<T>& block, const Tile& tile, Part part) {
  const Call& call = block.call;
  const int features = block.features(), slice = block.layout.slice, depth = features + round_up(block.plan.columns(), 4);
  const float* state = block.state();
  const T* values = block.staged_values();
  product<kRows>(
      block.weight(), block.layout.weight_stride, tile.count, depth, slice, block.partial(),
      [&](int k, int j) {
        return k < features ? load4(state + (size_t)k * slice + j) : load4(values + (size_t)(k - features) * slice + j);
      },
      [&](int i, int j, float4 sum) {
        if (j >= block.values) return;
        const size_t row = ((size_t)block.b * call.heads + tile.head(i)) * call.nodes + tile.node(i);
        const size_t at = row * call.value_dim + block.value_start + j, all = (size_t)call.batch * call.heads * call.nodes * call.value_dim;
        if (part == Part::kWhole)
          store4(static_cast<T*>(call.output) + at, sum);
        else
          store4(static_cast<float*>(call.workspace) + (part == Part::kRest ? all : 0) + at, sum);
      });
}

}  // namespace lineahead::cuda
