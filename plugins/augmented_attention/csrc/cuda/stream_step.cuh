// The streaming kernel: commit and attention in one pass over S.
#pragma once

#include "stream_attend.cuh"
#include "stream_preset.cuh"

namespace lineahead::cuda {

// A lane's numbers of S in one pass: of features feature(u, i), columns [column, column + 4). As the tensor cores' operand of the
// j-th product, column n of it is column 4 n + j of the pass.
template <int kSteps>
struct Held {
  float4 s[kSteps][2];

  __device__ static int first(int u) { return (warp_index() * kSteps + u) * 8; }
  __device__ static int feature(int u, int i) { return first(u) + lane_index() % 4 + 4 * i; }
  __device__ static int column() { return lane_index() / 4 * 4; }
};

// Ask for the numbers of S of one pass, so that they lie in the second-level cache when they are loaded: registers are needed for
// projections until then.
template <typename T>
__device__ __forceinline__ void ask_for_state(const Stream<T>& s, int pass) {
  const Call& call = s.call;
  if (!s.has_map() || pass >= s.layout.passes) return;
  const float* from = call.state + s.head * call.features * call.value_dim + s.value_start + pass * kPassColumns;
#pragma unroll 1
  for (int f = thread_index(); f < call.features; f += kThreads) prefetch(from + (size_t)f * call.value_dim);
}

template <int kSteps, typename T>
__device__ __forceinline__ void load_state(const Stream<T>& s, int pass, Held<kSteps>& held) {
  const Call& call = s.call;
  const int column = pass * kPassColumns + Held<kSteps>::column();
  const float* from = call.state + s.head * call.features * call.value_dim + s.value_start + column;
#pragma unroll
  for (int u = 0; u < kSteps; ++u)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int f = Held<kSteps>::feature(u, i);
      held.s[u][i] = zero4();
      if (f < call.features && column < s.values) held.s[u][i] = load_once(from + (size_t)f * call.value_dim);
    }
}

template <int kSteps, typename T>
__device__ __forceinline__ void store_state(const Stream<T>& s, int pass, const Held<kSteps>& held) {
  const Call& call = s.call;
  const int column = pass * kPassColumns + Held<kSteps>::column();
  float* to = call.state_out + s.head * call.features * call.value_dim + s.value_start + column;
#pragma unroll
  for (int u = 0; u < kSteps; ++u)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int f = Held<kSteps>::feature(u, i);
      if (f < call.features && column < s.values) store4(to + (size_t)f * call.value_dim, held.s[u][i]);
    }
}

// The folded S of a block that takes several tiles, between the first and the others; each thread its own.
template <int kSteps, typename T>
__device__ __forceinline__ float4* kept(const Stream<T>& s, int u, int i) {
  return reinterpret_cast<float4*>(s.floats(s.layout.state)) + (u * 2 + i) * kThreads + thread_index();
}
template <int kSteps, typename T>
__device__ __forceinline__ void keep_state(const Stream<T>& s, const Held<kSteps>& held) {
#pragma unroll
  for (int u = 0; u < kSteps; ++u) *kept<kSteps>(s, u, 0) = held.s[u][0], *kept<kSteps>(s, u, 1) = held.s[u][1];
}
template <int kSteps, typename T>
__device__ __forceinline__ void take_state(const Stream<T>& s, Held<kSteps>& held) {
#pragma unroll
  for (int u = 0; u < kSteps; ++u) held.s[u][0] = *kept<kSteps>(s, u, 0), held.s[u][1] = *kept<kSteps>(s, u, 1);
}

// S += phi(k) v^T of the keys that fold.
template <int kSteps, typename T>
__device__ __forceinline__ void fold_rows(const Stream<T>& s, int pass, Held<kSteps>& held) {
#pragma unroll 1
  for (int n = 0; n < s.list.folds; ++n) {
    const float4 v = load4(s.value(s.listed(n)) + pass * kPassColumns + Held<kSteps>::column());
    const float* phi = s.phi(n);
#pragma unroll
    for (int u = 0; u < kSteps; ++u) {
      if (Held<kSteps>::first(u) >= s.call.features) break;
#pragma unroll
      for (int i = 0; i < 2; ++i) add_scaled(held.s[u][i], phi[Held<kSteps>::feature(u, i)], v);
    }
  }
}

__device__ __forceinline__ float component(const float4& v, int j) { return j == 0 ? v.x : j == 1 ? v.y : j == 2 ? v.z : v.w; }

