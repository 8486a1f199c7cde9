// Features of the streaming kernel: projections on tensor cores, and what makes features of them.
#pragma once

#include "stream.cuh"

namespace lineahead::cuda {

constexpr int kGroupColumns = 64;  // columns of a projection that a warp works on

// The share of a warp in x W: a group of columns and every so many-th 16 of the depth, two of them at a time. A lane reads 8
// neighbouring columns of four rows of W at once.
struct Share {
  int groups, parts, part, column;

  __device__ explicit Share(const Layout& layout)
      : groups(layout.projected / kGroupColumns),
        parts(kWarps / groups),
        part(warp_index() / groups),
        column(warp_index() % groups * kGroupColumns + lane_index() / 4 * 8) {}
  __device__ int depth(int step) const { return (part + step * parts) * 16; }
};

struct Weights {
  uint4 w[2][4];
};

// Rows of W for steps `step` and `step` + 1.
template <typename T>
__device__ __forceinline__ void load_weights(const Share& share, const T* weight, int dim, int columns, int step, Weights& weights) {
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    const int k = share.depth(step + u);
    const bool here = k < dim && share.column < columns;
    const T* from = weight + (k + lane_index() % 4 * 2) * columns + share.column;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      weights.w[u][i] = here ? fetch16(from + ((i & 1) + (i & 2) * 4) * columns) : uint4{0, 0, 0, 0};
  }
}

// sum[n][m] += W^T x^T: columns 8 r + 2 m and 8 r + 2 m + 1 of the group, rows 8 n + 2 q and 8 n + 2 q + 1 of x.
template <int kTiles, typename T>
__device__ __forceinline__ void multiply_weights(const Share& share, const Weights& weights, const T* const (&x)[kTiles], int dim, int step,
                                                 float (&sum)[kTiles][4][4]) {
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    const int k = share.depth(step + u), at = k + lane_index() % 4 * 2;
    if (k >= dim) break;
    uint32_t low[kTiles], high[kTiles];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      low[n] = x[n] ? *reinterpret_cast<const uint32_t*>(x[n] + at) : 0;
      high[n] = x[n] ? *reinterpret_cast<const uint32_t*>(x[n] + at + 8) : 0;
    }
    const uint4 (&w)[4] = weights.w[u];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const auto word = [m](const uint4& v) { return m == 0 ? v.x : m == 1 ? v.y : m == 2 ? v.z : v.w; };
      const uint32_t a[4] = {permute_bytes(word(w[0]), word(w[1]), 0x5410), permute_bytes(word(w[0]), word(w[1]), 0x7632),
                             permute_bytes(word(w[2]), word(w[3]), 0x5410), permute_bytes(word(w[2]), word(w[3]), 0x7632)};
#pragma unroll
      for (int n = 0; n < kTiles; ++n) multiply(sum[n][m], a, low[n], high[n], T{});
    }
  }
}

// One product: rows of one query head of the tile or, after those, of the list of keys, times its projection. Its rows of `partial` are its
// rows among all that are mapped at a time: its keys, then the tile's queries.
template <typename T>
struct Job {
  const T* weight;
  int first, count, row;  // in the list or the tile; rows; in `partial`
  bool keys;

  __device__ Job(const Stream<T>& s, const QueryTile& tile, int start, int keys_here, int index) {
    const Call& call = s.call;
    const size_t size = (size_t)call.dim * call.columns;
    keys = index >= heads(tile);
    if (keys) {
      first = start, count = keys_here, row = 0, weight = static_cast<const T*>(call.key_map) + s.g * size;
      return;
    }
    const int h = tile.head(0) + index, offset = (h - tile.first_head) * tile.nodes - tile.start;
    first = largest(offset, 0), count = least(offset + tile.nodes, tile.count) - first, row = keys_here + first;
    weight = static_cast<const T*>(call.query_map) + h * size;
  }
  __device__ static int heads(const QueryTile& tile) { return tile.count ? tile.head(tile.count - 1) - tile.head(0) + 1 : 0; }
  __device__ const T* operand(const Stream<T>& s, int i) const {
    return i >= count ? nullptr : keys ? s.key(s.listed(first + i)) : s.row(first + i);
  }
};

