// Features, scores and weights of the streaming kernel, on tensor cores.
#pragma once

#include "blend.cuh"
#include "stream.cuh"

namespace lineahead::cuda {

constexpr int kGroupColumns = 64;  // columns of a projection that a warp works on

// Rows of 16-bit numbers in shared memory: row i is row index[i], or row i, of `base`.
template <typename T>
struct Operand {
  const T* base;
  int stride, count;
  const int* index;

  __device__ const T* row(int i) const { return base + (size_t)(index ? index[i] : i) * stride; }
};

// A lane's part of a 16 x 16 operand: rows lane / 4 and 8 below, from column k on.
template <typename T>
__device__ __forceinline__ void load_operand(const T* upper, const T* lower, int k, uint32_t (&a)[4]) {
  const int at = k + lane_index() % 4 * 2;
  a[0] = upper ? *reinterpret_cast<const uint32_t*>(upper + at) : 0;
  a[1] = lower ? *reinterpret_cast<const uint32_t*>(lower + at) : 0;
  a[2] = upper ? *reinterpret_cast<const uint32_t*>(upper + at + 8) : 0;
  a[3] = lower ? *reinterpret_cast<const uint32_t*>(lower + at + 8) : 0;
}

// x W in parts, partial[part][row][width]: a part is every so many-th 16 of the depth. A lane reads 8 neighbouring columns of four
// rows of W at once, so column n of the j-th product is column 8 n + j of the group.
template <typename T>
__device__ void project(const Operand<T>& x, const T* weight, int dim, int columns, int width, float* partial, int rows) {
  const int lane = lane_index(), r = lane / 4, q = lane % 4, groups = width / kGroupColumns, parts = kWarps / groups;
  const int group = warp_index() % groups, part = warp_index() / groups, column = group * kGroupColumns + r * 8;
  const T *upper = r < x.count ? x.row(r) : nullptr, *lower = r + 8 < x.count ? x.row(r + 8) : nullptr;
  float sum[8][4] = {};
  const uint4 none = {0, 0, 0, 0};
#pragma unroll 2
  for (int k = part * 16; k < dim; k += parts * 16) {
    uint4 w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const T* from = weight + (size_t)(k + 2 * q + (i & 1) + (i & 2) * 4) * columns + column;
      w[i] = column < columns ? *reinterpret_cast<const uint4*>(from) : none;
    }
    uint32_t a[4];
    load_operand(upper, lower, k, a);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const auto word = [j](const uint4& v) { return j < 2 ? v.x : j < 4 ? v.y : j < 6 ? v.z : v.w; };
      const uint32_t which = j % 2 ? 0x7632 : 0x5410;
      multiply(sum[j], a, permute_bytes(word(w[0]), word(w[1]), which), permute_bytes(word(w[2]), word(w[3]), which), T{});
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = r + i / 2 * 8;
    if (row >= x.count) continue;
    float* to = partial + ((size_t)part * rows + row) * width + group * kGroupColumns + (2 * q + i % 2) * 8;
    store4(to, make_float4(sum[0][i], sum[1][i], sum[2][i], sum[3][i]));
    store4(to + 4, make_float4(sum[4][i], sum[5][i], sum[6][i], sum[7][i]));
  }
}

// Features of rows [first, last) of x to rows of phi, from what `project` left; a warp takes a row.
template <typename T>
__device__ void finish_features(const Stream<T>& s, const Operand<T>& x, int first, int last, const float* partial, int rows, float* phi) {
  const Call& call = s.call;
  const int width = s.layout.projected, parts = kWarps / (width / kGroupColumns);
  for (int i = first + warp_index(); i < last; i += kWarps) {
    float* z = phi + (size_t)i * s.layout.phi_stride;
    if (!has_projection(call.settings.map)) {
      for (int j = lane_index(); j < call.dim; j += kLanes) z[j] = map_number(call.settings.map, to_float(x.row(i)[j]));
      continue;
    }
    for (int j = lane_index() * 4; j < call.columns; j += kLanes * 4) {
      float4 sum = zero4();
      for (int p = 0; p < parts; ++p) sum = add(sum, load4(partial + ((size_t)p * rows + i) * width + j));
      store4(z + j, sum);
    }
    sync_warp();
    finish_row(call.settings, x.row(i), call.dim, z, call.columns);
  }
}

// Query rows [start, start + count) of the block's heads.
struct QueryTile {
  int start, count, nodes, first_head;

  __device__ int head(int i) const { return first_head + (start + i) / nodes; }
  __device__ int node(int i) const { return (start + i) % nodes; }
};

// The tile's queries and, with `keys`, the nodes' keys.
template <typename T>
__device__ void stage_rows(const Stream<T>& s, const QueryTile& tile, bool keys) {
  const Call& call = s.call;
  const bool publish = block_index().x == 0 && block_index().y == 0;
  for (int i = warp_index(); i < tile.count + (keys ? call.nodes : 0); i += kWarps) {
    const int t = i - tile.count;
    const size_t row = t < 0 ? ((size_t)s.b * call.heads + tile.head(i)) * call.nodes + tile.node(i) : s.head * call.nodes + t;
    stage_row<T>(static_cast<const T*>(t < 0 ? call.query : call.key) + row * call.dim, call.dim, call.settings.qk_norm != 0,
                 call.settings.eps, t < 0 ? s.rows() + (size_t)i * s.layout.row_stride : s.key(s.layout.first_node + t),
                 t >= 0 && publish ? static_cast<T*>(call.pending_key_out) + row * call.dim : nullptr);
  }
}