// A number as the sum of two that the tensor cores take exactly, to 2^-22 of it.
struct Split {
  uint32_t high, low;
  __device__ __forceinline__ explicit Split(float x) : high(to_tf32(x)), low(to_tf32(x - bits_to_float(high))) {}
};

// Rows of shared float32 numbers as the left operand, 8 columns from `at` on.
template <int kTiles>
struct LeftOperand {
  uint32_t high[4], low[4];
  __device__ __forceinline__ LeftOperand(const float* rows, int stride, int count, int at) {
    const int r = lane_index() / 4, q = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = r + i % 2 * 8;
      if (i % 2 >= kTiles) {
        high[i] = low[i] = 0;
        continue;
      }
      const Split part(row < count ? rows[(size_t)row * stride + at + q + i / 2 * 4] : 0.0f);
      high[i] = part.high, low[i] = part.low;
    }
  }
};

// phi(q) S and weights times values of one pass, this warp's share of the depth, to `partial`.
template <int kTiles, int kSteps, typename T>
__device__ __forceinline__ void multiply_pass(const Stream<T>& s, int rows, int pass, const Held<kSteps>& held, float* partial) {
  const Layout& layout = s.layout;
  const int r = lane_index() / 4, q = lane_index() % 4, column = pass * kPassColumns + Held<kSteps>::column();
  float sum[4][4] = {};
  if (s.has_map())
#pragma unroll
    for (int u = 0; u < kSteps; ++u) {
      const int first = Held<kSteps>::first(u);
      if (first >= s.call.features) break;
      const LeftOperand<kTiles> a(s.floats(layout.phi_query), layout.phi_stride, rows, first);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const Split b0(component(held.s[u][0], j)), b1(component(held.s[u][1], j));
        multiply_tf32(sum[j], a.low, b0.high, b1.high);
        multiply_tf32(sum[j], a.high, b0.low, b1.low);
        multiply_tf32(sum[j], a.high, b0.high, b1.high);
      }
    }
#pragma unroll 1
  for (int c = warp_index() * 8; c < layout.columns; c += kWarps * 8) {
    const LeftOperand<kTiles> a(s.floats(layout.weight), layout.weight_stride, rows, c);
    const T* value = s.value(c + q) + column;
    const float4 v0 = load4(value), v1 = load4(value + 4 * layout.value_stride);
#pragma unroll
    for (int j = 0; j < 4; ++j) {  // 16-bit numbers are exact in tf32
      const uint32_t b0 = to_tf32(component(v0, j)), b1 = to_tf32(component(v1, j));
      multiply_tf32(sum[j], a.low, b0, b1);
      multiply_tf32(sum[j], a.high, b0, b1);
    }
  }
#pragma unroll
  for (int i = 0; i < 2 * kTiles; ++i) {
    const int row = r + i / 2 * 8;
    if (row < rows) store4(partial + (warp_index() * rows + row) * kPassColumns + 8 * q + i % 2 * 4, make_float4(sum[0][i], sum[1][i], sum[2][i], sum[3][i]));
  }
}

// The same of a single row, without tensor cores.
template <int kSteps, typename T>
__device__ __forceinline__ void multiply_row(const Stream<T>& s, int pass, const Held<kSteps>& held, float* partial) {
  const float *phi = s.phi_query(0), *weight = s.weight(0);
  const int column = Held<kSteps>::column();
  float4 sum = zero4();
  if (s.has_map())
#pragma unroll
    for (int u = 0; u < kSteps; ++u) {
      if (Held<kSteps>::first(u) >= s.call.features) break;
#pragma unroll
      for (int i = 0; i < 2; ++i) add_scaled(sum, phi[Held<kSteps>::feature(u, i)], held.s[u][i]);
    }
#pragma unroll 2
  for (int c = warp_index() * 4 + lane_index() % 4; c < s.layout.columns; c += kWarps * 4)
    add_scaled(sum, weight[c], load4(s.value(c) + pass * kPassColumns + column));
#pragma unroll
  for (int mask = 1; mask <= 2; mask *= 2)
    sum = add(sum, make_float4(shuffle_xor(sum.x, mask), shuffle_xor(sum.y, mask), shuffle_xor(sum.z, mask), shuffle_xor(sum.w, mask)));
  if (lane_index() % 4 == 0) store4(partial + warp_index() * kPassColumns + column, sum);
}