// x W of `keys_here` keys of the list from `start` on and of the tile's queries (none when its count is 0), in parts:
// partial[row][part][projected]; nothing where the map has no projection. `weights` are the first that it needs; `between` is work
// to do while others come.
template <int kTiles, typename T, typename Between>
__device__ __forceinline__ void project(const Stream<T>& s, const QueryTile& tile, int start, int keys_here, Weights& weights, Between between) {
  const Call& call = s.call;
  const Share share(s.layout);
  const bool projects = has_projection(call.settings.map);
  const int jobs = projects ? Job<T>::heads(tile) + (keys_here > 0) : 1;
  const int r = lane_index() / 4, q = lane_index() % 4, width = s.layout.projected;
#pragma unroll 1
  for (int index = 0; index < jobs; ++index) {
    if (projects) {
      const Job<T> job(s, tile, start, keys_here, index);
      const T* x[kTiles];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) x[n] = job.operand(s, n * 8 + r);
      float sum[kTiles][4][4] = {};
#pragma unroll 1
      for (int step = 0; share.depth(step) < call.dim; step += 2) {
        multiply_weights(share, weights, x, call.dim, step, sum);
        if (share.depth(step + 2) < call.dim)
          load_weights(share, job.weight, call.dim, call.columns, step + 2, weights);
        else if (index + 1 < jobs)
          load_weights(share, Job<T>(s, tile, start, keys_here, index + 1).weight, call.dim, call.columns, 0, weights);
      }
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) {
        const int row = i / 2 * 8 + 2 * q + i % 2;
        if (row >= job.count) continue;
        const float (&z)[4][4] = sum[i / 2];
        float* to = s.floats(s.layout.partial) + ((job.row + row) * share.parts + share.part) * width + share.column;
        store4(to, make_float4(z[0][i % 2], z[0][i % 2 + 2], z[1][i % 2], z[1][i % 2 + 2]));
        store4(to + 4, make_float4(z[2][i % 2], z[2][i % 2 + 2], z[3][i % 2], z[3][i % 2 + 2]));
      }
    }
    if (index == 0 && tile.count) between();
  }
}

// Features from what `project` left, or from the rows themselves; a warp takes a row.
template <typename T>
__device__ __forceinline__ void finish_features(const Stream<T>& s, const QueryTile& tile, int start, int keys_here) {
  const Call& call = s.call;
  const int width = s.layout.projected, parts = kWarps / (width / kGroupColumns);
#pragma unroll 1
  for (int i = warp_index(); i < keys_here + tile.count; i += kWarps) {
    const bool is_key = i < keys_here;
    float* z = is_key ? s.phi(start + i) : s.phi_query(i - keys_here);
    const T* x = is_key ? s.key(s.listed(start + i)) : s.row(i - keys_here);
    if (!has_projection(call.settings.map)) {
#pragma unroll 1
      for (int j = lane_index() * 4; j < call.dim; j += kLanes * 4) {
        const float4 v = load4(x + j);
        store4(z + j, make_float4(map_number(call.settings.map, v.x), map_number(call.settings.map, v.y),
                                  map_number(call.settings.map, v.z), map_number(call.settings.map, v.w)));
      }
      continue;
    }
    const float* partial = s.floats(s.layout.partial) + i * parts * width;
#pragma unroll 1
    for (int j = lane_index() * 4; j < call.columns; j += kLanes * 4) {
      float4 sum = zero4();
#pragma unroll 4
      for (int p = 0; p < parts; ++p) sum = add(sum, load4(partial + p * width + j));
      store4(z + j, sum);
    }
    sync_warp();
    finish_row(call.settings, x, call.dim, z, call.columns);
  }
}

// Projections that the first product needs.
template <typename T>
__device__ __forceinline__ void load_first_weights(const Stream<T>& s, const QueryTile& tile, Weights& weights) {
  const Call& call = s.call;
  if (has_projection(call.settings.map))
    load_weights(Share(s.layout), Job<T>(s, tile, 0, 0, 0).weight, call.dim, call.columns, 0, weights);
}

// Features of `keys` keys of the list, to `phi`, and of the tile's queries, to `phi_query`; `weights` are those of the first
// product, `between` is work while others come, `after` what is to start when registers are free. Synchronises before it returns.
template <int kTiles, typename T, typename Between, typename After>
__device__ __forceinline__ void map_rows(const Stream<T>& s, QueryTile tile, int keys, Weights& weights, Between between, After after) {
  int start = 0;
#pragma unroll 1
  do {
    const int here = least(least(keys - start, 8 * kTiles), s.layout.mapped - tile.count);
    project<kTiles>(s, tile, start, here, weights, between);
    if (tile.count) after();
    if (has_projection(s.call.settings.map)) sync_block();
    if (s.has_map()) finish_features(s, tile, start, here);
    sync_block();
    start += here, tile.count = 0;
    if (start < keys) load_first_weights(s, tile, weights);
  } while (start < keys);
}

}  // namespace lineahead::cuda