// alpha, local_scale and the filter of each of the block's heads, to `gain`.
template <typename T>
__device__ void stage_gains(const Stream<T>& s) {
  const Call& call = s.call;
  const int group = call.heads / call.shared, width = 2 + call.settings.taps;
  for (int i = thread_index(); i < group * width; i += kThreads) {
    const int h = s.g * group + i / width, j = i % width;
    s.floats(s.layout.gain)[i] = to_float(j == 0   ? static_cast<const T*>(call.alpha)[h * call.alpha_step]
                                          : j == 1 ? static_cast<const T*>(call.local_scale)[h * call.local_scale_step]
                                                   : static_cast<const T*>(call.conv)[(size_t)h * call.settings.taps + j - 2]);
  }
}

__device__ inline int widest_rows(const Layout& layout) {
  return largest(layout.tile, largest(layout.fold_tile, least(layout.far_tile, 16)));
}

// Features of `folds` rows in `source` and of the tile's queries, each head with its own projection; two products at a time.
template <typename T>
__device__ void map_rows(const Stream<T>& s, const QueryTile& tile, int folds) {
  const Call& call = s.call;
  const Layout& layout = s.layout;
  const bool projects = has_projection(call.settings.map);
  const int size = call.dim * call.columns, half = projects ? kWarps / (layout.projected / kGroupColumns) * layout.projected : 0;
  const int fold_job = folds > 0, heads = tile.count ? tile.head(tile.count - 1) - tile.head(0) + 1 : 0, jobs = fold_job + heads;
  const int widest = widest_rows(layout);
  const Operand<T> queries{s.rows(), layout.row_stride, tile.count, nullptr}, keys{s.keys(), layout.key_stride, folds, s.tables.source};
  for (int start = 0; start < jobs; start += 2) {
    if (projects) {
      for (int job = start; job < least(start + 2, jobs); ++job) {
        float* partial = s.floats(layout.partial) + (size_t)(job - start) * half * widest;
        if (job < fold_job)
          project(keys, static_cast<const T*>(call.key_map) + (size_t)s.g * size, call.dim, call.columns, layout.projected, partial, widest);
        else
          project(queries, static_cast<const T*>(call.query_map) + (size_t)(tile.head(0) + job - fold_job) * size, call.dim,
                  call.columns, layout.projected, partial, widest);
      }
      sync_block();
    }
    for (int job = start; job < least(start + 2, jobs); ++job) {
      const float* partial = s.floats(layout.partial) + (size_t)(job - start) * half * widest;
      if (job < fold_job) {
        finish_features(s, keys, 0, folds, partial, widest, s.floats(layout.phi));
        continue;
      }
      const int h = tile.head(0) + job - fold_job - tile.first_head;
      finish_features(s, queries, largest(h * tile.nodes - tile.start, 0), least((h + 1) * tile.nodes - tile.start, tile.count), partial,
                      widest, s.floats(layout.phi_query));
    }
    sync_block();
  }
}

// q . k of all columns to `weight`.
template <typename T>
__device__ void score(const Stream<T>& s, const QueryTile& tile) {
  const Layout& layout = s.layout;
  const int lane = lane_index(), r = lane / 4, q = lane % 4;
  const T* upper = r < tile.count ? s.rows() + (size_t)r * layout.row_stride : nullptr;
  const T* lower = r + 8 < tile.count ? s.rows() + (size_t)(r + 8) * layout.row_stride : nullptr;
  float* weight = s.floats(layout.weight);
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
      if (r + i / 2 * 8 < tile.count) weight[(size_t)(r + i / 2 * 8) * layout.weight_stride + base + q * 2 + i % 2] = sum[i];
  }
}

// 1 / length of every column's key and of every query row, for kernels of cosines (`local_norm`).
template <typename T>
__device__ void measure_lengths(const Stream<T>& s, const QueryTile& tile) {
  if (!s.call.settings.local_norm) return;
  const int dim = s.call.dim, columns = s.layout.columns;
  for (int i = warp_index(); i < s.count() + tile.count; i += kWarps) {
    const T* row = i < s.count() ? s.key(i) : s.rows() + (size_t)(i - s.count()) * s.layout.row_stride;
    float squares = 0;
    for (int d = lane_index(); d < dim; d += kLanes) squares = fmaf(to_float(row[d]), to_float(row[d]), squares);
    const float inverse = 1 / sqrtf(lane_sum(squares) + s.call.settings.eps);
    if (lane_index() == 0) s.floats(s.layout.length)[i < s.count() ? i : columns + i - s.count()] = inverse;
  }
}