// The sum over the warps: the output.
template <typename T>
__device__ __forceinline__ void put_output(const Stream<T>& s, const QueryTile& tile, int pass, const float* partial) {
  const Call& call = s.call;
  const int rows = tile.count;
#pragma unroll 1
  for (int unit = thread_index(); unit < rows * (kPassColumns / 4); unit += kThreads) {
    const int i = unit / (kPassColumns / 4), part = unit % (kPassColumns / 4) * 4, column = pass * kPassColumns + part;
    float4 total = zero4();
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total = add(total, load4(partial + (w * rows + i) * kPassColumns + part));
    if (column >= s.values) continue;
    const size_t row = ((size_t)s.b * call.heads + tile.first_head) * call.nodes + tile.start + i;
    store4(static_cast<T*>(call.output) + row * call.value_dim + s.value_start + column, total);
  }
}

// Rows of a window as the commit leaves them, from the staged columns; `in_place`: only those that change.
template <typename T>
__device__ __forceinline__ void put_window(const Stream<T>& s, const T* staged, int stride, T* out, int width, int used, int shift, bool in_place) {
  const Plan& plan = s.plan;
  const int oldest = largest(plan.before, plan.total - plan.ring), fresh = plan.total - oldest;
  const int sinks = largest(least(plan.total, s.call.settings.sinks) - plan.before, 0);
  const int count = in_place ? fresh + sinks : s.window_rows, last = plan.total - 1;
#pragma unroll 1
  for (int i = thread_index(); i < count << shift; i += kThreads) {
    const int k = i >> shift, part = (i - (k << shift)) * 8;
    if (part >= used) continue;
    int row = k, column = k;
    if (in_place) {
      const int position = k < fresh ? oldest + k : plan.before + k - fresh;
      row = k < fresh ? position % plan.ring : plan.ring + position, column = s.window_rows + position - plan.before;
    } else {
      const int position = k >= plan.ring ? k - plan.ring : last < k ? -1 : last - (last - k) % plan.ring;
      if (position >= plan.before && position < plan.total) column = s.window_rows + position - plan.before;
    }
    *reinterpret_cast<uint4*>(out + (size_t)row * width + part) = *reinterpret_cast<const uint4*>(staged + column * stride + part);
  }
}

// The block's share of what is written once a head or a slice. Where outputs are the buffers of the inputs, what several blocks
// read is written by the last of them to have read it.
template <typename T>
__device__ void put_shared(const Stream<T>& s) {
  const Call& call = s.call;
  const Layout& layout = s.layout;
  const bool row = block_index().y == 0, first = block_index().x == 0 && row, owns = s.tables.flags[1] != 0, last = s.tables.flags[2] != 0;
  const bool keys_in_place = call.window_key_out == call.window_key, values_in_place = call.window_value_out == call.window_value;
  if (first)
    for (int i = warp_index(); i < call.nodes; i += kWarps)
      if (const int d = lane_index() * 8; d < call.dim)
        *reinterpret_cast<uint4*>(static_cast<T*>(call.pending_key_out) + (s.head * call.nodes + i) * call.dim + d) =
            *reinterpret_cast<const uint4*>(s.key(layout.first_node + i) + d);
  if (has_norm(call.settings) && (call.norm_out == call.norm ? last && s.list.folds : first))
#pragma unroll 1
    for (int f = thread_index(); f < call.features; f += kThreads) {
      float sum = s.floats(layout.norm)[f];
#pragma unroll 1
      for (int n = 0; n < s.list.folds; ++n) sum += s.phi(n)[f];
      call.norm_out[s.head * call.features + f] = sum;
    }
  if (keys_in_place ? last : first)
    put_window(s, s.keys(), layout.key_stride, static_cast<T*>(call.window_key_out) + s.head * s.window_rows * call.dim, call.dim, call.dim,
               layout.key_shift, keys_in_place);
  if (values_in_place ? owns : row)
    put_window(s, s.values_at(), layout.value_stride, static_cast<T*>(call.window_value_out) + s.head * s.window_rows * call.value_dim + s.value_start,
               call.value_dim, s.values, layout.value_shift, values_in_place);
  pass_unused(call);
}