// Features of far columns [start, start + count), to rows of `phi_far`. Synchronises before it returns.
template <typename T>
__device__ void map_far(const Stream<T>& s, int start, int count, float* phi) {
  const Call& call = s.call;
  const Layout& layout = s.layout;
  for (int first = 0; first < count; first += 16) {
    const Operand<T> keys{s.keys(), layout.key_stride, least(16, count - first), s.tables.far + start + first};
    if (has_projection(call.settings.map)) {
      project(keys, static_cast<const T*>(call.key_map) + (size_t)s.g * call.dim * call.columns, call.dim, call.columns,
              layout.projected, s.floats(layout.partial), widest_rows(layout));
      sync_block();
    }
    finish_features(s, keys, 0, keys.count, s.floats(layout.partial), widest_rows(layout), phi + (size_t)first * layout.phi_stride);
    sync_block();
  }
}

// phi(q) . phi(k) of the far pairs to `weight`. `fresh`: the first tile; where all far features have room, they are still there
// for the others. Synchronises before it returns.
template <typename T>
__device__ void score_far(const Stream<T>& s, const QueryTile& tile, bool fresh) {
  const Call& call = s.call;
  const Layout& layout = s.layout;
  const int count = s.has_map() ? s.tables.flags[0] : 0, lanes = 8, lane = lane_index() % lanes, per_warp = kLanes / lanes;
  float* phi = s.floats(layout.phi_far);
  for (int start = 0; start < count; start += layout.far_tile) {
    const int rows = least(layout.far_tile, count - start), groups = (rows + per_warp - 1) / per_warp;
    if (fresh || count > layout.far_tile) map_far(s, start, rows, phi);
    for (int job = warp_index(); job < tile.count * groups; job += kWarps) {
      const int i = job / groups, n = job % groups * per_warp + lane_index() / lanes, row = n < rows ? n : 0;
      const float *query = s.floats(layout.phi_query) + (size_t)i * layout.phi_stride, *key = phi + (size_t)row * layout.phi_stride;
      float sum = 0;
#pragma unroll 4
      for (int f = lane * 4; f < call.features; f += lanes * 4) sum = dot(load4(query + f), load4(key + f), sum);
      sum = lane_sum(sum, lanes);
      const int c = s.tables.far[start + row];
      if (n < rows && lane == 0 && sight(s, tile.node(i), c) == Sight::kFar)
        s.floats(layout.weight)[(size_t)i * layout.weight_stride + c] = sum;
    }
    sync_block();
  }
}

constexpr int kMostColumns = 256;

// Scores of one row become final weights of the columns, and phi(q) is scaled so that phi(q) S is the global term; by one warp.
template <typename T>
__device__ void weigh_row(const Stream<T>& s, const QueryTile& tile, int i) {
  constexpr int kUnits = kMostColumns / kLanes;
  const Settings& settings = s.call.settings;
  const int t = tile.node(i), lane = lane_index(), count = s.count(), features = s.features();
  float *phi = s.floats(s.layout.phi_query) + (size_t)i * s.layout.phi_stride;
  float *weight = s.floats(s.layout.weight) + (size_t)i * s.layout.weight_stride;
  const float* lengths = s.floats(s.layout.length);
  const float* given = s.floats(s.layout.gain) + (tile.head(i) - tile.first_head) * (2 + settings.taps);
  const float own = settings.local_norm ? lengths[s.layout.columns + i] : settings.scale;
  float x[kUnits], peak = -INFINITY, near = 0, far = 0;
  Sight seen[kUnits];
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const int c = u * kLanes + lane;
    if (u * kLanes >= count) break;
    seen[u] = c < count ? sight(s, t, c) : Sight::kNone;
    x[u] = seen[u] == Sight::kNone ? 0 : weight[c];
    if (seen[u] != Sight::kLocal) continue;
    x[u] *= settings.local_norm ? own * lengths[c] : own;
    peak = fmaxf(peak, x[u]);
  }
  if (settings.local == kSoftmax) peak = lane_max(peak);
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    if (u * kLanes >= count) break;
    if (seen[u] == Sight::kLocal) near += x[u] = local_weight(settings.local, x[u], peak);
    if (seen[u] == Sight::kFar) far += x[u];
  }
  if (has_norm(settings))
    for (int f = lane; f < features; f += kLanes) far = fmaf(phi[f], s.floats(s.layout.norm)[f], far);
  const bool divides = settings.normalizer == kDenominator;
  const Gains gain = gains(settings, Part::kWhole, given[0], given[1], divides ? lane_sum(near) : 0, divides ? lane_sum(far) : 0);
  for (int f = lane; f < features; f += kLanes) phi[f] *= gain.far;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const int c = u * kLanes + lane;
    if (u * kLanes >= s.layout.columns) break;
    if (c >= s.layout.columns) continue;
    float w = 0;
    if (c < count) {
      w = seen[u] == Sight::kLocal ? gain.near * x[u] : seen[u] == Sight::kFar ? gain.far * x[u] : 0;
      const int lag = tap(s, t, c);
      if (lag >= 0) w += given[2 + lag];
    }
    weight[c] = w;
  }
}

}  // namespace lineahead::cuda