// kRows: the most query rows of a tile: 1, 8 or 16.
template <int kSteps, int kRows, typename T>
__device__ __forceinline__ void stream(const Call& call, const Layout& layout, int ring) {
  constexpr bool kSingle = kRows == 1;
  constexpr int kTiles = kRows <= 8 ? 1 : 2;
  Stream<T> s(call, layout, ring);
  const int length = read_index(call.length, call.index_bytes, s.b), accepted = read_index(call.accept_count, call.index_bytes, s.b);
  const int group = call.heads / call.shared, rows = kSingle ? 1 : group * call.nodes;
  QueryTile tile{(int)block_index().y * layout.tile, 0, kSingle ? 1 : call.nodes, s.g * group};
  tile.count = kSingle ? 1 : least(layout.tile, rows - tile.start);
  Weights weights;
  stage_columns(s, tile);
  ask_for_state(s, 0);
  ask_for_state(s, 1);
  load_first_weights(s, tile, weights);
  stage_pending(s);
  stage_gains(s);
  s.open(length, accepted);
  fill_nodes(call, s.plan, s.b, s.tables);
  wait_copies();
  sync_block();
  const int row_blocks = layout.row_blocks, blocks = grid_size().x * row_blocks;
  unsigned* tickets = call.tickets + s.head * (grid_size().x + 1);
  const bool counts = thread_index() == kThreads - 1, alone = row_blocks == 1;
  bool last = true, owns = alone;
  if (counts && blocks > 1) last = last_to_arrive(tickets + grid_size().x, blocks);  // asked now, looked at later
  if (call.settings.qk_norm) {
    unit_rows(s.rows(), layout.row_stride, tile.count, call.dim, call.settings.eps);
    unit_rows(s.key(layout.first_node), layout.key_stride, call.nodes, call.dim, call.settings.eps);
    sync_block();
  }
  const bool folds = s.list.folds > 0, in_place = call.state_out == call.state, puts = s.has_map() && (in_place ? folds && alone : block_index().y == 0);
  int turn = 0;
#pragma unroll 1
  for (int index = block_index().y; index < layout.tiles; index += row_blocks) {
    const bool fresh = kSingle || index == (int)block_index().y;
    Held<kSteps> held;
    if (!fresh) {
      tile.start = index * layout.tile, tile.count = least(layout.tile, rows - tile.start);
      sync_block();
      stage_queries(s, tile);
      load_first_weights(s, tile, weights);
      wait_copies();
      sync_block();
      if (call.settings.qk_norm) {
        unit_rows(s.rows(), layout.row_stride, tile.count, call.dim, call.settings.eps);
        sync_block();
      }
    }
    map_rows<kTiles>(
        s, tile, fresh ? s.list.count() : 0, weights,
        [&] {
          if (fresh) fill_columns(s);
          if (call.settings.local != kNoLocal) score(s, tile);
          if (call.settings.local_norm) measure_lengths(s, tile);
        },
        [&] {
          if (!s.has_map()) return;
          if (fresh)
            load_state(s, 0, held);
          else
            take_state(s, held);
        });
    if (s.list.count() > s.list.folds) {
      score_far(s, tile);
      sync_block();
    }
#pragma unroll 1
    for (int i = warp_index(); i < tile.count; i += kWarps) weigh_row(s, tile, i);
#pragma unroll 1
    for (int pass = 0; pass < layout.passes; ++pass) {
      const bool more = fresh && s.has_map() && pass + 1 < layout.passes;
      if (fresh && folds) fold_rows(s, pass, held);
      if (fresh && puts) store_state(s, pass, held);
      if (fresh && layout.tiles > row_blocks) keep_state(s, held);
      if (pass == 0) sync_block();
      if (pass == 0 && fresh && counts) {
        if (!alone) owns = last_to_arrive(tickets + block_index().x, row_blocks);
        s.tables.flags[1] = owns, s.tables.flags[2] = last;
      }
      if (more) ask_for_state(s, pass + 2);
      float* partial = s.floats(layout.partial) + turn++ % 2 * kWarps * layout.tile * kPassColumns;
      if (kSingle)
        multiply_row(s, pass, held, partial);
      else
        multiply_pass<kTiles>(s, tile.count, pass, held, partial);
      sync_block();
      if (more) load_state(s, pass + 1, held);
      put_output(s, tile, pass, partial);
    }
    if (fresh && !alone && in_place && folds && s.tables.flags[1]) store_state(s, 0, held);
    if (kSingle) break;
  }
  put_shared(s);
}

template <int kSteps, int kRows, typename T, typename Preset>
__global__ void __launch_bounds__(kThreads, kSteps <= 4 ? 2 : 1) stream_kernel(const Call given, const Layout cut, int ring) {
  Call call = given;
  Layout layout = cut;
  Preset::fix(call, layout);
  if (kRows == 1) fix_single(call, layout);
  stream<kSteps, kRows, T>(call, layout, ring);
}

}  // namespace lineahead::cuda
